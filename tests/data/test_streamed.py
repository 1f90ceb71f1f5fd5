"""Texts, numbers and tokens of streams: they are those of their items, embedded as they are read, and a run of them is resumed exactly."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import diffusional as df
from diffusional.condition_form import ConditionForm
from diffusional.conditions import moved
from diffusional.data import Dataset, embedded_stream, load
from diffusional.data.dataset import BatchedStream, LabelledStream
from diffusional.errors import DiffusionalError
from diffusional.networks.conditioning import ConditionAdapter, pooled
from diffusional.networks.diffusers import ddpm_unet
from diffusional.text import TextRecord
from diffusional.text.hashed import HashedEncoder
from diffusional.training.batches import BatchLoader
from diffusional.training.config import Config, DataConfig, ModelConfig

datasets = pytest.importorskip("datasets")
QUIET = Console(quiet=True)
N, HELD = 40, 4
TEXTS = [" ".join(["one", "two", "three", "four", "five"][: 1 + i % 5]) + f" of {i % 10}" for i in range(N)]
PAIRS = [[float(i), -0.5 * i] for i in range(N)]
TOKENS = [[[float(i + j), float(j)] for j in range(1 + i % 3)] for i in range(N)]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def written(folder: Path, **other: list) -> str:
    """Items (i, i² mod 50), i < 40, with a text, two numbers and tokens of each."""
    value, features = datasets.Value, {"x": datasets.Sequence(datasets.Value("int64"), length=2)}
    features |= {
        "caption": value("string"),
        "pair": datasets.Sequence(value("float32"), length=2),
        "age": value("float64"),
    }
    features |= {"emb": datasets.Sequence(datasets.Sequence(value("float32")))}
    columns: dict[str, list] = {
        "x": [[i, i * i % 50] for i in range(N)],
        "caption": TEXTS,
        "pair": PAIRS,
        "emb": TOKENS,
    }
    columns |= {"age": [i / 4 for i in range(N)]}
    folder.mkdir(exist_ok=True)
    made = datasets.Dataset.from_dict(columns | other, features=datasets.Features(features))
    made.to_parquet(str(folder / "train.parquet"))
    return f"hf:{folder}"


def streamed(name: str, condition: str, **options: Any) -> Dataset:
    return load(name, 50, column="x", streaming=True, holdout=HELD, condition=condition, **options)


def row(condition: Any, i: int) -> Any:
    """The condition of one item, without padding."""
    if isinstance(condition, Tensor):
        return condition[i].tolist()
    return condition["tokens"][i][condition["mask"][i]].tolist()


def embedding(form: str) -> Any:
    return lambda i: row(TextRecord("hashed", HashedEncoder().sha256, form, 256, False).condition([TEXTS[i]]), 0)  # type: ignore[arg-type]


CASES = [
    ("caption", {}, embedding("pooled")),
    ("caption", {"text_form": "tokens"}, embedding("tokens")),
    ("numbers:pair", {}, lambda i: PAIRS[i]),
    ("numbers:age", {}, lambda i: [i / 4]),
    ("tokens:emb", {}, lambda i: TOKENS[i]),
]


@pytest.mark.parametrize(("condition", "options", "expected"), CASES)
@pytest.mark.parametrize("last", [0, 6])
def test_conditions_travel_with_the_items_of_a_stream(
    condition: str, options: dict[str, Any], expected: Any, last: int, tmp_path: Path
) -> None:
    """In every process's share, from the middle on, in the splits that are held out, and at the head."""
    data = streamed(written(tmp_path / "a"), condition, **options)
    assert isinstance(data.train, BatchedStream)
    for split, first in (("validation", 0), ("test", HELD)):
        held = data.condition_of(split)
        assert [row(held, i) for i in range(HELD)] == [expected(first + i) for i in range(HELD)]
    head = data.head_condition(7)
    assert [row(head, i) for i in range(7)] == [expected(2 * HELD + i) for i in range(7)]
    place, seen = (0, 0), []
    for share in (slice(0, 8), slice(2, 5)):
        batches = BatchLoader(data, 0, 8, share, last=last)
        for step in range(6):
            x, rows = batches(step)
            numbers = data.space.decode(x)[:, 0].tolist()
            seen += numbers if share == slice(0, 8) else []
            found = batches.condition(rows)
            assert [row(found, i) for i in range(len(x))] == [expected(n) for n in numbers]
            place = batches.place(4) if step == 3 else place
        batches.close()
    assert sorted(seen[: N - 2 * HELD]) == list(range(2 * HELD, N))
    later = BatchLoader(data, 0, 8, slice(0, 8), last=last)
    later.seek(4, place)
    x, rows = later(4)
    assert data.space.decode(x)[:, 0].tolist() == seen[32:40]
    assert [row(later.condition(rows), i) for i in range(8)] == [expected(n) for n in seen[32:40]]
    later.close()


def test_the_texts_of_a_stream_are_hashed_with_their_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = streamed(written(tmp_path / "a"), "caption", text_form="tokens")
    assert data.text == TextRecord("hashed", HashedEncoder().sha256, "tokens", 256, padded=False)
    assert data.captions_of("test") == tuple(TEXTS[HELD : 2 * HELD])
    with pytest.raises(DiffusionalError, match=r"train is a stream, whose texts.*head_texts"):
        data.captions_of("train")
    with pytest.raises(DiffusionalError, match=r"train is a stream, whose conditions"):
        data.condition_of("train")
    other = streamed(written(tmp_path / "b", caption=[*TEXTS[:-1], "another"]), "caption", text_form="tokens")
    assert [data.condition_hash(split) == other.condition_hash(split) for split in ("train", "validation", "test")] == [
        False,
        True,
        True,
    ]
    monkeypatch.setattr(HashedEncoder, "sha256", "0" * 64)
    changed = streamed(f"hf:{tmp_path / 'a'}", "caption", text_form="tokens")
    assert changed.condition_hash("train") != data.condition_hash("train")
    record = TextRecord("hashed", HashedEncoder().sha256, "tokens", 256, padded=False)
    assert TextRecord.from_dict(record.to_dict()) == record
    # Records of data in memory are as before.
    assert "padded" not in TextRecord("hashed", "0", "pooled").to_dict()


def test_a_repeated_text_is_encoded_once_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = streamed(written(tmp_path / "a"), "caption", text_form="tokens")
    train, encode, calls = data.train, HashedEncoder.encode, []

    def counted(self: HashedEncoder, texts: Any) -> Any:
        calls.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(HashedEncoder, "encode", counted)
    assert isinstance(train, BatchedStream)
    first: Any = train.conditions(TEXTS)
    assert sorted(calls) == sorted(set(TEXTS))
    # No more than one text is kept: all are encoded again, to the same values.
    monkeypatch.setattr(embedded_stream, "_KEPT", 5000)
    calls.clear()
    for _ in range(2):
        again: Any = train.conditions(TEXTS)
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert len(calls) > len(set(TEXTS))


def test_rows_that_a_stream_cannot_use_are_named(tmp_path: Path) -> None:
    broken: list[tuple[str, dict[str, list], str]] = [
        ("caption", {"caption": [*TEXTS[:20], None, *TEXTS[21:]]}, r"'caption': item \d+ of epoch 0 has no text"),
        (
            "numbers:age",
            {"age": [0.5] * 20 + [None] + [0.5] * 19},
            r"'age': item \d+ of epoch 0 has \[None\], expected finite",
        ),
        (
            "numbers:age",
            {"age": [0.5] * 20 + [float("inf")] + [0.5] * 19},
            r"item \d+ of epoch 0 has \[inf\], expected finite",
        ),
        (
            "tokens:emb",
            {"emb": [*TOKENS[:20], [[1.0]], *TOKENS[21:]]},
            r"item \d+ of epoch 0 is not a list of vectors of 2 num",
        ),
        (
            "tokens:emb",
            {"emb": [*TOKENS[:20], [], *TOKENS[21:]]},
            r"item \d+ of epoch 0 is not a list of vectors of 2 num",
        ),
    ]
    for k, (condition, columns, message) in enumerate(broken):
        data = streamed(written(tmp_path / str(k), **columns), condition)
        assert isinstance(data.train, LabelledStream)
        with pytest.raises(DiffusionalError, match=message):
            list(data.train.pairs(0))
    with pytest.raises(DiffusionalError, match="test item 1 has no text"):
        streamed(written(tmp_path / "t", caption=[*TEXTS[:5], "  ", *TEXTS[6:]]), "caption")
    with pytest.raises(DiffusionalError, match=r"has no 'title' for the condition"):
        streamed(f"hf:{tmp_path / '0'}", "caption:title")
    with pytest.raises(DiffusionalError, match=r"got 'x', which is none of its columns"):
        streamed(f"hf:{tmp_path / '0'}", "numbers:x")
    long = streamed(written(tmp_path / "l", caption=[*TEXTS[:20], "word " * 300, *TEXTS[21:]]), "caption")
    assert isinstance(long.train, BatchedStream)
    with pytest.raises(DiffusionalError, match="at most 256 tokens for the text encoder hashed, got 300"):
        long.train.conditions([text for _, text in long.train.pairs(0)])


@pytest.mark.parametrize("form", ["pooled", "tokens"])
def test_a_run_on_streamed_captions_is_resumed_to_the_same_bytes(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = written(tmp_path / "a")
    own = DataConfig(name, levels=50, column="x", streaming=True, holdout=HELD, condition="caption", text_form=form)
    sizes = ModelConfig(network="mlp", hidden=8, blocks=1)
    chosen = Config(
        data=own, model=sizes, steps=12, batch=8, validate_every=6, checkpoint_every=4, condition_dropout=0.2
    )
    df.train(chosen, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patched:
        conditions, calls = embedded_stream.EmbeddedStream.conditions, []

        def interrupted(self: Any, values: Any) -> Any:
            calls.append(values)
            if len(calls) > 11:
                raise OSError("the connection broke")
            return conditions(self, values)

        patched.setattr(embedded_stream.EmbeddedStream, "conditions", interrupted)
        with pytest.raises(OSError, match="the connection broke"):
            df.train(chosen, tmp_path / "run", console=QUIET)
    assert any((tmp_path / "run/checkpoints").iterdir())
    df.train(chosen, tmp_path / "run", resume=True, console=QUIET)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    run = df.load_run(tmp_path / "run")
    assert run.record.text == TextRecord("hashed", HashedEncoder().sha256, form, 256 if form == "tokens" else 0, False)
    assert run.model.sample(2, condition=run.embed(["one of 3", "one two three of 8"])).shape == (2, 2)
    found = run.evaluate(visits=2)  # the plan is learned from the first items of the stream
    assert found.nelbo.n == HELD
    assert found.provenance["plan"]["condition_sha256"]
    written(tmp_path / "a", caption=[text + "!" if text.startswith("one t") else "new" for text in TEXTS])
    with pytest.raises(DiffusionalError, match="condition of train"):
        df.train(dataclasses.replace(chosen, steps=13), tmp_path / "run", resume=True, console=QUIET)
    written(tmp_path / "a")
    monkeypatch.setattr(HashedEncoder, "sha256", "0" * 64)
    with pytest.raises(DiffusionalError, match="text encoder hashed has changed"):
        df.train(dataclasses.replace(chosen, steps=13), tmp_path / "run", resume=True, console=QUIET)


def test_padding_changes_no_condition() -> None:
    """Tokens with a mask may be longer or shorter than those of the form; without a mask they may not."""
    form = ConditionForm("tokens", (3, 2), masked=True)
    tokens, mask = torch.randn(4, 3, 2), torch.tensor([[True, True, False]] * 4)
    longer = {
        "tokens": torch.cat([tokens, torch.zeros(4, 5, 2)], 1),
        "mask": torch.cat([mask, mask.new_zeros(4, 5)], 1),
    }
    shorter = {"tokens": tokens[:, :2], "mask": mask[:, :2]}
    for condition in ({"tokens": tokens, "mask": mask}, longer, shorter):
        form.check(condition, 4)
        assert torch.equal(pooled(condition), tokens[:, :2].sum(1) / 2)
    for wrong in ({"tokens": tokens[:, :, :1], "mask": mask}, {"tokens": tokens[:, :0], "mask": mask[:, :0]}):
        with pytest.raises(DiffusionalError, match="expected a condition of tokens"):
            form.check(wrong, 4)
    with pytest.raises(DiffusionalError, match="expected a condition of tokens"):
        ConditionForm("tokens", (3, 2)).check(tokens[:, :2], 4)


def test_padding_changes_nothing_that_cross_attention_predicts() -> None:
    torch.manual_seed(0)
    form = ConditionForm("tokens", (3, 2), masked=True)
    network = ddpm_unet(1, (8, 8), widths=(32, 32), blocks=1, attention=(8,), tokens=2)
    adapter = ConditionAdapter(network, form, null=True, attention=True).eval()
    for weight in adapter.parameters():  # some layers begin with zeros
        torch.nn.init.normal_(weight, std=0.1)
    tokens, mask = torch.randn(4, 3, 2), torch.tensor([[True, True, False]] * 4)
    short = {"tokens": tokens[:, :2], "mask": mask[:, :2]}
    long = {"tokens": torch.cat([tokens, torch.randn(4, 9, 2)], 1), "mask": torch.cat([mask, mask.new_zeros(4, 9)], 1)}
    z, level = torch.randn(4, 1, 8, 8), torch.zeros(4)
    with torch.no_grad():
        one, other = (adapter(z, level, moved(condition, z.device)) for condition in (short, long))
        apart = adapter(z, level, {"tokens": tokens[:, :2] + 1, "mask": mask[:, :2]})
    assert torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(one, apart, atol=1e-5)
