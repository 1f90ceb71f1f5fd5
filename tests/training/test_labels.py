"""Models of each class: every kind that a config builds takes labels, and training and validation pass each item its own."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import diffusional as df
from diffusional.data.dataset import Dataset
from diffusional.errors import DiffusionalError
from diffusional.networks import Ladder
from diffusional.training.batches import BatchLoader
from diffusional.training.build import build_model
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, ScheduleConfig
from diffusional.training.objective import validate
from diffusional.training.own import own_data, recorded
from diffusional.training.run import read_run

CLASSES = ("ant", "bee", "cow")
GREY = df.Discrete((1, 4, 4), 5)


def config(kind: str, network: str | None = None, **latent: Any) -> Config:
    widths = (8,) if network == "vdm" else (8, 16)
    return Config(
        data=DataConfig(condition="label"),
        schedule=ScheduleConfig(steps=None if kind.endswith("-vae") or kind == "vae" else 6),
        model=ModelConfig(kind=kind, network=network, widths=widths, blocks=1, hidden=16, dropout=0.0),  # type: ignore[arg-type]
        latent=LatentConfig(**latent),
        steps=4,
        batch=8,
    )


CONFIGS = {
    "unet": config("diffusion", "unet"),
    "mlp": config("diffusion", "mlp"),
    "ddpm": config("diffusion", "ddpm"),
    "vdm": config("diffusion", "vdm"),
    "binomial": config("binomial-diffusion", "unet"),
    "vae": config("vae", sizes=(3,)),
    "hierarchical": config("hierarchical-vae", sizes=(3, 2)),
    "diffusion prior": config("vae-diffusion-prior", sizes=(3,)),
}


def perturbed(model: Any) -> Any:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_takes_each_item_s_label_and_needs_it(name: str) -> None:
    space = df.space.binary((1, 4, 4)) if name == "binomial" else GREY
    model = perturbed(build_model(CONFIGS[name], space, CLASSES))
    assert model.classes == CLASSES
    x = space.encode(torch.randint(0, space.levels, (3, 1, 4, 4), generator=torch.Generator().manual_seed(1)))
    c = torch.tensor([0, 1, 2])

    def costs(condition: Any) -> Tensor:
        with torch.no_grad():
            return model.elbo(x, torch.Generator().manual_seed(0), condition).nelbo

    changed = (costs(c) - costs(torch.tensor([0, 2, 2]))).abs() > 1e-6
    assert changed.tolist() == [False, True, False]
    assert costs(c).equal(costs(c.int()))
    for wrong, match in (
        (None, "requires a condition|no condition"),
        (c.float(), "float32"),
        (c == 1, "bool"),
        (c + 1, "label 3 in row 2"),
        (c - 1, "label -1 in row 0"),
        (c[:2], "2 rows for 3 items"),
        (c[:, None], r"\(\d+, 1\)"),
        ({"label": c}, "dict"),
    ):
        for call in (model.elbo, model.loss):
            with pytest.raises(DiffusionalError, match=match):
                call(x, torch.Generator().manual_seed(0), wrong)
        if wrong is None or len(wrong) == 3:
            with pytest.raises(DiffusionalError, match=match):
                model.sample(3, torch.Generator().manual_seed(0), wrong)
    plain = build_model(replace(CONFIGS[name], data=DataConfig()), space)
    with pytest.raises(DiffusionalError, match="condition"):
        plain.elbo(x, torch.Generator().manual_seed(0), c)
    drawn = model.sample(3, torch.Generator().manual_seed(0), c)
    others = model.sample(3, torch.Generator().manual_seed(0), torch.tensor([0, 2, 2]))
    assert not drawn.equal(others)


def test_config_and_classes_go_together() -> None:
    with pytest.raises(DiffusionalError, match=r"data\.condition='label' and 0 classes"):
        build_model(CONFIGS["mlp"], GREY)
    with pytest.raises(DiffusionalError, match=r"data\.condition=None and 3 classes"):
        build_model(Config(), GREY, CLASSES)


def test_pairs_of_a_draw_and_an_item_have_the_item_s_label() -> None:
    torch.manual_seed(0)
    ladder = Ladder((1, 4, 4), (2, 4, 4), (2, 3), hidden=16, classes=3)
    model = perturbed(df.HierarchicalVAE(ladder, df.likelihood.NetworkLevels(GREY)))
    x = GREY.encode(torch.randint(0, 5, (4, 1, 4, 4)))
    c = torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        drawn = model.infer(x, torch.randn(4, 5), c)
        every = model.log_posteriors(model.encoded(x, c), drawn.z)
        # One pair at a time: the draw s under the posterior of the item i.
        for s in range(4):
            for i in range(4):
                z = tuple(part[s : s + 1] for part in drawn.z)
                one = model.log_posteriors(model.encoded(x[i : i + 1], c[i : i + 1]), z)
                assert float(one) == pytest.approx(float(every[s, i]), rel=1e-5)
        assert torch.allclose(every.diagonal(), drawn.log_q())


# Training.


def labelled(shift: int = 0) -> Dataset:
    """Items whose level is four times the number of their class, over 10 levels."""
    g = torch.Generator().manual_seed(0)
    splits = {}
    for split, n in (("train", 30), ("validation", 12), ("test", 12)):
        labels = torch.arange(n)[torch.randperm(n, generator=g)] % 3
        splits[split] = (4 * labels[:, None].expand(n, 4)).contiguous(), (labels + shift) % 3
    raw = {split: pair[0] for split, pair in splits.items()}
    condition = {split: pair[1] for split, pair in splits.items()}
    return Dataset("mine", df.Discrete((4,), 10), **raw, condition=condition, classes=CLASSES)


class Spy(nn.Module):
    """Records what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
        self.seen.append((z, condition))
        return z * self.weight


def test_validation_passes_each_item_its_own_label() -> None:
    data, spy = labelled(), Spy()
    # At a γ of −20 an item is seen without noise, and says its own label.
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-20.0, -15.0, 4))
    model = df.DiffusionModel(process, df.Denoiser(spy, "data"), df.likelihood.LevelPosterior(data.space))
    assert math.isfinite(validate(model, data, seed=0) or math.nan)
    assert spy.seen
    for z, condition in spy.seen:
        level = data.space.index(z.clamp(-1, 1).mean(1, keepdim=True).expand_as(z))
        assert (level[:, 0] // 4 == condition).float().mean() > 0.95


def test_a_dataset_with_labels_trains_a_model_of_them(tmp_path: Path) -> None:
    data, quiet = labelled(), Console(quiet=True)
    plain = Config(model=ModelConfig(hidden=8, blocks=1), steps=4, batch=8)
    model = df.train(plain, tmp_path / "run", data, console=quiet)
    assert model.classes == CLASSES
    record = read_run(tmp_path / "run")
    assert record.config.data.condition == "label"
    assert record.classes == CLASSES
    assert record.conditions == {split: data.condition_hash(split) for split in ("train", "validation", "test")}
    again = df.load(tmp_path / "run")
    assert all(one.equal(other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    df.train(plain, tmp_path / "run", data, resume=True, console=quiet)
    for other in (labelled(1), data.without_condition()):
        with pytest.raises(DiffusionalError, match=r"labels of train|data\.condition"):
            df.train(plain, tmp_path / "run", other, resume=True, console=quiet)
    alone = df.train(plain, tmp_path / "alone", data.without_condition(), console=quiet)
    assert alone.classes == ()
    assert read_run(tmp_path / "alone").config.data.condition is None
    with pytest.raises(DiffusionalError, match=r"data\.condition"):
        df.train(plain, tmp_path / "alone", data, resume=True, console=quiet)


def test_what_is_recorded_of_a_dataset_s_condition() -> None:
    data = labelled()
    assert recorded(Config(), data).data == DataConfig("python:mine", condition="label")
    assert recorded(Config(), data.without_condition()).data == DataConfig("python:mine")
    with pytest.raises(DiffusionalError, match=r"data\.condition='label'.*no condition"):
        recorded(Config(data=DataConfig(condition="label")), data.without_condition())
    assert data.condition is not None
    other = replace(data, classes=(), condition={split: one[:, None].double() for split, one in data.condition.items()})
    assert recorded(Config(), other).data == DataConfig("python:mine", condition="numbers")
    named = {split: {"text": one} for split, one in (other.condition or {}).items()}
    with pytest.raises(DiffusionalError, match=r"class labels.*model\.loss\(x, condition=c\)"):
        recorded(Config(), replace(data, classes=(), condition=named))
    digits = df.data.load("digits", condition="label")
    assert recorded(Config(), digits).data == DataConfig(condition="label")
    assert recorded(Config(), digits.without_condition()).data == DataConfig()


def test_the_labels_of_a_run_s_own_data_are_checked(tmp_path: Path) -> None:
    quiet = Console(quiet=True)
    digits = replace(CONFIGS["mlp"], steps=1)
    df.train(digits, tmp_path / "run", console=quiet)
    record = read_run(tmp_path / "run")
    assert own_data(record).classes == record.classes
    with pytest.raises(DiffusionalError, match="labels of train"):
        own_data(replace(record, conditions=record.conditions | {"train": "0"}))
    with pytest.raises(DiffusionalError, match="classes"):
        own_data(replace(record, classes=CLASSES))


# Streams.


class Streamed:
    """23 items in another order every epoch; an item of level x has the label x mod 3."""

    item_shape, dtype, identity = (4,), torch.int64, "counting"

    def order(self, epoch: int) -> Tensor:
        return torch.randperm(23, generator=torch.Generator().manual_seed(epoch))

    def items(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        return (item for item, _ in self.pairs(epoch, skip))

    def pairs(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return ((level.expand(4), level % 3) for level in self.order(epoch)[skip:])

    def head(self, n: int) -> Tensor:
        return torch.arange(min(n, 23))[:, None].expand(-1, 4)

    def head_condition(self, n: int) -> Tensor:
        return torch.arange(min(n, 23)) % 3


def counting(shift: int = 0) -> Dataset:
    held = torch.arange(6)
    condition = dict.fromkeys(("validation", "test"), (held + shift) % 3)
    raw = held[:, None].expand(6, 4).contiguous()
    return Dataset("counting", df.Discrete((4,), 32), Streamed(), raw, raw, condition=condition, classes=CLASSES)


@pytest.mark.parametrize("last", [0, 12])
def test_a_step_on_a_stream_has_the_labels_of_its_items(last: int) -> None:
    """With and without a thread that reads ahead, in each process's share, and from the middle on."""
    place = (0, 0)
    for share in (slice(0, 10), slice(3, 7)):
        batches = BatchLoader(counting(), 0, 10, share, last=last)
        for step in range(12):
            x, rows = batches(step)
            condition = batches.condition(rows)
            assert torch.equal(condition, counting().space.index(x)[:, 0] % 3)
            place = batches.place(7) if step == 6 else place
        batches.close()
    with pytest.raises(DiffusionalError, match="rows of the last step"):
        batches.condition(rows + 1)
    later = BatchLoader(counting(), 0, 10, slice(0, 10), last=last)
    later.seek(7, place)
    x, rows = later(7)
    assert torch.equal(later.condition(rows), counting().space.index(x)[:, 0] % 3)
    later.close()
    plain = BatchLoader(counting().without_condition(), 0, 10, slice(0, 10))
    x, rows = plain(0)
    assert plain.condition(rows) is None


def test_a_stream_with_labels_trains_and_resumes(tmp_path: Path) -> None:
    quiet, chosen = Console(quiet=True), Config(model=ModelConfig(hidden=8, blocks=1), steps=6, batch=8)
    df.train(chosen, tmp_path / "whole", counting(), console=quiet)
    df.train(replace(chosen, steps=3), tmp_path / "run", counting(), console=quiet)
    record = read_run(tmp_path / "run")
    assert record.classes == CLASSES
    assert record.conditions["train"] == counting().condition_hash("train")
    with pytest.raises(DiffusionalError, match=r"labels of validation"):
        df.train(chosen, tmp_path / "run", counting(1), resume=True, console=quiet)
    model = df.train(replace(chosen, steps=3), tmp_path / "run", counting(), resume=True, console=quiet)
    assert model.classes == CLASSES
    run = df.load_run(tmp_path / "run", counting())
    found = run.evaluate(visits=2, audit=False)
    assert found.provenance["condition_sha256"]
    assert math.isfinite(found.nelbo.value)


def test_a_streamed_column_of_labels_trains_a_run(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    numbers = datasets.List(datasets.Value("int64"), length=2)
    features = datasets.Features({"x": numbers, "kind": datasets.ClassLabel(names=list(CLASSES))})
    columns = {"x": [[i % 3, i % 5] for i in range(60)], "kind": [i % 3 for i in range(60)]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    data = DataConfig(f"hf:{tmp_path / 'data'}", levels=5, column="x", streaming=True, holdout=10, condition="label")
    chosen = Config(data=data, model=ModelConfig(hidden=8, blocks=1), steps=4, batch=8)
    df.train(chosen, tmp_path / "run", console=Console(quiet=True))
    run = df.load_run(tmp_path / "run")
    assert run.record.classes == CLASSES
    # The plan is learned from the first items of the stream and their labels.
    found = run.evaluate(visits=2)
    assert found.provenance["plan"]["condition_sha256"]
    assert found.nelbo.n == 10


def test_labels_that_a_stream_does_not_read_are_refused() -> None:
    class Unlabelled:
        item_shape, dtype, identity = (4,), torch.int64, "counting"
        items, head = Streamed.items, Streamed.head

    data = counting()
    with pytest.raises(DiffusionalError, match=r"train split is a stream.*LabelledStream"):
        replace(data, train=Unlabelled())
    assert data.condition is not None
    with pytest.raises(DiffusionalError, match=r"dict with validation, test,.*got validation, test, train"):
        replace(data, condition=dict(data.condition) | {"train": torch.arange(23) % 3})
