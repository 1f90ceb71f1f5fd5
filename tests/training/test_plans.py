"""The plan of a run: learned once from its training data, checked when it is used, and shared by Python and the command line."""

import json
import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.data.dataset import Dataset
from diffusional.errors import DiffusionalError
from diffusional.evaluation.plan import Met
from diffusional.training.config import Config, DataConfig, ModelConfig, ScheduleConfig

QUIET = Console(quiet=True)


def config(data: Path, **changes: Any) -> Config:
    small = ModelConfig(network="mlp", hidden=8, blocks=1)
    return Config(
        data=DataConfig(str(data), levels=3),
        model=small,
        schedule=ScheduleConfig(steps=12),
        steps=3,
        batch=8,
        **changes,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npy"
    rng = np.random.default_rng(0)
    np.save(path, (2 * (rng.random((60, 4)) < 0.8)).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def trained(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs without plans: a, b (another seed) and vae."""
    folder = tmp_path_factory.mktemp("runs")
    df.train(config(stored), folder / "a", console=QUIET)
    df.train(config(stored, seed=1), folder / "b", console=QUIET)
    vae = replace(config(stored), model=ModelConfig(kind="vae", hidden=8, blocks=1), schedule=ScheduleConfig())
    df.train(vae, folder / "vae", console=QUIET)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def pilots(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models of the pilots so far."""
    flown: list[Any] = []
    fit = df.Plan.fit.__func__  # type: ignore[attr-defined]

    def counted(cls: type, model: Any, *args: Any, **options: Any) -> df.Plan:
        flown.append(model)
        return fit(cls, model, *args, **options)

    monkeypatch.setattr(df.Plan, "fit", classmethod(counted))
    return flown


def silently(run: df.Run, **options: Any) -> df.Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = run.plan(**options)
    assert plan is not None
    return plan


def alike(one: df.Plan | None, other: df.Plan | None) -> bool:
    """Whether two pilots with the same seed learned the same plan, to rounding."""
    assert one is not None
    assert other is not None
    return torch.allclose(one.mass, other.mass, rtol=1e-6) and one.edges.equal(other.edges)


def test_one_pilot_serves_python_and_the_command_line(
    runs: Path, pilots: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = df.load_run(runs / "a")
    first = run.evaluate(target_error=0.5)
    second = run.evaluate(run.encode("test"), visits=4)
    assert len(pilots) == 1
    assert first.provenance["plan_sha256"] == second.provenance["plan_sha256"]
    status, out, err = command(capsys, "evaluate", runs / "a", "--error", 0.5, "--json", runs / "out.json", "--seed", 3)
    assert (status, err, "learned" in out) == (0, "", False)
    record = json.loads((runs / "out.json").read_text())
    assert record["provenance"]["plan_sha256"] == first.provenance["plan_sha256"]
    assert len(pilots) == 1
    assert df.load_run(runs / "vae").plan() is None
    assert df.load_run(runs / "vae").evaluate(visits=2).nelbo.n == 6


def test_the_run_is_what_was_trained(runs: Path, stored: Path) -> None:
    run = df.load_run(runs / "a")
    assert run.config == config(stored)
    assert run.space == run.model.space == df.Discrete((4,), 3)
    assert torch.equal(run.encode("test"), run.data().encode("test"))
    assert len(run.encode("all")) == 60
    assert run.metrics()[-1]["step"] == 3
    assert repr(run) == f"Run({str(runs / 'a')!r})"
    with pytest.raises(DiffusionalError, match="does not exist"):
        df.load_run(runs)


def test_the_default_target_is_that_of_the_command_line(runs: Path) -> None:
    result = df.load_run(runs / "a").evaluate(unit="nats", max_evaluations=100, audit=False)
    assert result.reached == (result.nelbo.to("bits/dim", 4).error <= 0.01)


@pytest.mark.parametrize(
    "outdate",
    [
        lambda run: torch.nn.init.constant_(next(run.model.parameters()), 0.5),
        lambda run: setattr(run.model, "variance", "transition"),
    ],
    ids=["weights", "variance"],
)
def test_an_outdated_plan_is_replaced(outdate: Any, runs: Path, pilots: list[Any]) -> None:
    run = df.load_run(runs / "a")
    before = silently(run)
    outdate(run)
    after = silently(run)
    assert len(pilots) == 2
    assert not alike(after, before)
    assert silently(run).sha256() == after.sha256()
    assert alike(silently(df.load_run(runs / "a")), before)
    assert len(pilots) == 3


def test_every_number_of_latents_has_its_own_plan(runs: Path, pilots: list[Any]) -> None:
    run = df.load_run(runs / "a")
    models = [run.model, run.model.regrid(6), run.model.regrid(None)]  # type: ignore[operator]
    plans = [silently(run, model=model) for model in models]
    assert [silently(run, model=model).sha256() for model in models] == [plan.sha256() for plan in plans]
    assert len(pilots) == 3
    assert {path.name for path in run.path.glob("plan*.json")} == {"plan.json", "plan-6.json", "plan-continuous.json"}
    with pytest.warns(UserWarning, match="T = 12"):
        assert run.evaluate(steps=6, visits=2).provenance["plan_sha256"] == plans[1].sha256()


@pytest.mark.parametrize("other", ["data", "space", "T"])
def test_a_plan_of_another_run_is_left_alone(other: str, runs: Path, tmp_path: Path, pilots: list[Any]) -> None:
    rng = np.random.default_rng(1)
    np.save(tmp_path / "y.npy", (2 * (rng.random((60, 5 if other == "space" else 4)) < 0.8)).astype(np.uint8))
    steps = 13 if other == "T" else 12
    df.train(replace(config(tmp_path / "y.npy"), schedule=ScheduleConfig(steps=steps)), tmp_path / "c", console=QUIET)
    silently(df.load_run(tmp_path / "c"))
    for suffix in (".json", ".safetensors"):
        shutil.copyfile(tmp_path / f"c/plan{suffix}", runs / f"a/plan{suffix}")
    before = (runs / "a/plan.json").read_bytes()
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"plan\.json is the plan of another run"):
            plan = df.load_run(runs / "a").plan()
        assert plan is not None
        assert plan.provenance["weights_sha256"] != json.loads(before)["provenance"]["weights_sha256"]
    assert (runs / "a/plan.json").read_bytes() == before
    (runs / "a/plan.json").unlink()
    silently(df.load_run(runs / "a"))
    assert (runs / "a/plan.json").exists()


@pytest.mark.parametrize("name", ["plan.json", "plan.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"provenance": 3}', b"[1", None])
def test_a_broken_plan_is_learned_again(name: str, content: bytes | None, runs: Path, pilots: list[Any]) -> None:
    run = df.load_run(runs / "a")
    plan = silently(run)
    (runs / "a" / name).unlink()
    if content is not None:
        (runs / "a" / name).write_bytes(content)
    if content is None and name == "plan.json":
        again = silently(run)
    else:
        with pytest.warns(UserWarning, match="The plan is learned again"):
            again = run.plan()
    assert alike(again, plan)
    assert again is not None
    assert again.sha256() == silently(run).sha256()
    assert len(pilots) == 2


def test_a_plan_of_an_earlier_version_is_used(runs: Path, pilots: list[Any]) -> None:
    run = df.load_run(runs / "a")
    plan = silently(run)
    added = ("train_sha256", "identity_sha256")
    old = replace(plan, provenance={k: v for k, v in plan.provenance.items() if k not in added})
    assert len(old.provenance) == len(plan.provenance) - 2
    old.save(runs / "a/plan.json")
    assert silently(run).sha256() == plan.sha256()
    assert len(pilots) == 1


def test_a_folder_that_cannot_be_written(runs: Path, pilots: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: df.Plan, path: Path) -> None:
        raise DiffusionalError(f"{path} could not be written (Read-only file system)")

    run = df.load_run(runs / "a")
    with monkeypatch.context() as patched:
        patched.setattr(df.Plan, "save", fails)
        with pytest.warns(UserWarning, match="used, but not kept"):
            plan = run.plan()
    assert alike(silently(run), plan)
    assert len(pilots) == 2


def test_several_writers(runs: Path) -> None:
    """Whatever files they leave, the next one has a plan, and no writer fails."""
    faults: list[BaseException] = []

    def learn(seed: int) -> None:
        try:
            assert df.load_run(runs / "a").plan(seed=seed) is not None
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=learn, args=(seed,)) for seed in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        plan = df.load_run(runs / "a").plan()
    assert plan is not None
    assert plan.provenance["seed"] in (0, 1)
    assert sorted(path.name for path in (runs / "a").iterdir() if "plan" in path.name) == [
        "plan.json",
        "plan.safetensors",
    ]


def test_training_data_that_are_gone(runs: Path, stored: Path, pilots: list[Any]) -> None:
    changed = json.loads((runs / "a/data.json").read_text())
    changed["sha256"]["train"] = "0" * 64
    (runs / "a/data.json").write_text(json.dumps(changed))
    run = df.load_run(runs / "a")
    with pytest.warns(UserWarning, match="no plan can be learned from the training data"):
        assert run.plan() is None
    with pytest.warns(UserWarning, match="no plan can be learned"):
        assert run.evaluate(visits=2).provenance["evaluations"]["pilot"] == 500


def test_data_made_in_python_are_given(runs: Path, tmp_path: Path, stored: Path) -> None:
    loaded = df.data.load(stored, levels=3)
    mine = Dataset("mine", loaded.space, loaded.tensor("train")[:40], loaded.validation, loaded.test)
    df.train(config(stored), tmp_path / "mine", mine, console=QUIET)
    with pytest.warns(UserWarning, match="no plan can be learned"):
        assert df.load_run(tmp_path / "mine").plan() is None
    run = df.load_run(tmp_path / "mine", mine)
    assert silently(run).provenance["train_sha256"] == mine.fingerprint("train")
    assert len(run.encode("train")) == 40
    with pytest.raises(DiffusionalError, match=r"train of x\.npy differ"):
        df.load_run(tmp_path / "mine", loaded).data()


# Two runs.


def test_two_runs_share_visits_and_keep_their_plans(
    runs: Path, pilots: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = df.load_run(runs / "a"), df.load_run(runs / "b")
    x = a.encode("test")
    by_hand = df.compare(a.model, b.model, x, 0.05, reference=a.encode("train"))
    assert len(pilots) == 2
    both = a.compare(b, target_error=0.05)
    assert len(pilots) == 4
    assert both.difference.value == pytest.approx(by_hand.difference.value, rel=1e-4)
    assert both.difference.error == pytest.approx(by_hand.difference.error, rel=1e-4)
    assert by_hand.difference.network_evaluations - both.difference.network_evaluations == 2 * 3000
    status, out, err = command(capsys, "evaluate", runs / "a", runs / "b", "--error", 0.05, "--json", runs / "out.json")
    assert (status, err, "learned" in out, len(pilots)) == (0, "", False, 4)
    assert json.loads((runs / "out.json").read_text())["difference_nats"]["value"] == both.difference.value
    # b's own plan is another one, and stays beside the paired one.
    own = silently(b)
    pair = a.paired_plans(b)
    assert pair is not None
    assert pair[1] is not None
    assert pair[1].mass.equal(silently(a).mass)
    assert own.sha256() == silently(b).sha256() != pair[1].sha256()
    assert len(pilots) == 5


def test_the_paired_plan_is_learned_again_for_another_partner(runs: Path, pilots: list[Any]) -> None:
    a, b = df.load_run(runs / "a"), df.load_run(runs / "b")
    a.paired_plans(b)
    torch.nn.init.constant_(next(a.model.parameters()), 0.5)
    pair = a.paired_plans(b)
    assert pair is not None
    assert pair[1] is not None
    assert len(pilots) == 4
    assert pair[1].provenance["paired_with"] == silently(a).sha256()
    assert pair[1].mass.equal(silently(a).mass)


def test_a_plan_without_visits_is_learned_again_for_a_comparison(runs: Path, pilots: list[Any]) -> None:
    a, b = df.load_run(runs / "a"), df.load_run(runs / "b")
    replace(silently(a), met=Met.nothing()).save(runs / "a/plan.json")
    assert len(silently(a).met.left) == 0
    pair = a.paired_plans(b)
    assert pair is not None
    assert pair[0] is not None
    assert pair[1] is not None
    assert pair[0].met.level.equal(pair[1].met.level)
    assert len(pilots) == 3


def test_a_vae_has_no_plan_beside_a_run_that_has(runs: Path, pilots: list[Any]) -> None:
    a, vae = df.load_run(runs / "a"), df.load_run(runs / "vae")
    assert vae.paired_plans(vae) is None
    for one, other in ((a, vae), (vae, a)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = one.compare(other, target_error=2.0)
        diffusion = found.a if one is a else found.b
        assert diffusion.provenance["plan_sha256"] == silently(a).sha256()
    assert len(pilots) == 1
    with pytest.raises(DiffusionalError, match="plans of both models"):
        df.compare(a.model, a.model, a.encode(), plans=(silently(a), None))


def test_other_items_are_refused(runs: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", (2 * (np.random.default_rng(5).random((60, 4)) < 0.8)).astype(np.uint8))
    df.train(config(tmp_path / "y.npy"), tmp_path / "c", console=QUIET)
    a, c = df.load_run(runs / "a"), df.load_run(tmp_path / "c")
    with pytest.raises(DiffusionalError, match="same test split"):
        a.compare(c)
    assert a.compare(c, a.encode("test"), 0.5).difference.n == 6
