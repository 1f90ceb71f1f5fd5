"""The Dataset record: encodes through its space, and its fingerprint knows values, order, shape and space, not storage."""

import hashlib
import re

import pytest
import torch

from diffusional.data import Dataset
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

SPACE = Discrete((1, 2, 2), levels=9)
RAW = torch.arange(24).reshape(6, 1, 2, 2) % 9


def discrete(raw: torch.Tensor = RAW, space: Discrete = SPACE) -> Dataset:
    return Dataset("d", space, raw, raw[:2], raw[2:4])


def continuous(raw: torch.Tensor) -> Dataset:
    return Dataset("c", Continuous((3,), shift=(1.0, 2.0, 3.0), scale=(1.0, 2.0, 4.0)), raw, raw, raw)


def test_encode_is_the_space_s() -> None:
    x = discrete().encode("validation")
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, RAW[:2].float() / 4 - 1)
    raw = torch.randn(5, 3, dtype=torch.float64)
    expected = (raw - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(continuous(raw).encode("test"), expected.float())


def test_encode_names_the_split_of_a_bad_value() -> None:
    raw = RAW.clone()
    raw[3, 0, 0, 0] = 9
    with pytest.raises(DiffusionalError, match=r"d, split test: .*9 levels that are declared, got 0 to 9"):
        discrete(raw).encode("test")


@pytest.mark.parametrize("method", ["encode", "fingerprint"])
@pytest.mark.parametrize("split", ["val", "", "name", "space"])
def test_unknown_split(method: str, split: str) -> None:
    message = re.escape(f"expected split to be one of train, validation, test, got {split!r}")
    with pytest.raises(DiffusionalError, match=message):
        getattr(discrete(), method)(split)


def test_fingerprint_is_what_it_says() -> None:
    space = '{"high": 1.0, "kind": "discrete", "levels": 9, "low": -1.0, "shape": [1, 2, 2]}'
    text = '{"shape": [6, 1, 2, 2], "space": ' + space + "}"
    values = b"".join(int(v).to_bytes(8, "little") for v in RAW.flatten())
    assert discrete().fingerprint("train") == hashlib.sha256(text.encode() + values).hexdigest()


def test_fingerprint_over_many_chunks_equals_one_hash() -> None:
    raw = torch.arange(3000)[:, None] % 7
    data = Dataset("d", Discrete((1,), levels=7), raw, raw, raw)
    text = '{"shape": [3000, 1], "space": {"high": 1.0, "kind": "discrete", "levels": 7, "low": -1.0, "shape": [1]}}'
    assert data.fingerprint("train") == hashlib.sha256(text.encode() + raw.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_fingerprint_knows_no_storage(dtype: torch.dtype) -> None:
    strided = RAW.to(dtype).flip(0).flip(0).transpose(2, 3).contiguous().transpose(2, 3)
    assert discrete(strided).fingerprint("train") == discrete().fingerprint("train")


def test_fingerprint_of_floats_knows_no_storage() -> None:
    raw = torch.randn(4, 3)
    assert continuous(raw).fingerprint("test") == continuous(raw.double()).fingerprint("test")


def test_fingerprint_changes_with_value_order_shape_space_and_split() -> None:
    changed, shuffled = RAW.clone(), RAW.flip(0)
    changed[5, 0, 1, 1] = (changed[5, 0, 1, 1] + 1) % 9
    prints = [
        discrete().fingerprint("train"),
        discrete(changed).fingerprint("train"),
        discrete(shuffled).fingerprint("train"),
        discrete(RAW.reshape(6, 4, 1, 1), Discrete((4, 1, 1), levels=9)).fingerprint("train"),
        discrete(space=Discrete((1, 2, 2), levels=10)).fingerprint("train"),
        discrete(space=Discrete((1, 2, 2), levels=9, low=0.0)).fingerprint("train"),
        discrete().fingerprint("validation"),
        discrete().fingerprint("test"),
    ]
    assert len(set(prints)) == len(prints)
    raw = torch.randn(4, 3, dtype=torch.float64)
    nudged = raw.clone()
    nudged[0, 0] = torch.nextafter(raw[0, 0], torch.tensor(9.0, dtype=torch.float64))
    assert continuous(raw).fingerprint("train") != continuous(nudged).fingerprint("train")
    assert discrete().fingerprint("train") == discrete(RAW.clone()).fingerprint("train")


@pytest.mark.parametrize(
    ("space", "raw", "message"),
    [
        (SPACE, torch.zeros(3, 2, 2).long(), r"train split has shape \(3, 2, 2\); expected \(N, 1, 2, 2\)"),
        (SPACE, torch.zeros(0, 1, 2, 2).long(), "the train split is empty"),
        (SPACE, torch.zeros(3, 1, 2, 2), "type torch.float32; its discrete space takes an integer type"),
        (SPACE, torch.zeros(3, 1, 2, 2) > 0, "type torch.bool; its discrete"),
        (Continuous((2,)), torch.zeros(3, 2).long(), "torch.int64; its continuous space takes torch.float32 or"),
        (Continuous((2,)), torch.zeros(3, 2).half(), "torch.float16; its continuous space takes"),
        (Continuous((2,)), torch.tensor(1.0), r"shape \(\); expected \(N, 2\)"),
    ],
)
def test_splits_that_do_not_fit_are_refused(space, raw: torch.Tensor, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        Dataset("d", space, raw, raw, raw)


def test_every_split_is_checked() -> None:
    with pytest.raises(DiffusionalError, match="the test split is empty"):
        Dataset("d", SPACE, RAW, RAW, RAW[:0])


def test_a_notebook_shows_splits_and_shapes() -> None:
    space = Discrete((1, 2, 2), levels=5)
    raw = torch.zeros(1200, 1, 2, 2).long()
    classes = ("<a>", "b")
    labels = {"train": torch.zeros(1200).long(), "validation": torch.zeros(2).long(), "test": torch.zeros(3).long()}
    text = Dataset("d", space, raw, raw[:2], raw[:3], condition=labels, classes=classes)._repr_html_()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert cells[:8] == ["train", "1,200", "1 × 2 × 2", "int64", "validation", "2", "1 × 2 × 2", "int64"]
    assert cells[-4:] == ["all", "1,205", "1 × 2 × 2", ""]
    assert "<p>5 levels</p><p>classes: &lt;a&gt;, b</p>" in text
    reals = torch.zeros(2, 3)
    assert "<p>real values</p>" in Dataset("r", Continuous((3,)), reals, reals, reals)._repr_html_()
