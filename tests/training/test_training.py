"""The training loop: what a run leaves behind, that it learns, and that an interruption changes nothing at all."""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import diffusional as df
from diffusional import data as datasets
from diffusional.data.dataset import Dataset
from diffusional.errors import DiffusionalError
from diffusional.evaluation import evaluate
from diffusional.files import load_tensors
from diffusional.models.diffusion import DiffusionModel
from diffusional.training import batches, loop, metrics_logger
from diffusional.training.build import build_schedule
from diffusional.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from diffusional.training.run import load, read_run

QUIET = Console(quiet=True)
BITS = 16 * math.log(2)  # nats of one bit/dim of 4 × 4 items


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 items 1×4×4 of 5 levels: one of two patterns each, with a little noise, so that there is much to learn."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 5, (2, 1, 4, 4))
    items = patterns[rng.integers(0, 2, 40)] + (rng.random((40, 1, 4, 4)) < 0.1)
    path = tmp_path_factory.mktemp("data") / "tiny.npy"
    np.save(path, items.clip(0, 4).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def config(stored: Path) -> Config:
    return Config(
        data=DataConfig(name=str(stored), levels=5),
        model=ModelConfig(widths=(8, 8), blocks=1, dropout=0.1),
        optimizer=OptimizerConfig(lr=1e-2, warmup=5),
        steps=40,
        batch=8,
        validate_every=10,
        checkpoint_every=15,
    )


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, which tests only read."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    loop.train(config, folder, console=QUIET)
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def validations(run: Path) -> dict[int, float]:
    return {line["step"]: line["validation"] for line in metrics(run) if "validation" in line}


def checkpoint_of(run: Path) -> dict[str, Tensor]:
    return load_tensors(max((run / "checkpoints").iterdir()) / "state.safetensors")


def names(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert different == []


# What a run leaves behind.


def test_a_run_folder_holds_what_it_should(run: Path, config: Config) -> None:
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "data.json",
        "trained-on.safetensors",
        "model.safetensors",
        "metrics.jsonl",
        "timing.jsonl",
        "checkpoints",
    }
    record = read_run(run)
    assert record.config == config
    assert record.space == df.Discrete((1, 4, 4), 5)
    dataset = datasets.load(config.data.name, levels=5)
    assert record.fingerprints == {s: dataset.fingerprint(s) for s in ("train", "validation", "test")}
    assert json.loads((run / "data.json").read_text())["items"] == {"train": 32, "validation": 4, "test": 4}
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000030", "step-00000040"]
    assert {p.name for p in (run / "checkpoints" / "step-00000040").iterdir()} == {
        "state.safetensors",
        "best.safetensors",
        "progress.json",
        "manifest.json",
    }


def test_metrics_have_a_line_per_ten_steps_and_per_validation(run: Path) -> None:
    lines = metrics(run)
    assert [(line["step"], "loss" in line) for line in lines] == [
        (s, k) for s in (10, 20, 30, 40) for k in (True, False)
    ]
    for line in lines:
        assert set(line) == ({"step", "loss", "lr", "norm"} if "loss" in line else {"step", "validation"})
        assert all(math.isfinite(v) for v in line.values())
    timing = metrics_logger.read(run, metrics_logger.TIMING)
    assert [line["step"] for line in timing] == [line["step"] for line in lines]
    seconds = [line["seconds"] for line in timing]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_the_loss_in_the_metrics_is_the_mean_of_its_steps(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    forward = loop.Objective.forward

    def recorded(self: Any, x: Tensor, draws: Any, part: float | None, condition: Any = None) -> Any:
        loss, costs = forward(self, x, draws, part, condition)
        if part is not None:
            losses.append(float(loss.detach()) / BITS)
        return loss, costs

    monkeypatch.setattr(loop.Objective, "forward", recorded)
    loop.train(dataclasses.replace(config, steps=14), tmp_path / "run", console=QUIET)
    told = {line["step"]: line["loss"] for line in metrics(tmp_path / "run") if "loss" in line}
    assert told == pytest.approx({10: np.mean(losses[:10]), 14: np.mean(losses[10:])}, rel=1e-6)


def test_training_lowers_the_validation_bound(run: Path, config: Config) -> None:
    bounds = validations(run)
    assert bounds[40] < bounds[10] - 0.1
    # Well below what knowing nothing costs.
    assert bounds[40] < math.log2(5) - 0.3


def test_load_gives_the_averaged_weights_of_the_best_validation(run: Path, config: Config) -> None:
    model = load(run)
    assert not model.training
    dataset = datasets.load(config.data.name, levels=5)
    assert loop.validate(model, dataset, config.seed) / BITS == pytest.approx(min(validations(run).values()), rel=1e-9)


def test_the_best_weights_stay_when_later_ones_are_worse(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = iter([3.0, 1.0, 2.0, 5.0])
    averages = []

    def validate(model: DiffusionModel, *_: Any) -> float:
        averages.append({name: t.clone() for name, t in model.state_dict().items()})
        return next(made_up)

    monkeypatch.setattr(loop, "validate", validate)
    model = loop.train(config, tmp_path / "run", console=QUIET)
    identical(dict(model.state_dict()), averages[1])
    progress = json.loads((tmp_path / "run/checkpoints/step-00000040/progress.json").read_text())
    assert (progress["best"], progress["best_step"], progress["stale"]) == (1.0, 20, 2)


def test_validation_is_an_estimate_of_the_bound(run: Path, config: Config) -> None:
    model = load(run)
    dataset = datasets.load(config.data.name, levels=5)
    truth = evaluate(model, dataset.encode("validation"), draws=2, cells=200).nelbo
    values = torch.tensor([loop.validate(model, dataset, seed) for seed in range(60)], dtype=torch.float64)
    assert float(values.mean()) == pytest.approx(truth.value, abs=4 * (float(values.std()) / 60**0.5 + truth.error))
    assert len(set(values.tolist())) == 60


def test_validation_leaves_the_mode_and_the_random_state(run: Path, config: Config) -> None:
    dataset = datasets.load(config.data.name, levels=5)
    model = load(run)
    for mode in (True, False):
        model.train(mode)
        before = torch.get_rng_state()
        assert loop.validate(model, dataset, 0) == loop.validate(model, dataset, 0)
        assert torch.equal(before, torch.get_rng_state())
        assert model.training is mode


# The step.


def watched(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Trains, and keeps each step's gradient norm and learning rates, and the weights after it."""
    seen: dict[str, list[Any]] = {"norm": [], "lr": [], "weights": [], "decay": []}
    models: list[DiffusionModel] = []
    build = loop.build_model

    def kept(*args: Any) -> DiffusionModel:
        models.append(build(*args))
        return models[-1]

    def before(optimizer: Any, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen["norm"].append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
        seen["lr"].append({group["lr"] for group in optimizer.param_groups})

    def after(*_: Any) -> None:
        seen["weights"].append({name: p.detach().double() for name, p in models[0].named_parameters()})

    monkeypatch.setattr(loop, "build_model", kept)
    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        loop.train(config, folder, console=QUIET)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def test_steps_follow_their_formulas(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(
        config, steps=12, optimizer=OptimizerConfig(lr=1e-2, warmup=4, flat=0.5, clip=0.3, ema=0.75)
    )
    seen = watched(short, tmp_path / "run", monkeypatch)
    # Warm-up from 0 in 4 steps, a plateau to half of 12, a cosine to 0.
    wanted = [0.25, 0.5, 0.75, 1, 1, 1] + [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert [rate for rates in seen["lr"] for rate in rates] == pytest.approx([1e-2 * w for w in wanted])
    # Clipped to 0.3, which the first gradients exceed by far.
    assert max(seen["norm"]) == pytest.approx(0.3, rel=1e-4)
    assert min(seen["norm"]) > 0.05
    # The average after step 1 is the weights; then decay min(0.75, (1 + i)/(10 + i)).
    average = seen["weights"][0]
    for i, weights in enumerate(seen["weights"][1:], start=1):
        decay = min(0.75, (1 + i) / (10 + i))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    saved = checkpoint_of(tmp_path / "run")
    for name, wanted_average in average.items():
        torch.testing.assert_close(saved[f"average.{name}"].double(), wanted_average, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(saved[f"model.{name}"].double(), seen["weights"][-1][name], rtol=0, atol=0)


def test_the_norm_in_the_metrics_is_the_one_before_clipping(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(config, steps=1, optimizer=OptimizerConfig(clip=1e-3))
    seen = watched(short, tmp_path / "run", monkeypatch)
    assert seen["norm"] == pytest.approx([1e-3], rel=1e-3)
    assert metrics(tmp_path / "run")[0]["norm"] > 0.01


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (29, 1.0),
        (30, 1.0),
        (65, 0.5),
        (99, 0.5 * (1 + math.cos(math.pi * 69 / 70))),
    ],
)
def test_learning_rate(step: int, share: float) -> None:
    assert loop.learning_rate(OptimizerConfig(lr=3.0, warmup=10, flat=0.3), step, 100) == pytest.approx(3.0 * share)


def test_learning_rate_without_warm_up_or_plateau() -> None:
    rates = [loop.learning_rate(OptimizerConfig(lr=1.0, warmup=0, flat=0.0), s, 4) for s in range(4)]
    assert rates == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert loop.learning_rate(OptimizerConfig(lr=1.0, warmup=0, flat=1.0), 99, 100) == 1.0


@pytest.mark.parametrize(("batch", "processes"), [(7, 1), (32, 1), (50, 1), (15, 3)])
def test_each_epoch_has_every_item_exactly_once(batch: int, processes: int) -> None:
    items = torch.arange(32).reshape(-1, 1)
    dataset = Dataset("numbers", df.Discrete((1,), 32), items, items, items)
    size = batch // processes
    feeds = [batches.BatchLoader(dataset, 4, batch, slice(i * size, (i + 1) * size)) for i in range(processes)]
    drawn = [one(step) for step in range(32) for one in feeds]
    stream = torch.cat([dataset.space.decode(x).flatten() for x, _ in drawn])
    assert torch.equal(stream, torch.cat([rows for _, rows in drawn]))
    epochs = stream.reshape(-1, 32)
    assert torch.equal(epochs.sort(1).values, torch.arange(32).expand_as(epochs))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)
    other, _ = batches.BatchLoader(dataset, 5, batch, slice(0, batch))(0)
    assert not torch.equal(dataset.space.decode(other).flatten(), stream[:batch])


# Interruption.


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if killed: nothing is saved on the way out."""
    call = batches.BatchLoader.__call__

    def interrupting(self: batches.BatchLoader, at: int) -> Any:
        if at == step:
            raise KeyboardInterrupt
        return call(self, at)

    monkeypatch.setattr(batches.BatchLoader, "__call__", interrupting)


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (14, {"sampler": "adaptive"}),  # two steps after a checkpoint, which lies between two lines of the metrics
        (6, {"sampler": "stratified"}),  # right after a checkpoint
        (13, {"sampler": "adaptive", "data_continuous": True}),
        (3, {"sampler": "uniform"}),  # before there is a checkpoint
        (14, {"sampler": "second-moment", "improved": True}),
        (14, {"schedule": ScheduleConfig(kind="learned", ends="learned")}),
        (14, {"schedule": ScheduleConfig(kind="learned_betas", steps=9)}),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    step: int, changes: dict[str, Any], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes.pop("data_continuous", False):
        np.save(tmp_path / "real.npy", np.random.default_rng(0).normal(size=(40, 3)))
        changes |= {"data": DataConfig(name=str(tmp_path / "real.npy")), "model": ModelConfig(hidden=16, dropout=0.2)}
    if changes.pop("improved", False):
        config = learned_variance(config, objective="hybrid", schedule=ScheduleConfig(kind="cosine", steps=4))
    config = dataclasses.replace(config, steps=16, checkpoint_every=6, validate_every=5, **changes)
    # An adaptive proposal that has learned by then is a part of the state too.
    build_sampler, made = loop.build_sampler, []

    def eager(config: Config) -> Any:
        sampler = build_sampler(config)
        if config.sampler == "adaptive":
            sampler.__init__(cells=2, warmup=16)
        if config.sampler == "second-moment":
            sampler.__init__(history=4)
        made.append(sampler)
        return sampler

    monkeypatch.setattr(loop, "build_sampler", eager)
    loop.train(config, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patched:
        interrupted_at(step, patched)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, tmp_path / "broken", console=QUIET)
    torch.rand(5)  # the random state of the process is not the run's
    loop.train(config, tmp_path / "broken", resume=True, console=QUIET)

    identical(checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "broken"))
    identical(*(load_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "broken")))
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()
    if config.sampler == "second-moment":
        assert all(int(sampler.seen.min()) > 4 for sampler in made)  # warm, so that its costs mattered


def test_the_same_seed_gives_the_same_run_and_another_another(run: Path, config: Config, tmp_path: Path) -> None:
    torch.rand(3)
    loop.train(config, tmp_path / "same", console=QUIET)
    identical(checkpoint_of(run), checkpoint_of(tmp_path / "same"))
    loop.train(dataclasses.replace(config, seed=1, steps=10), tmp_path / "other", console=QUIET)
    assert metrics(tmp_path / "other")[0]["loss"] != metrics(run)[0]["loss"]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_resuming_a_finished_run_changes_nothing(run: Path, config: Config) -> None:
    before = everything(run)
    loop.train(config, run, resume=True, console=QUIET)
    assert everything(run) == before


@pytest.mark.parametrize("changes", [{"max_seconds": 1e-9}, {"patience": 1}])
def test_resuming_a_run_that_stopped_early_changes_nothing(
    changes: dict[str, Any], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validate", lambda *_: 5.0)
    config = dataclasses.replace(config, validate_every=2, **changes)
    loop.train(config, tmp_path / "run", console=QUIET)
    before = everything(tmp_path / "run")
    loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    assert everything(tmp_path / "run") == before


def test_a_run_that_ran_out_of_time_goes_on_with_more(
    run: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, steps=6, validate_every=3)
    loop.train(config, tmp_path / "whole", console=QUIET)
    loop.train(dataclasses.replace(config, max_seconds=0.0), tmp_path / "run", console=QUIET)
    assert metrics(tmp_path / "run")[-1]["step"] == 1
    longer = dataclasses.replace(config, max_seconds=1e6, patience=100)
    loop.train(longer, tmp_path / "run", resume=True, console=QUIET)
    assert read_run(tmp_path / "run").config == longer
    identical(checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "run"))


def test_there_must_be_a_run_to_resume(config: Config, tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match="has no run to resume; leave out --resume to begin one there"):
        loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_line_cut_short_is_said_again(run: Path, config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, steps=20)
    loop.train(config, tmp_path / "run", console=QUIET)
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-9])
    loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    assert path.read_text() == "".join(line + "\n" for line in whole.splitlines()[:-1])


def test_a_used_folder_is_refused_without_resume(run: Path, config: Config) -> None:
    before = everything(run)
    with pytest.raises(
        DiffusionalError, match="already holds a run; continue it with --resume, or name another folder"
    ):
        loop.train(config, run, console=QUIET)
    assert everything(run) == before


def test_a_folder_of_something_else_is_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DiffusionalError, match="is not empty and has no run"):
        loop.train(config, tmp_path, console=QUIET)
    with pytest.raises(DiffusionalError, match="is a file; give a folder"):
        loop.train(config, tmp_path / "thesis.tex", console=QUIET)
    assert everything(tmp_path) == {"thesis.tex": b"years of work"}


def test_another_config_is_refused_and_the_difference_shown(run: Path, config: Config) -> None:
    before = everything(run)
    other = dataclasses.replace(config, batch=9, optimizer=dataclasses.replace(config.optimizer, lr=0.5))
    with pytest.raises(DiffusionalError, match=r"optimizer\.lr: 0\.01 → 0\.5; batch: 8 → 9$"):
        loop.train(other, run, resume=True, console=QUIET)
    assert everything(run) == before


def test_other_data_are_refused(run: Path, config: Config) -> None:
    before = everything(run)
    data = datasets.load(config.data.name, levels=5)
    changed = dataclasses.replace(data, validation=data.validation.flip(3))
    with pytest.raises(DiffusionalError, match=r"the data have changed since .* was begun: validation differ"):
        loop.train(config, run, changed, resume=True, console=QUIET)
    assert everything(run) == before


def test_a_config_that_makes_no_model_leaves_no_folder(config: Config, tmp_path: Path) -> None:
    wrong = dataclasses.replace(config, model=ModelConfig(predicts="noise", likelihood="network-levels"))
    with pytest.raises(
        DiffusionalError, match=r"predicts=\"levels\" for model.likelihood=\"network-levels\", got \"noise\""
    ):
        loop.train(wrong, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


# Stopping.


def test_a_time_limit_stops_early_with_a_bound_and_a_checkpoint(config: Config, tmp_path: Path) -> None:
    loop.train(dataclasses.replace(config, max_seconds=1e-9), tmp_path / "run", console=QUIET)
    assert [(line["step"], "loss" in line) for line in metrics(tmp_path / "run")] == [(1, True), (1, False)]
    assert names(tmp_path / "run") == ["step-00000001"]


def test_a_time_limit_that_is_not_reached_changes_nothing(run: Path, config: Config, tmp_path: Path) -> None:
    loop.train(dataclasses.replace(config, max_seconds=1e6), tmp_path / "run", console=QUIET)
    identical(checkpoint_of(run), checkpoint_of(tmp_path / "run"))


@pytest.mark.parametrize(("patience", "stopped"), [(1, 9), (2, 18), (0, 18)])
def test_patience(patience: int, stopped: int, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = iter([3.0, 2.0, 2.5, 1.0, 1.5, 1.5])
    monkeypatch.setattr(loop, "validate", lambda *_: next(made_up))
    config = dataclasses.replace(
        config, patience=patience, steps=24 if patience else 18, validate_every=3, checkpoint_every=2
    )
    loop.train(config, tmp_path / "run", console=QUIET)
    assert metrics(tmp_path / "run")[-1]["step"] == stopped
    assert names(tmp_path / "run")[-1] == f"step-{stopped:08d}"


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_ends_the_run_and_the_checkpoint_stays(
    what: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = loop.Objective.forward, []

    def poisoned(self: Any, x: Tensor, draws: Any, part: float | None, condition: Any = None) -> Any:
        loss, costs = forward(self, x, draws, part, condition)
        calls.extend([1] if part is not None else [])
        if len(calls) < 9:
            return loss, costs
        if what == "loss":
            return loss * math.nan, costs
        return loss + torch.sqrt(sum(p.sum() for p in self.parameters()) * 0), costs  # type: ignore[arg-type]

    config = dataclasses.replace(config, steps=12, checkpoint_every=6, validate_every=6)
    with monkeypatch.context() as patched:
        patched.setattr(loop.Objective, "forward", poisoned)
        expected = r"step 9: the loss is nan" if what == "loss" else r"step 9: the loss is \S+ and .* norm (nan|inf)"
        with pytest.raises(DiffusionalError, match=expected):
            loop.train(config, tmp_path / "run", console=QUIET)
    assert names(tmp_path / "run") == ["step-00000006"]
    assert all(bool(t.isfinite().all()) for t in checkpoint_of(tmp_path / "run").values() if t.is_floating_point())
    assert not load(tmp_path / "run").training
    loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    assert metrics(tmp_path / "run")[-1]["step"] == 12


# Kinds of runs.


def learned_variance(config: Config, kind: str = "cosine", **changes: Any) -> Config:
    """Improved DDPM's: cosine schedule, noise, discretised Gaussian whose variance is learned as well."""
    model = dataclasses.replace(config.model, predicts="noise", likelihood="discretized-gaussian", variance="learned")
    schedule = ScheduleConfig(kind=kind, steps=12)  # type: ignore[arg-type]
    return dataclasses.replace(config, **({"schedule": schedule, "model": model} | changes))


KINDS: dict[str, Callable[[Config], Config]] = {
    "L_hybrid, by the second moment": lambda c: learned_variance(c, objective="hybrid", sampler="second-moment"),
    "L_hybrid, adaptive": lambda c: learned_variance(c, objective="hybrid"),
    "L_vlb of a learned variance": lambda c: learned_variance(c, sampler="second-moment"),
    "learned variance beside levels": lambda c: learned_variance(
        c, model=dataclasses.replace(c.model, variance="learned")
    ),
    "learned schedule": lambda c: dataclasses.replace(c, schedule=ScheduleConfig(kind="learned")),
    "learned schedule with its ends, noise": lambda c: dataclasses.replace(
        c,
        schedule=ScheduleConfig(kind="learned", ends="learned"),
        model=dataclasses.replace(c.model, predicts="noise"),
    ),
    "learned schedule, T = 12": lambda c: dataclasses.replace(c, schedule=ScheduleConfig(kind="learned", steps=12)),
    "learned betas and variance": lambda c: learned_variance(c, kind="learned_betas"),
    "L_simple": lambda c: dataclasses.replace(c, objective="simple"),
    "uniform levels": lambda c: dataclasses.replace(c, sampler="uniform"),
    "stratified levels": lambda c: dataclasses.replace(c, sampler="stratified"),
    "linear, T = 20": lambda c: dataclasses.replace(c, schedule=ScheduleConfig(kind="linear", steps=20, beta_end=0.5)),
    "cosine, T = 20": lambda c: dataclasses.replace(c, schedule=ScheduleConfig(kind="cosine", steps=20)),
    "log-SNR-linear, T = 20": lambda c: dataclasses.replace(c, schedule=ScheduleConfig(steps=20)),
    "transition": lambda c: dataclasses.replace(
        c, schedule=ScheduleConfig(steps=20), model=dataclasses.replace(c.model, variance="transition")
    ),
    "mlp": lambda c: dataclasses.replace(c, model=ModelConfig(network="mlp", hidden=16, blocks=1)),
    "categorical head": lambda c: dataclasses.replace(c, model=dataclasses.replace(c.model, head="categorical")),
    "logistic head": lambda c: dataclasses.replace(c, model=dataclasses.replace(c.model, head="logistic")),
    "noise, level posterior": lambda c: dataclasses.replace(c, model=dataclasses.replace(c.model, predicts="noise")),
    "v, discretised Gaussian": lambda c: dataclasses.replace(
        c, model=dataclasses.replace(c.model, predicts="v", likelihood="discretized-gaussian")
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_runs(kind: str, config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(KINDS[kind](config), steps=3)
    model = loop.train(config, tmp_path / "run", console=QUIET)
    read = read_run(tmp_path / "run")
    assert read.config == config
    assert model.steps == config.schedule.steps
    x = datasets.load(config.data.name, levels=5).encode("test")
    result = evaluate(model, x, cells=20)
    (line,) = [line for line in metrics(tmp_path / "run") if "validation" in line]
    assert 0 < result.nelbo.value / BITS < 1000
    assert 0 < line["validation"] < 1000
    if config.objective == "simple":
        # An untrained network's is about one for each dimension; it is no bound, and not called a loss in bits.
        assert 0.05 < metrics(tmp_path / "run")[0]["simple_loss"] < 20
        assert not any("loss" in line for line in metrics(tmp_path / "run"))
    if config.objective == "hybrid":
        assert 0.05 < metrics(tmp_path / "run")[0]["hybrid_loss"] < 20
        assert not any("loss" in line or "simple_loss" in line for line in metrics(tmp_path / "run"))
    # What a schedule learns is learned, kept, and loaded again.
    begun, learned = (
        dict(build_schedule(config.schedule).named_parameters()),
        dict(model.process.schedule.named_parameters()),
    )
    assert begun.keys() == learned.keys()
    assert bool(learned) == config.schedule.kind.startswith("learned")
    assert not any(torch.equal(begun[name], learned[name]) for name in begun)


def test_l_simple_of_the_metrics_is_simple_loss(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(
        config, steps=1, objective="simple", model=dataclasses.replace(config.model, dropout=0.0)
    )
    loop.train(config, tmp_path / "run", console=QUIET)
    dataset = datasets.load(config.data.name, levels=5)
    torch.manual_seed(config.seed)
    model = loop.build_model(config, dataset.space)
    assert isinstance(model, DiffusionModel)
    x, _ = batches.BatchLoader(dataset, config.seed, config.batch, slice(0, config.batch))(0)
    generator = torch.Generator().manual_seed(loop.seed_of(config.seed, "draws", 0))
    assert metrics(tmp_path / "run")[0]["simple_loss"] == pytest.approx(
        float(model.simple_loss(x, generator)), rel=1e-5
    )


def test_bernoulli_on_bits(tmp_path: Path, config: Config) -> None:
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).random((40, 6)) < 0.2)
    chosen = ModelConfig(hidden=16, blocks=1, predicts="data", likelihood="bernoulli")
    config = dataclasses.replace(config, data=DataConfig(name=str(tmp_path / "bits.npy")), model=chosen, steps=5)
    model = loop.train(config, tmp_path / "run", console=QUIET)
    assert model.space == df.Discrete((6,), 2)
    assert set(model.sample(8, torch.Generator().manual_seed(0), steps=10).unique().tolist()) <= {-1.0, 1.0}


def test_real_valued_data_train_in_their_own_units(tmp_path: Path, config: Config) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 3))
    bounds = {}
    for unit in (1.0, 1000.0):
        path = tmp_path / f"real-{unit:g}.npy"
        np.save(path, values * unit + 5)
        chosen = dataclasses.replace(
            config, data=DataConfig(name=str(path)), model=ModelConfig(hidden=16, blocks=1), steps=10
        )
        model = loop.train(chosen, tmp_path / f"run-{unit:g}", console=QUIET)
        assert model.space.levels is None
        bounds[unit] = validations(tmp_path / f"run-{unit:g}")[10]
    # The same numbers in smaller units: a density per unit that is lower by 1000 per dimension, log2 1000 bits.
    assert bounds[1000.0] - bounds[1.0] == pytest.approx(math.log2(1000), abs=1e-3)


def test_a_dataset_in_hand_is_used_in_place_of_the_named_one(tmp_path: Path, config: Config) -> None:
    items = torch.randint(0, 3, (20, 4), generator=torch.Generator().manual_seed(0))
    dataset = Dataset("mine", df.Discrete((4,), 3), items[:12], items[12:16], items[16:])
    nameless = dataclasses.replace(config, data=DataConfig(name="nowhere.npy"), model=ModelConfig(hidden=16), steps=2)
    model = loop.train(nameless, tmp_path / "run", dataset, console=QUIET)
    assert model.space == dataset.space
    assert json.loads((tmp_path / "run" / "data.json").read_text())["name"] == "mine"


def test_precisions_can_follow_one_another_in_a_process(tmp_path: Path, config: Config) -> None:
    for name in ("no", "bf16", "no"):
        short = dataclasses.replace(config, steps=2, precision=name)
        loop.train(short, tmp_path / f"{len(list(tmp_path.iterdir()))}", console=QUIET)
    bounds = [validations(tmp_path / str(i))[2] for i in range(3)]
    assert bounds[0] == bounds[2]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.05)


def test_real_values_that_are_levels_are_reported_once(tmp_path: Path) -> None:
    """When a run begins, and not when it continues."""
    rng = np.random.default_rng(0)
    table = np.concatenate([rng.normal(size=(300, 2)), rng.integers(18, 90, (300, 1))], 1)
    files = {"mixed": table, "real": table[:, :2]}
    config = Config(
        model=ModelConfig(network="mlp", hidden=8, blocks=1),
        data=DataConfig(name="", split=(0.6, 0.2, 0.2)),
        steps=2,
        batch=8,
        validate_every=2,
        checkpoint_every=2,
    )
    for name, values in files.items():
        np.save(tmp_path / f"{name}.npy", values)
    mixed, real = (
        dataclasses.replace(config, data=dataclasses.replace(config.data, name=str(tmp_path / f"{name}.npy")))
        for name in files
    )
    with pytest.warns(UserWarning, match="position 2 are whole numbers: these are data of .* levels"):
        loop.train(mixed, tmp_path / "mixed", console=QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loop.train(mixed, tmp_path / "mixed", resume=True, console=QUIET)
        loop.train(real, tmp_path / "real", console=QUIET)
