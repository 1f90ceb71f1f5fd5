"""Runs with two conditions, and conditions from another column: on other data, with guidance, and in errors."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.cli.items import items
from diffusional.data.derived import derive
from diffusional.training.config import Config, DataConfig, ModelConfig, ScheduleConfig
from diffusional.training.run import read_run

N = 40
SMALL = Config(
    model=ModelConfig(widths=(8, 8), blocks=1),
    schedule=ScheduleConfig(gamma_min=-6.0, gamma_max=6.0, steps=5),
    condition_dropout=0.3,
    steps=2,
    batch=8,
    validate_every=2,
)


def arrays(seed: int, n: int = N) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 17, (n, 8, 8)).astype(np.uint8)
    texts = [f"item {i % 5}" for i in range(n)]
    other = [f"another {i % 3}" for i in range(n)]
    ages = rng.normal(size=(n, 2)).astype(np.float32)
    return {"x": x, "captions": np.array(texts), "titles": np.array(other), "ages": ages, "label": np.arange(n) % 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own.npz, other.npz, and runs on own.npz, by the names of their conditions."""
    place = tmp_path_factory.mktemp("two")
    np.savez(place / "own.npz", **arrays(0))
    np.savez(place / "other.npz", **arrays(1, 9))
    for name, condition in (
        ("inpaint caption", "inpaint + caption"),
        ("low numbers", "low-resolution:2 + numbers:ages"),
        ("low label", "low-resolution:2 + label"),
        ("caption", "caption"),
    ):
        data = DataConfig(str(place / "own.npz"), levels=17, condition=condition)
        df.train(replace(SMALL, data=data), place / name, console=Console(quiet=True))
    return place


def test_two_conditions_of_other_data(folder: Path) -> None:
    """The first is computed from the items, the second is read beside them."""
    held = arrays(1, 9)
    space = df.load(folder / "low numbers").space
    x = space.encode(torch.as_tensor(held["x"][:, None].astype(np.int64)))
    run = df.load_run(folder / "inpaint caption")
    for key, option in (("captions", None), ("captions", "caption"), ("titles", "caption:titles")):
        found = items(run.record, str(folder / "other.npz"), condition=option)
        condition: Any = found.condition
        assert found.x.equal(x)
        assert list(condition) == ["low", "condition"]
        assert condition["low"].equal(derive("inpaint", x, space))
        assert condition["condition"].equal(run.embed(list(held[key])))
        assert found.columns["caption"].tolist() == held[key].tolist()
    found = items(read_run(folder / "low numbers"), str(folder / "other.npz"))
    condition = found.condition
    assert condition["low"].equal(derive("low-resolution:2", x, space))
    assert condition["condition"].numpy().tolist() == held["ages"].tolist()
    model = df.load(folder / "low numbers")
    assert df.evaluate(model, found.x, visits=2, condition=condition, plan=df.Plan.uniform(model)).nelbo.n == 9
    with pytest.raises(df.DiffusionalError, match="does not record the names of its classes"):
        items(read_run(folder / "low label"), str(folder / "other.npz"))


@pytest.mark.parametrize(("run", "n"), [("caption", "numbers:ages"), ("inpaint caption", "label")])
def test_another_column_is_not_ignored_for_the_data_of_the_run(folder: Path, run: str, n: str) -> None:
    """The test split of its own data, but all items if their texts are others."""
    record, own = read_run(folder / run), str(folder / "own.npz")
    for option in (None, "caption", "caption:captions"):
        found = items(record, own, condition=option)
        assert (found.own, found.split, len(found.x)) == (True, "test", 4)
    found = items(record, own, condition="caption:titles")
    assert (found.own, found.split, len(found.x)) == (False, "all", N)
    assert found.columns["caption"].tolist() == arrays(0)["titles"].tolist()
    with pytest.raises(df.DiffusionalError, match="expected a column or key of texts"):
        items(record, own, condition=n)


def test_guidance_by_the_second_condition(folder: Path) -> None:
    """The predictions without it are given the first: the table has the bounds of the guided chains."""
    run = df.load_run(folder / "low label")
    model: Any = run.model
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight.data, std=0.2)
    x, condition = run.encode("test"), run.condition("test")
    assert isinstance(condition, dict)
    plan = df.Plan.uniform(model)
    table = df.guidance_table(model, x, (0.0, 1.0, 3.0), condition=condition, visits=4, plan=plan)
    for weight, nelbo in zip(table.weights, table.nelbo, strict=True):
        own = df.evaluate(model.guided(weight), x, visits=4, condition=condition, plan=plan)
        assert nelbo.value == pytest.approx(own.nelbo.value, rel=1e-5)
    assert abs(table.nelbo[0].value - table.nelbo[1].value) > 0.1
    assert model.guided(0.0).denoiser.kept == ("low",)
    lines = str(table).splitlines()
    assert lines[2].endswith("  0")
    assert "0.000 ±" not in str(table)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sample", "low label", "--condition", 3), "--condition 3: .*two conditions.*such as test:5"),
        (("sample", "caption", "--condition", "test:9"), "an item of test from 0 to 3"),
        (("information", "low label", "--pointwise"), "requires 'low' also where its other condition is missing"),
        (("classify", "caption"), "was trained with captions, and classify needs classes"),
        (("train", "new", "--condition", "inpaint+label"), r"with spaces around the \+, 'inpaint \+ label'"),
        (("train", "new", "--condition", "tokens:no"), "it has 'x', 'captions', 'titles', 'ages', 'label'$"),
    ],
)
def test_errors_say_what_to_do(
    folder: Path, arguments: tuple[Any, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, run, *options = arguments
    own = ("--data", folder / "own.npz", "--data.levels", 17) if name == "train" else ()
    status, _, err = command(capsys, name, folder / run, *options, *own)
    assert status == 2
    assert re.search(said, " ".join(err.split())), err
    assert not (folder / "new").exists()
