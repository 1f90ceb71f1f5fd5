"""Systems of several stages as run folders: trained stage by stage, resumed, replaced, evaluated and sampled."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import HANGS, command, environment
from diffusional.cli import main
from diffusional.errors import Interrupted
from diffusional.files import load_tensors
from diffusional.training import composites
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.composites import noised, train_composite
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, ScheduleConfig
from diffusional.training.stage_data import dataset_of
from diffusional.training.systems import SYSTEMS

QUIET = Console(quiet=True)
SCHEDULE = ScheduleConfig(gamma_min=-6.0, gamma_max=6.0, steps=6)
SMALL = Config(
    model=ModelConfig(widths=(8, 8), blocks=1),
    schedule=SCHEDULE,
    steps=4,
    batch=16,
    validate_every=4,
    checkpoint_every=2,
)
VAE = replace(
    SMALL, model=ModelConfig(kind="vae", hidden=8, blocks=1), schedule=ScheduleConfig(), latent=LatentConfig(sizes=(3,))
)
CONTRASTIVE = replace(VAE, model=ModelConfig(kind="contrastive", hidden=8, blocks=1))
PRIOR = replace(SMALL, validate_every=2, model=ModelConfig(network="mlp", predicts="v", hidden=8, blocks=1))
LABELS = DataConfig(condition="label")
CONFIGS = {
    "cascade": CompositeConfig(
        "cascade", {"base": replace(SMALL, condition_dropout=0.2), "upsampler": SMALL}, LABELS, (2,)
    ),
    "three": CompositeConfig("cascade", {"a": SMALL, "b": SMALL, "c": SMALL}, DataConfig(), (2, 2)),
    "renoised": CompositeConfig("cascade", {"base": SMALL, "upsampler": SMALL}, DataConfig(), (2,), renoise=-1.0),
    "handed over": CompositeConfig("cascade", {"base": SMALL, "upsampler": SMALL}, DataConfig(), (2,), handover=3),
    "latent": CompositeConfig("latent", {"autoencoder": VAE, "prior": PRIOR}, LABELS),
    "unclip": CompositeConfig("unclip", {"encoder": VAE, "prior": PRIOR, "decoder": SMALL}, LABELS),
    "contrastive": CompositeConfig("unclip", {"encoder": CONTRASTIVE, "prior": PRIOR, "decoder": SMALL}, LABELS),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of every kind, which tests must not change."""
    folder = tmp_path_factory.mktemp("systems")
    for name, config in CONFIGS.items():
        train_composite(config, folder / name, console=QUIET)
    return {name: folder / name for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_system_is_a_run_like_any_other(name: str, runs: dict[str, Path]) -> None:
    config, run = CONFIGS[name], df.load_run(runs[name])
    kinds = {"latent": df.FrozenPosterior, "unclip": df.FrozenEncoder, "contrastive": df.FrozenEncoder}
    assert type(run.model) is kinds.get(config.kind, df.Cascade)
    assert run.space.shape == (1, 8, 8)
    result = run.evaluate(visits=2, plan=df.Plan.uniform(run.model), audit=False)
    assert result.nelbo.n == 447
    stages = {term.partition(".")[0] for term in result.terms}
    assert stages == set(run.model.stages)
    assert result.nelbo.value == pytest.approx(sum(term.value for term in result.terms.values()))


@pytest.mark.parametrize("name", ["cascade", "renoised", "unclip", "contrastive"])
def test_each_stage_is_a_run_of_its_own(name: str, runs: dict[str, Path]) -> None:
    """It is evaluated by itself, on its own variable given that of the stage before it, and its bound is its part of the joint one."""
    config = CONFIGS[name]
    whole = df.load_run(runs[name]).evaluate(visits=16, plan=df.Plan.uniform(df.load(runs[name])), audit=False)
    for stage in config.stages if config.kind == "cascade" else ["decoder"]:
        run = df.load_run(runs[name] / "stages" / stage)
        assert bool(run.record.form) == (stage in ("upsampler", "decoder"))
        own = run.evaluate(visits=16, plan=df.Plan.uniform(run.model), audit=False)
        joint = sum(term.value for key, term in whole.terms.items() if key.startswith(f"{stage}."))
        error = sum(term.error for key, term in whole.terms.items() if key.startswith(f"{stage}.")) + own.nelbo.error
        assert abs(own.nelbo.value - joint) < 5 * error


def test_the_variables_of_a_cascade_are_those_of_its_stages(runs: dict[str, Path]) -> None:
    model, x = df.load(runs["three"]), df.load_run(runs["three"]).encode("test")[:20]
    for i, (name, below) in enumerate([("a", None), ("b", "a"), ("c", "b")]):
        run = df.load_run(runs["three"] / "stages" / name)
        items = run.encode("test")[:20]
        assert items.equal(model.variable(name, x))
        if below is not None:
            assert run.condition("test")[:20].equal(model.variable(below, x))
        assert run.space.shape == (1, 2 ** (i + 1), 2 ** (i + 1))


def _weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {stage.name: load_tensors(stage / "model.safetensors") for stage in sorted((run / "stages").iterdir())}


def test_an_interrupted_system_is_resumed_to_the_same_bits(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prior is interrupted in the middle, by a signal at its first validation."""
    run, config, trained = tmp_path / "run", CONFIGS["unclip"], []
    train = composites.train

    def interrupted(own: Config, folder: Path, **options: Any) -> df.LatentVariableModel:
        trained.append(folder.name)
        watch = (
            (lambda step, model: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
            if len(trained) == 2
            else None
        )
        return train(own, folder, watch=watch, **options)

    monkeypatch.setattr(composites, "train", interrupted)
    with pytest.raises(Interrupted, match="step 2 of 4"):
        train_composite(config, run, console=QUIET)
    with pytest.raises(df.DiffusionalError, match=r"stage 'decoder' has not been trained"):
        df.load(run)
    with pytest.raises(df.DiffusionalError, match="already holds a run"):
        train_composite(config, run, console=QUIET)
    train_composite(config, run, resume=True, console=QUIET)
    assert trained == ["encoder", "prior", "encoder", "prior", "decoder"]
    ours, whole = _weights(run), _weights(runs["unclip"])
    assert ours.keys() == whole.keys()
    for stage, weights in whole.items():
        assert all(ours[stage][name].equal(value) for name, value in weights.items())


def test_another_system_is_not_resumed(runs: dict[str, Path]) -> None:
    with pytest.raises(df.DiffusionalError, match=r"renoise: -1\.0 → None"):
        train_composite(replace(CONFIGS["renoised"], renoise=None), runs["renoised"], resume=True, console=QUIET)


def test_a_changed_encoder_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["latent"], tmp_path / "moved")
    df.load(run)  # the folder may be moved as a whole
    df.load_run(run / "stages" / "prior").encode("test")
    other = tmp_path / "other"
    df.train(replace(VAE, seed=1), other, console=QUIET)
    shutil.copy(other / "model.safetensors", run / "stages" / "autoencoder" / "model.safetensors")
    with pytest.raises(df.DiffusionalError, match=r"encoder.*changed"):
        df.load(run)
    with pytest.raises(df.DiffusionalError, match=r"encoder.*changed"):
        df.load_run(run / "stages" / "prior").encode("test")


def test_a_stage_is_replaced(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["cascade"], tmp_path / "run")
    stage = run / "stages" / "upsampler"
    config = df.load_run(stage).config
    shutil.rmtree(stage)
    with pytest.raises(df.DiffusionalError, match="'upsampler' has not been trained"):
        df.load(run)
    df.train(replace(config, model=ModelConfig(widths=(16,), blocks=1)), stage, console=QUIET)
    assert df.load(run).stages["upsampler"].denoiser.module.network.first.out_channels == 16


def test_a_stage_that_was_trained_further_is_left_as_it_is(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["cascade"], tmp_path / "run")
    stage, later = run / "stages" / "base", run / "stages" / "upsampler"
    config = df.load_run(stage).config
    df.train(replace(config, steps=config.steps + 2), stage, resume=True, console=QUIET)
    before = [(one / "model.safetensors").read_bytes() for one in (stage, later)]
    assert before[0] != (runs["cascade"] / "stages/base/model.safetensors").read_bytes()
    train_composite(CONFIGS["cascade"], run, resume=True, console=QUIET)
    assert [(one / "model.safetensors").read_bytes() for one in (stage, later)] == before
    # An encoder that was trained further is not the one that the later stages were trained with.
    run = shutil.copytree(runs["contrastive"], tmp_path / "contrastive")
    encoder = run / "stages" / "encoder"
    config = df.load_run(encoder).config
    df.train(replace(config, steps=config.steps + 2), encoder, resume=True, console=QUIET)
    with pytest.raises(df.DiffusionalError, match=r"encoder.*changed"):
        train_composite(CONFIGS["contrastive"], run, resume=True, console=QUIET)


def test_stages_that_do_not_meet_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["cascade"], tmp_path / "run")
    shutil.rmtree(run / "stages" / "base")
    shutil.copytree(runs["three"] / "stages" / "a", run / "stages" / "base")  # of 2×2 pixels
    with pytest.raises(df.DiffusionalError, match=r"meet.*'base'.*factors"):
        df.load(run)
    record = json.loads((run / "composite.json").read_text())
    (run / "composite.json").write_text(json.dumps(record | {"factors": "two"}))
    with pytest.raises(df.DiffusionalError, match=r"composite.json.*factors"):
        df.load(run)


def test_a_contrastive_encoder_is_trained_on_pairs_and_evaluated_only_as_a_stage(runs: dict[str, Path]) -> None:
    encoder = df.load_run(runs["contrastive"] / "stages" / "encoder")
    assert encoder.config.data.condition == "label"
    x = encoder.encode("test")[:20]
    model: Any = df.load(runs["contrastive"])
    # The prior's items and the condition of the decoder are its features.
    prior = df.load_run(runs["contrastive"] / "stages" / "prior")
    assert torch.allclose(prior.encode("test")[:20], model.variable("prior", x, model.encoded(x)))
    assert torch.allclose(model.encoded(x)[0].square().sum(1), torch.full((20,), 3.0))
    decoder = df.load_run(runs["contrastive"] / "stages" / "decoder")
    assert torch.allclose(decoder.condition("test")[:20], model.encoded(x)[0])
    with pytest.raises(df.DiffusionalError, match=r"no p\(x\)"):
        encoder.evaluate()
    log = [json.loads(line) for line in (encoder.path / "metrics.jsonl").read_text().splitlines()]
    # In nats, among other groups of 16 pairs.
    own: Any = encoder.model
    loss = own.loss(encoder.encode("validation"), condition=encoder.condition("validation")).item()
    assert next(line["validation"] for line in log if "validation" in line) == pytest.approx(loss, rel=0.1)
    assert not any("loss" in line for line in log)


def test_draws_of_a_contrastive_encoder_are_refused(runs: dict[str, Path]) -> None:
    encoder = str(runs["contrastive"] / "stages" / "encoder")
    with pytest.raises(df.DiffusionalError, match=r"encoder_draws=2.*ContrastiveEncoder"):
        dataset_of(DataConfig(encoder=encoder, encoder_draws=2))


def test_a_contrastive_encoder_needs_a_condition_and_only_its_own_options() -> None:
    with pytest.raises(df.DiffusionalError, match=r"contrastive.*condition"):
        replace(CONFIGS["contrastive"], data=DataConfig())
    with pytest.raises(df.DiffusionalError, match="'vae'"):
        CompositeConfig("latent", {"autoencoder": CONTRASTIVE, "prior": PRIOR}, LABELS)
    with pytest.raises(df.DiffusionalError, match=r"contrastive.*warmup"):
        replace(CONTRASTIVE, latent=LatentConfig(sizes=(3,), warmup=0.5))
    with pytest.raises(df.DiffusionalError, match=r"contrastive.*mlp"):
        replace(CONTRASTIVE, model=ModelConfig(kind="contrastive", network="mlp"))
    with pytest.raises(df.DiffusionalError, match=r"contrastive.*data\.condition"):
        df.train(CONTRASTIVE, "never-made", console=QUIET)
    assert not Path("never-made").exists()


def test_the_noise_levels_of_links_are_those_of_the_stages(runs: dict[str, Path]) -> None:
    gammas = torch.linspace(-6, 6, 6)
    assert noised(CONFIGS["handed over"])["upsampler"].model.condition_noise == pytest.approx(float(gammas[2]))
    assert noised(CONFIGS["unclip"])["decoder"].model.condition_noise == pytest.approx(-6.0)
    assert noised(CONFIGS["renoised"])["upsampler"].model.condition_noise == -1.0
    assert noised(CONFIGS["cascade"])["upsampler"].model.condition_noise is None
    with pytest.raises(df.DiffusionalError, match="handover from 1 to 5"):
        noised(replace(CONFIGS["handed over"], handover=6))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"factors": (2, 2)}, r"factors=\[2, 2\]"),
        ({"renoise": 0.0, "handover": 1}, "renoise=0 and handover=1"),
        ({"kind": "latent", "factors": ()}, "autoencoder, prior"),
        ({"data": DataConfig(downscale=(2,))}, "data.downscale"),
        ({"stages": {"a b": SMALL, "c": SMALL}}, "a b"),
        ({"data": DataConfig()}, "condition_dropout=0.2 was given for stage 'base', whose data have no condition"),
    ],
)
def test_configs_that_are_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(df.DiffusionalError, match=named):
        replace(CONFIGS["cascade"], **change)


def test_records_that_are_refused() -> None:
    record = CONFIGS["cascade"].to_dict()
    for change, named in (
        ({"sides": 1}, "sides"),
        ({"kind": "other"}, "kind.*other"),
        ({"handover": 1.5}, "handover"),
        ({"format": 2}, "format"),
        ({"stages": {"base": {"data": {}}}}, "base.*data"),
    ):
        with pytest.raises(df.DiffusionalError, match=named):
            CompositeConfig.from_dict(record | change)


@pytest.mark.parametrize("name", SYSTEMS)
def test_presets_are_read_back(name: str) -> None:
    config = SYSTEMS[name]()
    assert CompositeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "small.json", tmp_path / "run"
    file.write_text(json.dumps(CONFIGS["cascade"].to_dict()))
    main(["train", str(run), "--composite", str(file), "--json", str(tmp_path / "trained.json")])
    assert set(json.loads((tmp_path / "trained.json").read_text())["stages"]) == {"base", "upsampler"}
    main(["train", str(run), "--resume"])  # nothing is left to do
    main(["evaluate", str(run), "--visits", "2", "--json", str(tmp_path / "bound.json")])
    assert "upsampler.kl" in json.loads((tmp_path / "bound.json").read_text())["terms"]
    main(["sample", str(run), "--n", "3", "--condition", "7"])
    files = sorted(path.name for path in run.glob("samples*"))
    assert files == ["samples.base.png", "samples.npz", "samples.png", "samples.stages.npz"]
    low = np.load(run / "samples.stages.npz")["base"]
    assert low.shape == (3, 1, 4, 4)
    assert low.dtype.kind == "i"
    for wrong, said in (
        (["--composite", "imagen-big"], "imagen-big"),
        (["--composite", str(file), "--steps", "7"], "--data"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", str(tmp_path / "new"), *wrong])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


PROCESSES = """
import sys
from pathlib import Path
from rich.console import Console
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.composites import train_composite

train_composite(CompositeConfig.load(Path(sys.argv[1])), sys.argv[2], console=Console(quiet=True))
"""


def test_two_processes_train_every_stage_together(runs: dict[str, Path], tmp_path: Path) -> None:
    script, config = tmp_path / "script.py", tmp_path / "system.json"
    script.write_text(PROCESSES)
    config.write_text(json.dumps(CONFIGS["latent"].to_dict()))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(config), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment() | {"OMP_NUM_THREADS": "1"},
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    for name in ("autoencoder", "prior"):
        newest = max((tmp_path / "run" / "stages" / name / "checkpoints").iterdir())
        assert json.loads((newest / "manifest.json").read_text())["made"]["processes"] == 2, name
    # The autoencoder takes the steps of one process. The prior's data are its latents, to rounding.
    ours, theirs = df.load(tmp_path / "run").state_dict(), df.load(runs["latent"]).state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=1e-2)


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    """Run a command with --json -; its exit status, its record and its messages."""
    status, out, err = command(capsys, *arguments, "--json", "-")
    return status, json.loads(out) if status in (0, 3) else {}, err


def test_a_system_is_sampled_and_evaluated_with_guidance(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, given = runs["cascade"], ("--guidance", "1e7")  # after four steps, labels hardly matter
    status, record, err = told(
        capsys, "sample", run, "--condition", "3", *given, "--n", "2", "--out", tmp_path / "a.npz"
    )
    assert status == 0, err
    assert record["guidance"] == {"weight": 1e7}
    named = (*given, "--guidance-stages", "base")
    told(capsys, "sample", run, "--condition", "3", *named, "--n", "2", "--out", tmp_path / "b.npz")
    told(capsys, "sample", run, "--condition", "3", "--n", "2", "--out", tmp_path / "c.npz")
    drawn = [np.load(tmp_path / f"{name}.stages.npz")["base"] for name in "abc"]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    status, record, err = told(capsys, "evaluate", run, *named, "--visits", "2", "--no-audit", "--no-check")
    assert status == 0, err
    assert record["guidance"] == {"weight": 1e7, "stages": ["base"]}
    for wrong, said in (
        (("--guidance-stages", "base"), "without --guidance"),
        ((*given, "--guidance-stages", "middle"), "middle"),
    ):
        status, _, err = told(capsys, "sample", run, "--condition", "3", *wrong)
        assert status == 2
        assert said in err


def test_a_low_resolution_is_sampled_up(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = runs["cascade"], df.data.load("digits")
    down = df.composite.Downscale(data.space, 2)
    raw = down.low.decode(down(data.encode("test")[5:6]))
    status, record, err = told(capsys, "sample", run, "--upsample", "test:5", "--n", "3", "--out", tmp_path / "a.npz")
    assert status == 0, err
    assert np.load(tmp_path / "a.npz")["samples"].shape == (3, 1, 8, 8)
    assert (np.load(tmp_path / "a.stages.npz")["base"] == raw.expand(3, -1, -1, -1).numpy()).all()
    assert {Path(name).name for name in record["samples"]} >= {"a.png", "a.base.png"}
    np.save(tmp_path / "low.npy", raw[0, 0].numpy())
    told(capsys, "sample", run, "--upsample", tmp_path / "low.npy", "--n", "3", "--out", tmp_path / "b.npz")
    assert (np.load(tmp_path / "a.npz")["samples"] == np.load(tmp_path / "b.npz")["samples"]).all()
    np.save(tmp_path / "large.npy", np.zeros((8, 8)))
    np.save(tmp_path / "bright.npy", np.full((4, 4), 17))
    for word, said in (
        ("test:999", "0 to 446"),
        ("low", "test:5"),
        (tmp_path / "none.npy", "cannot be read"),
        (tmp_path / "large.npy", r"(1, 4, 4)"),
        (tmp_path / "bright.npy", "0 to 16"),
    ):
        status, _, err = told(capsys, "sample", run, "--upsample", word, "--out", tmp_path / "c.npz")
        assert status == 2, word
        assert said in err, word
    status, _, err = told(capsys, "sample", run, "--upsample", "test:5", "--condition", "3")
    assert status == 2
    assert "--condition" in err
    status, _, err = told(capsys, "sample", runs["unclip"], "--upsample", "test:5")
    assert status == 2
    assert "FrozenEncoder" in err


def test_a_system_with_a_frozen_encoder_interpolates_between_two_items(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--interpolate", "test:3", "test:8")
    status, record, err = told(capsys, "sample", runs["unclip"], *words, "--n", "4", "--out", tmp_path / "a.npz")
    assert status == 0, err
    assert record["given"] == "from test:3 to test:8"
    assert np.load(tmp_path / "a.npz")["samples"].shape == (4, 1, 8, 8)
    assert (tmp_path / "a.png").exists()
    status, _, err = told(capsys, "sample", runs["cascade"], *words)
    assert status == 2
    assert "Cascade" in err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--condition", "11"), "11"),
        (("--condition", "3", "--guidance", "2"), "condition dropout"),
        ((), "--condition"),
    ],
)
def test_conditions_of_a_system_that_are_refused(
    words: tuple[str, ...],
    match: str,
    runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unknown label, guidance of a prior that cannot predict without one, and no label."""
    status, _, err = told(capsys, "sample", runs["latent"], *words, "--n", "2", "--out", tmp_path / "a.npz")
    assert status == 2
    assert match in err
    assert list(tmp_path.iterdir()) == []


def test_a_condition_of_another_shape_is_refused_by_a_system(runs: dict[str, Path]) -> None:
    run = df.load_run(runs["latent"])
    x, c = run.encode("test")[:4], run.condition("test")
    assert isinstance(c, torch.Tensor)
    with pytest.raises(df.DiffusionalError, match=r"3 rows.*4"):
        run.model.elbo(x, torch.Generator().manual_seed(0), c[:3])
    with pytest.raises(df.DiffusionalError, match=r", 2\)"):
        run.model.elbo(x, torch.Generator().manual_seed(0), c[:4, None].expand(4, 2))
