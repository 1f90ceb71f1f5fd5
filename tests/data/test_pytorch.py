"""Datasets of PyTorch: their items by number, in their order, and what is no such item refused with its number."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from diffusional.data import from_torch
from diffusional.data.dataset import Items
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

RAW = torch.arange(60).reshape(20, 3) % 11
REAL = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
    [1.0, 5.0, 9.0]
)


class Counted:
    """A map-style data set that counts what is asked of it."""

    def __init__(self, items) -> None:
        self.items, self.asked = items, []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        self.asked.append(i)
        return self.items[i]


def test_given_splits_are_left_as_they_are() -> None:
    data = from_torch(TensorDataset(RAW[:10]), TensorDataset(RAW[10:15]), TensorDataset(RAW[15:]), levels=11)
    assert data.space == Discrete((3,), levels=11)
    for split, raw in (("train", RAW[:10]), ("validation", RAW[10:15]), ("test", RAW[15:])):
        assert isinstance(data.items(split), Items)
        assert torch.equal(data.tensor(split), raw)


def test_missing_splits_are_drawn_from_train() -> None:
    data = from_torch(RAW, test=RAW[:4], levels=11, split=(0.6, 0.3, 0.1), seed=5)
    order = np.random.default_rng(5).permutation(20)
    assert torch.equal(data.tensor("train"), RAW[order[:14]])
    assert torch.equal(data.tensor("validation"), RAW[order[14:]])
    assert torch.equal(data.tensor("test"), RAW[:4])


def test_rows_are_read_when_asked_for() -> None:
    source = Counted(list(REAL))
    data = from_torch(source, source, source)
    assert isinstance(data.space, Continuous)
    np.testing.assert_allclose(data.space.shift, REAL.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.space.scale, REAL.std(0, unbiased=False), rtol=1e-12)
    source.asked.clear()
    rows = torch.tensor([7, 2, 7])
    assert torch.equal(data.items("train")[rows], REAL[rows])
    assert source.asked == [7, 2, 7]
    assert torch.equal(data.items("test")[3:5], REAL[3:5])


@pytest.mark.parametrize(
    "wrap", [lambda x: (x, 1), lambda x: [x, "label"], lambda x: {"x": x, "y": 0}, lambda x: x.numpy()]
)
def test_items_beside_labels(wrap) -> None:
    data = from_torch([wrap(x) for x in REAL], key="x")
    plain = from_torch(list(REAL))
    assert data.fingerprint("train") == plain.fingerprint("train")


def test_pictures_have_the_levels_of_their_mode() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 6, 3)).astype(np.uint8)
    colour = from_torch([(Image.fromarray(p), 0) for p in pixels])
    assert colour.space == Discrete((3, 4, 6), levels=256)
    assert torch.equal(
        colour.tensor("test"),
        torch.from_numpy(pixels[[np.random.default_rng(0).permutation(10)[9]]]).permute(0, 3, 1, 2),
    )
    bits = from_torch([Image.fromarray(p[:, :, 0] > 128) for p in pixels])
    assert bits.space == Discrete((1, 4, 6), levels=2)
    with pytest.raises(DiffusionalError, match=r"levels=256, .* got levels=16"):
        from_torch([Image.fromarray(p) for p in pixels], levels=16)


def test_arrays_of_images_get_their_channels_first() -> None:
    assert from_torch(list(np.zeros((10, 7, 8), np.uint8)), levels=2).space.shape == (1, 7, 8)
    assert from_torch(list(np.zeros((10, 7, 8, 3), np.uint8)), levels=2).space.shape == (3, 7, 8)


def test_whole_floats_are_levels_and_fractions_are_not() -> None:
    assert from_torch(RAW.float(), levels=11).fingerprint("train") == from_torch(RAW, levels=11).fingerprint("train")
    with pytest.raises(DiffusionalError, match=r"dataset, train: item 1 \(split \w+\) has a fraction, but levels=11"):
        from_torch((RAW + torch.eye(20)[1:2].T / 2).float(), levels=11)


class Noisy(Counted):
    def __getitem__(self, i: int):
        return self.items[i] + torch.rand(3)


class Endless(IterableDataset):
    def __iter__(self):
        yield RAW[0]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Noisy(REAL), "item 0 had other values when it was read again; leave random augmentation out"),
        (Endless(), r"train is of type Endless, whose items have no index; .*streaming=True"),
        (iter([1]), "whose items have no index"),
        ([], "train has no items"),
        (
            [*RAW[:5], RAW[5][:2], *RAW[6:]],
            r"train item 5 has shape \(2,\) and type int64, the first item \(3,\) and int64",
        ),
        (
            [*RAW[:5], RAW[5].double(), *RAW[6:]],
            r"train item 5 has shape \(3,\) and type float64, the first item .* int64",
        ),
        ([{"a": x} for x in RAW], "train item 0 is a dict with 'a'; name the values: key='a'"),
        ([1.0] * 10, r"train item 0 is of type float, shape \(\); expected a tensor"),
        (["word"] * 10, "train item 0 is of type str"),
        (list(RAW + 1j), "item 0 is of type complex64; expected booleans, integers or real floats"),
        (list(RAW * 2), r"item \d+ \(split \w+\) has a value outside the declared levels 0 … 10 \(values: 0 to 20\)"),
    ],
)
def test_what_is_refused(train, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        from_torch(train, levels=11)


def test_integers_need_levels() -> None:
    with pytest.raises(DiffusionalError, match=r"dataset: .*number of levels"):
        from_torch(RAW)
