"""Conditions and items that are computed from those of a stream: the bytes of the loaded data, wherever reading began, for runs and systems."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import diffusional as df
from battery import command
from diffusional.conditions import by_name
from diffusional.data import Dataset, load
from diffusional.data.dataset import BatchedStream, TextStream
from diffusional.data.derived_stream import ComputedStream, mapped
from diffusional.space import Discrete
from diffusional.text import TextRecord
from diffusional.text.hashed import HashedEncoder
from diffusional.training import composites
from diffusional.training.batches import BatchLoader
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, ScheduleConfig

datasets = pytest.importorskip("datasets")
QUIET = Console(quiet=True)
N, HELD = 60, 6
CLASSES = 12
OWN = {"levels": 17, "column": "x", "streaming": True, "holdout": HELD}
SMALL = Config(
    model=ModelConfig(widths=(8, 8), blocks=1),
    schedule=ScheduleConfig(gamma_min=-6.0, gamma_max=6.0, steps=5),
    condition_dropout=0.2,
    steps=12,
    batch=8,
    validate_every=6,
    checkpoint_every=4,
)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 images of digits, which differ, with labels 0 … 10 in ascending order of twelve classes, and texts."""
    folder = tmp_path_factory.mktemp("images")
    x = df.data.load("digits").tensor("train")[:N]
    features = datasets.Features(
        {
            "x": datasets.Array3D((1, 8, 8), "int64"),
            "label": datasets.ClassLabel(names=[f"c{i}" for i in range(CLASSES)]),
            "caption": datasets.Value("string"),
        }
    )
    columns = {"x": x.tolist(), "label": [i // 6 for i in range(N)], "caption": [f"item {i % 9}" for i in range(N)]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / "train.parquet"))
    return f"hf:{folder}"


def streamed(name: str, condition: str, **options: Any) -> Dataset:
    return load(name, **OWN, condition=condition, **options)


def digest(condition: Any, i: int) -> dict[str, Any]:
    """The condition of one item, without padding."""
    parts = by_name(condition)
    rows = {key: value[i] for key, value in parts.items() if key != "mask"}
    if "mask" in parts:
        rows["tokens"] = rows["tokens"][parts["mask"][i]]
    return {key: (str(value.dtype), value.numpy().tobytes()) for key, value in rows.items()}


CASES = [
    ("low-resolution:2", {}),
    ("quantised:4", {}),
    ("inpaint", {}),
    ("inpaint + label", {}),
    ("quantised:2 + caption", {}),
    ("low-resolution:2 + caption", {"text_form": "tokens"}),
]


@pytest.mark.parametrize(("condition", "options"), CASES)
@pytest.mark.parametrize("last", [0, 6])
def test_conditions_computed_from_a_stream_are_those_of_the_loaded_data(
    condition: str, options: dict[str, Any], last: int, name: str
) -> None:
    """In every process's share, from the middle on, in the splits that are held out, and at the head."""
    whole = load(name, 17, column="x", split=(0.8, 0.1, 0.1), condition=condition, **options)
    expected = {}
    for split in ("train", "validation", "test"):
        raw, own = whole.tensor(split), whole.condition_of(split)
        expected |= {raw[i].numpy().tobytes(): digest(own, i) for i in range(len(raw))}
    assert len(expected) == N
    data = streamed(name, condition, **options)
    assert isinstance(data.train, BatchedStream)
    assert isinstance(data.train, TextStream) == ("caption" in condition)

    def check(x: Tensor, found: Any) -> list[bytes]:
        keys = [one.numpy().tobytes() for one in x]
        assert [digest(found, i) for i in range(len(x))] == [expected[key] for key in keys]
        return keys

    held = [check(data.tensor(split), data.condition_of(split)) for split in ("validation", "test")]
    head = check(data.train.head(9), data.head_condition(9))
    place, seen = (0, 0), list[bytes]()
    for share in (slice(0, 8), slice(2, 5)):
        batches = BatchLoader(data, 0, 8, share, last=last)
        for step in range(6):
            x, rows = batches(step)
            keys = check(data.space.decode(x), batches.condition(rows))
            seen += keys if share == slice(0, 8) else []
            place = batches.place(4) if step == 3 else place
        batches.close()
    assert set(seen).isdisjoint({*held[0], *held[1]})
    assert len(set(seen) | set(head)) == N - 2 * HELD
    later = BatchLoader(data, 0, 8, slice(0, 8), last=last)
    later.seek(4, place)
    x, rows = later(4)
    assert check(data.space.decode(x), later.condition(rows)) == seen[32:40]
    later.close()


def test_the_record_of_a_condition_that_is_computed_from_a_stream(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = streamed(name, "low-resolution:2 + label")
    # The items at the head have fewer classes than the data declare.
    monkeypatch.setattr("diffusional.data.dataset._HEAD", 8)
    form = both.condition_form
    assert form is not None
    assert dict(form.parts)["condition"].classes == CLASSES
    assert int(both.head_condition(8)["condition"].max()) < 5
    assert both.condition_hash("train") != streamed(name, "inpaint + label").condition_hash("train")
    assert both.condition_hash("train") == streamed(name, "low-resolution:2 + label").condition_hash("train")
    texts = streamed(name, "inpaint + caption", text_form="tokens")
    assert texts.text == TextRecord("hashed", HashedEncoder().sha256, "tokens", 256, padded=False)
    assert texts.captions_of("test") == tuple(f"item {i % 9}" for i in range(HELD, 2 * HELD))
    plain = load(name, **OWN)
    for split in ("train", "validation", "test"):
        assert texts.fingerprint(split) == plain.fingerprint(split)
    for wrong in ("low-resolution:3", "quantised:x", "low-resolution:3 + label"):
        with pytest.raises(df.DiffusionalError, match="a factor F of at least 2 that divides"):
            streamed(name, wrong)


@dataclass(frozen=True)
class Counted:
    """A stream of the numbers 0 … n − 1 with conditions."""

    n: int
    item_shape: tuple[int, ...] = (1,)
    dtype: torch.dtype = torch.int64
    identity: str = "counted"

    def items(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        return iter(torch.arange(self.n)[skip:, None])

    def head(self, n: int) -> Tensor:
        return torch.arange(min(n, self.n))[:, None]

    def pairs(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return ((item, -item[0]) for item in self.items(epoch, skip))

    def head_condition(self, n: int) -> Tensor:
        return -self.head(n)[:, 0]


@pytest.mark.parametrize("n", [200, 128, 3])
def test_computed_items_do_not_depend_on_where_reading_began(n: int) -> None:
    """The function sees the same blocks, and the places of their first items."""

    def function(raw: Tensor, epoch: int, first: int) -> Tensor:
        return torch.stack([raw[:, 0], raw.sum().expand(len(raw)), torch.full((len(raw),), first)], 1) + 1000 * epoch

    stream = mapped(Counted(n), function, (3,), torch.int64, "sums", conditional=True)
    assert isinstance(stream, BatchedStream)
    whole = torch.stack(list(stream.items(2)))
    assert whole[:, 0].tolist() == [2000 + i for i in range(n)]
    assert whole[-1].tolist() == [1999 + n, 2000 + sum(range((n - 1) // 64 * 64, n)), 2000 + (n - 1) // 64 * 64]
    for skip in (0, 1, 63, 64, 65, 127, 128, 199):
        later = list(stream.pairs(2, skip))
        assert [item.tolist() for item, _ in later] == whole[skip:].tolist()
        assert [int(value) for _, value in later] == [-i for i in range(skip, n)]
    assert stream.head(n).tolist() == (whole - 3000).tolist()
    assert stream.head_condition(2).tolist() == [0, -1]
    assert (stream.item_shape, stream.identity) == ((3,), '["counted", "sums"]')
    plain = mapped(Counted(n), function, (3,), torch.int64, "sums", conditional=False)
    assert not isinstance(plain, BatchedStream)
    assert torch.stack(list(plain.items(2, 1))).equal(whole[1:])


@pytest.mark.parametrize("condition", ["low-resolution:2", "inpaint + caption"])
def test_a_run_on_conditions_that_are_computed_is_resumed_to_the_same_bytes(
    condition: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(SMALL, data=DataConfig(name, **OWN, condition=condition))
    df.train(chosen, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patched:
        conditions, calls = ComputedStream.conditions, []

        def interrupted(self: Any, values: Sequence[Any]) -> Any:
            calls.append(values)
            if len(calls) > 11:
                raise OSError("the connection broke")
            return conditions(self, values)

        patched.setattr(ComputedStream, "conditions", interrupted)
        with pytest.raises(OSError, match="the connection broke"):
            df.train(chosen, tmp_path / "run", console=QUIET)
    assert any((tmp_path / "run/checkpoints").iterdir())
    df.train(chosen, tmp_path / "run", resume=True, console=QUIET)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    run, data = df.load_run(tmp_path / "run"), streamed(name, condition)
    assert run.evaluate(visits=2).nelbo.n == HELD  # the plan is learned from the first items of the stream
    plan = df.Plan.uniform(run.model)
    own = df.evaluate(run.model, data.encode("test"), visits=2, condition=data.condition_of("test"), plan=plan)
    assert run.evaluate(visits=2, plan=plan).nelbo.value == own.nelbo.value
    out = tmp_path / "a.npz"
    status, _, err = command(capsys, "sample", tmp_path / "run", "--condition", "test:3", "--n", "2", "--out", out)
    assert status == 0, err
    for words in (
        ("sample", tmp_path / "run", "--condition", "train:3"),
        ("evaluate", tmp_path / "run", "--split", "all"),
    ):
        status, _, err = command(capsys, *words)
        assert (status, "is a stream, which is not read to its end; expected" in " ".join(err.split())) == (2, True)


def test_systems_on_a_stream(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cascade and a latent diffusion: the stages have the variables of the items, and are resumed to the same bytes."""
    data = DataConfig(name, **OWN, condition="caption")
    cascade = df.CompositeConfig("cascade", {"base": SMALL, "top": SMALL}, data, (2,), conditional=("top",))
    vae = ModelConfig(kind="vae", hidden=8, blocks=1)
    encoder = replace(SMALL, model=vae, schedule=ScheduleConfig(), latent=LatentConfig((3,)), condition_dropout=0.0)
    prior = replace(SMALL, model=ModelConfig(network="mlp", predicts="v", hidden=8, blocks=1))
    latent = df.CompositeConfig("latent", {"autoencoder": encoder, "prior": prior}, data)
    stages = {"encoder": encoder, "prior": prior, "decoder": SMALL}
    unclip = df.CompositeConfig("unclip", stages, data, conditional=("decoder",))
    train = composites.train
    for kind, config, last in (
        ("cascade", cascade, "top"),
        ("latent", latent, "prior"),
        ("unclip", unclip, "decoder"),
    ):
        composites.train_composite(config, tmp_path / kind, console=QUIET)
        run = tmp_path / f"{kind}-resumed"

        def crashed(own: Config, folder: Path, last: str = last, **options: Any) -> df.LatentVariableModel:
            def watch(step: int, model: df.LatentVariableModel) -> None:
                if folder.name == last and step == 6:
                    raise RuntimeError("crashed")

            return train(own, folder, watch=watch, **options)

        with monkeypatch.context() as patch:
            patch.setattr(composites, "train", crashed)
            with pytest.raises(RuntimeError, match="crashed"):
                composites.train_composite(config, run, console=QUIET)
        composites.train_composite(config, run, resume=True, console=QUIET)
        for stage in config.stages:
            ours, theirs = (one / "stages" / stage / "model.safetensors" for one in (run, tmp_path / kind))
            assert ours.read_bytes() == theirs.read_bytes(), stage
        system = df.load_run(run)
        found = system.evaluate(visits=2)
        assert found.nelbo.n == HELD
        model: Any = system.model
        x = system.encode("test")
        if kind == "cascade":
            low = df.load_run(run / "stages/base").encode("test")
            assert low.equal(model.variable("base", x))
            given = df.load_run(run / "stages/top").condition("test")
            assert isinstance(given, dict)
            assert given["low"].equal(low)
        elif kind == "unclip":
            given = df.load_run(run / "stages/decoder").condition("test")
            assert isinstance(given, dict)
            assert torch.allclose(given["latent"], model.encoded(x)[0], atol=1e-6)


def test_draws_of_an_encoder_are_drawn_anew_in_every_epoch_of_a_stream(name: str, tmp_path: Path) -> None:
    from diffusional.training.stage_data import dataset_of

    vae = replace(
        SMALL,
        model=ModelConfig(kind="vae", hidden=8, blocks=1),
        schedule=ScheduleConfig(),
        latent=LatentConfig((3,)),
        condition_dropout=0.0,
        data=DataConfig(name, **OWN),
    )
    df.train(vae, tmp_path / "vae", console=QUIET)
    encoder = str(tmp_path / "vae")
    data = dataset_of(DataConfig(name, **OWN, encoder=encoder, encoder_draws=2, condition="label"))
    means = dataset_of(DataConfig(name, **OWN, encoder=encoder))
    stream: Any = data.train
    assert (stream.item_shape, stream.dtype, data.classes[:1]) == ((3,), torch.float32, ("c0",))
    model: Any = df.load(tmp_path / "vae")

    def noise(epoch: int) -> Tensor:
        """The noise of the draws at every place of an epoch."""
        drawn, labels = zip(*stream.pairs(epoch), strict=True)
        raw, own = zip(*stream.stream.pairs(epoch), strict=True)
        assert torch.stack(labels).equal(torch.stack(own))
        with torch.no_grad():
            q = model.posterior(data_space.encode(torch.stack(raw)))
        return (torch.stack(drawn) - q.mean) / torch.exp(0.5 * q.log_variance)

    data_space = model.space
    first, again, second = noise(0), noise(0), noise(1)
    assert first.equal(again)
    assert 0.8 < float(first.std()) < 1.2
    assert not torch.isclose(first, second).any(1).any()
    assert means.train.head(5).shape == (5, 3)  # pyright: ignore[reportAttributeAccessIssue]
    assert not stream.head(5).equal(means.train.head(5))  # pyright: ignore[reportAttributeAccessIssue]
    assert data.fingerprint("train") != means.fingerprint("train")
    assert isinstance(means.space, df.Continuous)
    assert not isinstance(means.space, Discrete)
