"""`load` from files: what is stored comes back, split without loss; whatever would have to be guessed is refused."""

import gzip
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusional.data import Dataset, load
from diffusional.data import dataset as dataset_file
from diffusional.data.inspection import inspect
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

RNG = np.random.default_rng(0)
INTS = RNG.integers(0, 17, (50, 6)).astype(np.uint8)
REALS = RNG.normal(5.0, 3.0, (50, 4))


def npy(folder: Path, values: np.ndarray, **options) -> Dataset:
    np.save(folder / "a.npy", values)
    return load(folder / "a.npy", **options)


def npz(folder: Path, arrays: Mapping[str, np.ndarray], **options) -> Dataset:
    np.savez(folder / "a.npz", allow_pickle=False, **arrays)
    return load(str(folder / "a.npz"), **options)


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def splits(data: Dataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return data.train, data.validation, data.test


# ------------------------------------------------------------------------------------------------ splitting


@pytest.mark.parametrize(("fractions", "sizes"), [((0.8, 0.1, 0.1), (77, 10, 10)), ((0.5, 0.3, 0.2), (49, 29, 19))])
def test_one_array_is_split_disjointly_and_completely(tmp_path: Path, fractions, sizes) -> None:
    rows = np.arange(97)[:, None] * np.array([1, 2])  # every row is its own
    data = npy(tmp_path, rows, levels=193, split=fractions)
    assert tuple(map(len, splits(data))) == sizes
    together = torch.cat(splits(data))
    assert together[:, 0].sort().values.tolist() == list(range(97))
    torch.testing.assert_close(together[:, 1], 2 * together[:, 0])


def test_the_permutation_is_the_seed_s(tmp_path: Path) -> None:
    rows = np.arange(100)[:, None]
    one, again, other = (npy(tmp_path, rows, levels=100, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint("test") == again.fingerprint("test") != other.fingerprint("test")
    assert one.train.flatten().tolist() != sorted(one.train.flatten().tolist())


@pytest.mark.parametrize("split", [(0.8, 0.1, 0.2), (0.9, 0.1, 0.0), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)])
def test_wrong_fractions(tmp_path: Path, split) -> None:
    with pytest.raises(DiffusionalError, match="positive fractions of train, validation and test that add up"):
        npy(tmp_path, INTS, levels=17, split=split)
    with pytest.raises(DiffusionalError, match="positive fractions"):
        npz(tmp_path, {"train": INTS, "test": INTS}, levels=17, split=split)


def test_a_negative_seed(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"expected seed .* got -1"):
        npy(tmp_path, INTS, levels=17, seed=-1)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_items_to_split(tmp_path: Path, n: int) -> None:
    with pytest.raises(DiffusionalError, match=rf"{n} items, split by .* leave {n} train, 0 validation and 0 test"):
        npy(tmp_path, INTS[:n], levels=17)


# -------------------------------------------------------------------------------------------- .npz and keys


@pytest.mark.parametrize(
    "keys",
    [
        ("train", "validation", "test"),
        ("x_train", "x_val", "x_test"),
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("X_train", "x_validation", "x_test"),
        ("train_images", "val_images", "test_images"),
    ],
)
def test_named_splits_are_left_as_they_are(tmp_path: Path, keys) -> None:
    arrays = dict(zip(keys, (INTS[:30], INTS[30:35], INTS[35:]), strict=True))
    labels = {"y_train": np.zeros(30), "train_labels": np.zeros((30, 1)), "labels": np.zeros(50)}
    data = npz(tmp_path, arrays | labels, levels=17)
    for raw, stored in zip(splits(data), arrays.values(), strict=True):
        np.testing.assert_array_equal(raw.numpy(), stored)


def test_validation_is_the_end_of_train(tmp_path: Path) -> None:
    data = npz(tmp_path, {"train": INTS[:40], "test": INTS[40:]}, levels=17, split=(0.6, 0.2, 0.2))
    np.testing.assert_array_equal(data.train.numpy(), INTS[:32])
    np.testing.assert_array_equal(data.validation.numpy(), INTS[32:40])
    np.testing.assert_array_equal(data.test.numpy(), INTS[40:])


def test_one_array_beside_labels(tmp_path: Path) -> None:
    data = npz(tmp_path, {"images": INTS, "labels": np.arange(50)}, levels=17)
    assert sum(map(len, splits(data))) == 50
    assert data.fingerprint("test") == npy(tmp_path, INTS, levels=17).fingerprint("test")


@pytest.mark.parametrize(
    ("arrays", "held"),
    [
        ({"a": INTS, "b": INTS[:3]}, r"a \(50, 6\), b \(3, 6\)"),
        ({"train": INTS, "validation": INTS}, r"train \(50, 6\), validation \(50, 6\)"),
        ({"train": INTS, "x_train": INTS, "test": INTS}, r"train \(50, 6\), x_train"),
        ({"train": INTS, "test": INTS, "mean": INTS[0]}, r"mean \(6,\)"),
        ({"train": INTS, "test": INTS, "labels": INTS}, r"labels \(50, 6\)"),
        ({"labels": np.arange(3)}, r"labels \(3,\)"),
        ({}, "no arrays"),
    ],
)
def test_ambiguous_keys_are_listed(tmp_path: Path, arrays, held: str) -> None:
    with pytest.raises(DiffusionalError, match=rf"contains .*{held}.* unclear which of them are the data"):
        npz(tmp_path, arrays, levels=17)


def test_too_little_train_for_a_validation_split(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"key 'train': 3 items, of which 0 .* leave validation empty"):
        npz(tmp_path, {"train": INTS[:3], "test": INTS}, levels=17)
    with pytest.raises(DiffusionalError, match=r"1 items, of which 1 .* leave train empty"):
        npz(tmp_path, {"train": INTS[:1], "test": INTS}, levels=17, split=(0.1, 0.8, 0.1))


def test_splits_of_different_shapes_or_kinds(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"items of split test have shape \(5,\), those of train \(6,\)"):
        npz(tmp_path, {"train": INTS, "test": INTS[:, :5]}, levels=17)
    with pytest.raises(DiffusionalError, match=r"different kinds of values \(integer, real\)"):
        npz(tmp_path, {"train": INTS, "test": INTS.astype(float)})


def test_an_empty_named_split(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"key 'test': split test is empty, of shape \(0, 6\)"):
        npz(tmp_path, {"train": INTS, "val": INTS, "test": INTS[:0]}, levels=17)
    with pytest.raises(DiffusionalError, match=r"split train is empty, of shape \(40, 0\)"):
        npy(tmp_path, INTS[:, :0], levels=17)


# ---------------------------------------------------------------------------------------------------- shapes


def test_channels_come_first(tmp_path: Path) -> None:
    gray, colour = RNG.integers(0, 4, (20, 5, 6)), RNG.integers(0, 4, (20, 5, 6, 3))
    stored = {"train": gray[:10], "val": gray[10:15], "test": gray[15:]}
    np.testing.assert_array_equal(npz(tmp_path, stored, levels=4).train[:, 0].numpy(), gray[:10])
    stored = {"train": colour[:10], "val": colour[10:15], "test": colour[15:]}
    data = npz(tmp_path, stored, levels=4)
    assert data.space.shape == (3, 5, 6)
    np.testing.assert_array_equal(data.test[:, 2].numpy(), colour[15:, :, :, 2])


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((20, 7), (7,)),
        ((20, 8, 9), (1, 8, 9)),
        ((20, 8, 9, 1), (1, 8, 9)),
        ((20, 8, 9, 4), (4, 8, 9)),
        ((20, 8, 9, 2), (8, 9, 2)),
        ((20, 3, 8, 9), (3, 8, 9)),
        ((20, 3, 8, 3), (3, 8, 3)),  # H = 3 is too small for an image, so the first 3 are the channels
        ((20, 2, 3, 4, 5), (2, 3, 4, 5)),
    ],
)
def test_shapes(tmp_path: Path, stored: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert npy(tmp_path, np.zeros(stored, np.uint8), levels=2).space.shape == shape


@pytest.mark.parametrize("values", [np.arange(9), np.array(3)])
def test_fewer_than_two_axes(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(DiffusionalError, match=r"has shape \(9?,?\); expected items along the first axis"):
        npy(tmp_path, values, levels=9)
    with pytest.raises(DiffusionalError, match="key 'train' has shape"):
        npz(tmp_path, {"train": values, "test": INTS}, levels=17)


# ------------------------------------------------------------------------------------------- discrete values


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", ">i2", "int32", "uint32", "int64", "uint64"])
def test_integers_of_every_type(tmp_path: Path, dtype: str) -> None:
    data = npy(tmp_path, INTS.astype(dtype), levels=17)
    assert data.space == Discrete((6,), levels=17)
    assert data.train.dtype == (torch.uint8 if dtype == "uint8" else torch.int64)
    np.save(tmp_path / "b.npy", INTS)
    assert data.fingerprint("train") == load(tmp_path / "b.npy", levels=17).fingerprint("train")


def test_integers_need_levels(tmp_path: Path) -> None:
    values = INTS.copy()
    values[7, 3] = 200
    message = r"a.npy: .* integers.* The largest value is 200, so at least levels=201 fit; "
    with pytest.raises(
        DiffusionalError, match=message + r"for 8-bit images: levels=256 \(--levels 256; for train --data.levels 256\)"
    ):
        npy(tmp_path, values)
    with pytest.raises(DiffusionalError, match=r"add 5 to all, then declare at least levels=17"):
        npy(tmp_path, INTS.astype(int) - 5)


@pytest.mark.parametrize("value", [17, -1, 255])
def test_values_outside_the_levels_name_file_item_and_split(tmp_path: Path, value: int) -> None:
    values = INTS.astype(int)
    values[:, 0] = np.arange(50) % 17
    values[31, 4] = value
    with pytest.raises(DiffusionalError, match=r"a.npy: item 31 \(split \w+\) has a value outside .* 0 … 16") as caught:
        npy(tmp_path, values, levels=17)
    advice = "add 1 to all values" if value < 0 else f"at least levels={value + 1}"
    assert advice in str(caught.value)


def test_few_values_on_a_longer_scale_are_to_be_numbered(tmp_path: Path) -> None:
    """Binary data stored as 0 and 255 have 2 levels, not 256: with 256 the model would learn the gaps."""
    binary = np.arange(60).reshape(20, 3) % 2
    with pytest.raises(DiffusionalError, match=r"levels 0 … 1 .*only 2 .* occur, 0, 255: .*np\.unique") as caught:
        npy(tmp_path, binary * 255, levels=2)
    assert "levels=256" not in str(caught.value)
    with pytest.raises(DiffusionalError, match=r"only 2 .* occur, -1, 1: "):
        npy(tmp_path, binary * 2 - 1, levels=2)
    with pytest.raises(DiffusionalError, match=r"at least levels=256"):
        npy(tmp_path, np.vstack([binary * 255, [[7, 8, 9]]]), levels=2)
    with pytest.raises(DiffusionalError, match=r"add 1 to all values, and declare at least levels=4"):
        npy(tmp_path, np.arange(60).reshape(20, 3) % 4 - 1, levels=2)


def test_levels_below_two(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match="levels to be at least 2 for discrete data, got 1"):
        npy(tmp_path, np.zeros_like(INTS), levels=1)


@pytest.mark.parametrize("levels", [None, 2])
def test_booleans_have_two_levels(tmp_path: Path, levels: int | None) -> None:
    data = npy(tmp_path, INTS > 8, levels=levels)
    assert data.space == Discrete((6,), levels=2)
    assert data.train.unique().tolist() == [0, 1]
    assert data.encode("train").unique().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("dtype", "largest"), [("uint64", 2**63), ("float64", 2.0**63)])
def test_values_that_int64_does_not_hold(tmp_path: Path, dtype: str, largest: float) -> None:
    values = INTS.astype(dtype)
    values[3, 2] = largest
    for levels in (2**64, None) if dtype == "uint64" else (2**64,):
        with pytest.raises(DiffusionalError, match=r"has a value of 9\.22337e\+18, expected at most 2\^63 - 1"):
            npy(tmp_path, values, levels=levels)


def test_booleans_with_other_levels(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match="levels=2 for booleans, got levels=256"):
        npy(tmp_path, INTS > 8, levels=256)


def test_whole_floats_with_levels_are_integers(tmp_path: Path) -> None:
    data = npy(tmp_path, INTS.astype(np.float32), levels=17)
    assert data.train.dtype == torch.int64
    assert data.fingerprint("test") == npy(tmp_path, INTS, levels=17).fingerprint("test")


def test_fractions_with_levels(tmp_path: Path) -> None:
    values = INTS.astype(float)
    values[12, 5] = 3.5
    with pytest.raises(DiffusionalError, match=r"item 12 \(split \w+\) has a fraction, but levels=17 .*levels=None"):
        npy(tmp_path, values, levels=17)


# --------------------------------------------------------------------------------------------- real values


@pytest.mark.parametrize(("dtype", "kept"), [("float16", "float32"), (">f4", "float32"), ("float64", "float64")])
def test_floats_are_continuous(tmp_path: Path, dtype: str, kept: str) -> None:
    data = npy(tmp_path, REALS.astype(dtype))
    assert isinstance(data.space, Continuous)
    assert data.train.dtype == getattr(torch, kept)


def test_standardised_by_the_train_split_alone(tmp_path: Path) -> None:
    # Positions differ in scale, splits differ in level: a mean over the wrong axis or the wrong items shows.
    train = REALS[:30].reshape(30, 2, 2) * np.array([[1, 10], [100, 1000]])
    stored = {"train": train, "val": train[:7] + 5.0, "test": 3 * train[:9]}
    data = npz(tmp_path, stored)
    mean, std = train.mean(0), train.std(0)
    assert isinstance(data.space, Continuous)
    np.testing.assert_allclose(data.space.shift, mean.ravel(), rtol=1e-12)
    np.testing.assert_allclose(data.space.scale, std.ravel(), rtol=1e-12)
    for split, values in zip(("train", "validation", "test"), stored.values(), strict=True):
        np.testing.assert_allclose(data.encode(split)[:, 0].numpy(), (values - mean) / std, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(getattr(data, split)[:, 0].numpy(), values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    values = REALS.copy()
    values[23, 1] = bad
    with pytest.raises(DiffusionalError, match=r"a.npy: item 23 \(split \w+\) has a value that is not finite; correct"):
        npy(tmp_path, values)
    with pytest.raises(DiffusionalError, match=r"a.npz, key 'test': item 3 \(split test\) has a value that is not"):
        npz(tmp_path, {"train": REALS, "test": values[20:]})
    with pytest.raises(DiffusionalError, match=r"key 'train': item 23 \(split validation\)"):
        npz(tmp_path, {"train": values[:25], "test": REALS})


@pytest.mark.parametrize("size", [1e-305, 1e-170, 1e160, 1e305])
@pytest.mark.parametrize("block", [2**19, 8])
@pytest.mark.filterwarnings("error")
def test_very_small_and_very_large_values(
    tmp_path: Path, size: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares of such values are 0 or infinite in float64; the standardisation is that of the same values in another unit."""
    monkeypatch.setattr(dataset_file, "_BLOCK", block)
    values = np.random.default_rng(0).normal(5.0, 2.0, (50, 2))
    values[:8, 0] *= max(1e-150, 1e-320 / size)  # so that the unit changes after the first block
    np.save(tmp_path / "plain.npy", values)
    np.save(tmp_path / "a.npy", values * [size, 1.0])
    plain, data = load(tmp_path / "plain.npy"), load(tmp_path / "a.npy")
    np.testing.assert_allclose(data.space.shift, plain.space.shift * np.array([size, 1.0]), rtol=1e-12)
    np.testing.assert_allclose(data.space.scale, plain.space.scale * np.array([size, 1.0]), rtol=1e-12)
    np.testing.assert_allclose(data.encode("test"), plain.encode("test"), rtol=1e-6)
    jacobian = plain.space.log_jacobian() + math.log(size)
    assert data.space.log_jacobian() == pytest.approx(jacobian, rel=1e-12)
    assert inspect(data).findings == inspect(plain).findings


@pytest.mark.parametrize(("size", "todo"), [(1e-309, "too small .*multiply"), (7e307, "too large .*divide")])
@pytest.mark.filterwarnings("error")
def test_values_that_cannot_be_standardised_are_named(tmp_path: Path, size: float, todo: str) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).uniform(-1, 1, (50, 3)) * [1.0, size, 1.0])
    with pytest.raises(DiffusionalError, match=rf"a.npy: .*1 of 3 positions are {todo}") as caught:
        load(tmp_path / "a.npy")
    assert ": 1;" in str(caught.value)


def test_wider_floats_are_kept_as_float64(tmp_path: Path) -> None:
    values = REALS.astype(np.longdouble)
    assert npy(tmp_path, values).fingerprint("train") == npy(tmp_path, REALS).fingerprint("train")
    if np.finfo(np.longdouble).max > np.finfo(np.float64).max:
        values[7, 1] = np.longdouble("1e4000")
        with pytest.raises(DiffusionalError, match=r"item 7 \(split \w+\) has a value that is not finite"):
            npy(tmp_path, values)


def test_constant_columns_are_named(tmp_path: Path) -> None:
    values = np.concatenate([REALS, np.full((50, 7), 0.1)], 1)  # 0.1: its computed variance is not exactly zero
    with pytest.raises(
        DiffusionalError, match=r"7 of 11 positions are constant .*40 train.*: 4, 5, 6, 7, 8 and 2 more"
    ):
        npy(tmp_path, values)
    image = RNG.normal(size=(20, 3, 3))
    image[:16, 1, 2] = 0.0
    with pytest.raises(DiffusionalError, match=r"1 of 9 positions .*: \(0, 1, 2\)\. "):
        npz(tmp_path, {"train": image[:16], "val": image[16:18], "test": image[18:]})


@pytest.mark.parametrize("values", [REALS + 1j, np.full((50, 2), "a")])
def test_what_is_no_number(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(DiffusionalError, match=r"a.npy is of type .*; expected booleans, integers or real floats"):
        npy(tmp_path, values)


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["t-images-idx3-ubyte", "t.idx", "t-images-idx3-ubyte.gz", "t.idx.gz"])
def test_idx_files(tmp_path: Path, name: str) -> None:
    images = RNG.integers(0, 17, (50, 5, 6)).astype(np.uint8)
    content = idx(images)
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    data = load(tmp_path / name, levels=17)
    assert data.name == name
    assert data.fingerprint("train") == npy(tmp_path, images, levels=17).fingerprint("train")


def test_an_idx_label_file(tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(9, dtype=np.uint8)))
    with pytest.raises(DiffusionalError, match=r"labels-idx1-ubyte has shape \(9,\); expected items"):
        load(tmp_path / "train-labels-idx1-ubyte", levels=10)


@pytest.mark.parametrize(("n", "validation"), [(40, 4), (49_999, 5000), (50_000, 5000), (60_000, 5000)])
def test_mnist_folder(tmp_path: Path, n: int, validation: int) -> None:
    train = (np.arange(n) % 251).astype(np.uint8).reshape(n, 1, 1)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(train))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(train[:7])))
    data = load(tmp_path, levels=256)
    assert data.name == tmp_path.name
    assert tuple(map(len, splits(data))) == (n - validation, validation, 7)
    np.testing.assert_array_equal(torch.cat([data.train, data.validation])[:, 0].numpy(), train)
    with pytest.raises(DiffusionalError, match="for 8-bit images: levels=256"):
        load(tmp_path)


def test_mnist_folder_takes_5000_whatever_the_fraction(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((50_000, 1, 1), np.uint8)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((7, 1, 1), np.uint8)))
    assert len(load(tmp_path, levels=2, split=(0.5, 0.3, 0.2)).validation) == 5000


@pytest.mark.parametrize("name", ["gone.npy", "imagenet", "~/no/such/folder"])
def test_missing_files(name: str) -> None:
    with pytest.raises(
        DiffusionalError, match=r'does not exist; expected "digits", an array in .npy or .npz'
    ) as caught:
        load(name)
    assert str(Path(name).expanduser()) in str(caught.value)


def test_an_empty_name_is_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savetxt(tmp_path / "a.csv", REALS, delimiter=",", header="a,b,c,d", comments="")
    monkeypatch.chdir(tmp_path)
    assert load(".").space.shape == (4,)
    with pytest.raises(DiffusionalError, match="the name of the data is empty"):
        load("")


@pytest.mark.parametrize("name", ["a" * 5000 + ".npy", "a\0.npy"], ids=["long", "null"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(DiffusionalError, match=r"could not be read \("):
        load(name)


def test_digits_as_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiffusionalError, match="digits does not exist"):
        load(Path("digits"))


@pytest.mark.parametrize("name", ["a.docx", "a.png", "a.npy.gz", "a"])
def test_unknown_extensions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1,2,3")
    with pytest.raises(DiffusionalError, match=r"is of an unknown kind; expected .digits., an array in .npy or .npz"):
        load(tmp_path / name)


class Bomb:
    """Unpickling this writes a file, so that a test sees whether it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    trap = np.array([[Bomb(tmp_path / "sprung")]], dtype=object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=trap)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(trap))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(trap))
    for name in ("a.npy", "'x.npy' in .*a.npz", "b.npy", "b.npz"):
        with pytest.raises(DiffusionalError, match=rf"{name} contains Python objects.* never loaded"):
            load(tmp_path / name[-5:])
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("kept", [0, 40, -20])
def test_truncated_numpy_files(tmp_path: Path, name: str, kept: int) -> None:
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, INTS)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DiffusionalError, match=rf"{name} could not be read \(.*\); save it again"):
        load(path, levels=17)


def test_a_damaged_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=RNG.normal(size=(100, 100)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[2000:2100] = bytes(100)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DiffusionalError, match=r"a.npz could not be read"):
        load(tmp_path / "a.npz")


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def declares(shape: str) -> bytes:
    return header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n")


def refusal(path: Path) -> str:
    with pytest.raises(DiffusionalError) as caught:
        load(path)
    return str(caught.value).replace(str(path.parent), "TMP")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (declares(f"({2**63},)"), f"its header declares shape ({2**63},) of float64, got 0 bytes of values"),
        (declares("(-2, 4)"), "its header declares shape (-2, 4) of float64, got 0 bytes of values"),
        (declares("(-1, -1)") + bytes(8), "its header declares shape (-1, -1) of float64, got 8 bytes of values"),
        (declares("(3, 5)") + bytes(119), "its header declares shape (3, 5) of float64, got 119 bytes of values"),
        (declares("(3,)" + " " * 20_000), "Header info length (20056) is large and may not be safe to load securely. To allow loading, adjust `max_header_size` or fully trust the `.npy`"),
        (header("{"), "('EOF in multi-line statement', (2, 0))"),
        (header("{}"), "Header does not contain the correct keys: []"),
    ],
)  # fmt: skip
def test_npy_files_that_are_not_what_they_say(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", content)
    for path, name in ((tmp_path / "a.npy", "TMP/a.npy"), (tmp_path / "a.npz", "'x.npy' in TMP/a.npz")):
        told = refusal(path)
        assert told.startswith(f"{name} could not be read ({why}")
        assert told.endswith("); save it again")
        assert len(told) < 300


def test_values_after_the_array_are_not_dropped(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, REALS)
        np.save(file, REALS)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "x.npy")
    second = (tmp_path / "a.npy").stat().st_size // 2
    for name in ("TMP/a.npy", "'x.npy' in TMP/a.npz"):
        told = refusal(tmp_path / name[-5:])
        assert told.startswith(f"{name} holds {second} bytes after the array of its header, of shape (50, 4)")


def test_named_fields_are_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(50, [("age", "f4"), ("height", "f4")]))
    assert refusal(tmp_path / "a.npy").startswith("TMP/a.npy has named fields (age, height), expected plain numbers")


def test_an_unknown_version_of_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x09\x07")
    assert refusal(tmp_path / "a.npy") == "TMP/a.npy has version 9.7 of its format, expected 1.0 to 3.0: save it again"


def zipped(path: Path, **flags: int) -> Path:
    """An .npz of one member, with other bytes at their places in its two headers: 6 and 8 are flags, 8 and 10 the method."""
    np.savez(path, x=INTS)
    content = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = content.index(mark) + shift
        content[at + 6] |= flags.get("flag", 0)
        content[at + 8] = flags.get("method", content[at + 8])
    path.write_bytes(content)
    return path


def test_archives_that_zipfile_does_not_read(tmp_path: Path) -> None:
    assert load(zipped(tmp_path / "a.npz"), levels=17).space.shape == (6,)
    assert refusal(zipped(tmp_path / "a.npz", method=99)) == (
        "'x.npy' in TMP/a.npz could not be read (That compression method is not supported); save it again"
    )
    assert refusal(zipped(tmp_path / "a.npz", flag=1)) == (
        "'x.npy' in TMP/a.npz is encrypted; save it without a password"
    )


@pytest.mark.parametrize(
    ("name", "content"), [("a.npy", b""), ("a.txt", b"hello"), ("a/", b""), ("a.npy", b"\x93NUMP")]
)
def test_archives_of_other_things(tmp_path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr(name, content)
    assert refusal(tmp_path / "a.npz") == (f"'{name}' in TMP/a.npz is not an array; save only arrays, with np.savez")


def test_an_archive_with_a_key_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", declares("(0, 1)"))
        file.writestr("x", declares("(0, 1)"))
    assert refusal(tmp_path / "a.npz") == "'x' in TMP/a.npz occurs twice; give each array its own key"


def test_an_archive_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "a.npz", x=INTS)
    monkeypatch.setattr(np.lib.format, "read_array", full)
    assert refusal(tmp_path / "a.npz") == (
        "'x.npy' in TMP/a.npz does not fit into memory; save each array as an .npy file, which is read as needed"
    )


def test_every_version_of_the_format_and_fortran_order(tmp_path: Path) -> None:
    for version in ((1, 0), (2, 0), (3, 0)):
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, np.asfortranarray(INTS), version=version)
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(tmp_path / "a.npy", "x.npy")
        mapped, unpacked = (load(tmp_path / name, levels=17) for name in ("a.npy", "a.npz"))
        assert mapped.fingerprint("train") == unpacked.fingerprint("train")
        together = torch.cat(splits(mapped)).numpy()
        np.testing.assert_array_equal(together, INTS[np.random.default_rng(0).permutation(50)])


def test_options_of_others_name_what_came(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz"):
        (np.save if name == "a.npy" else np.savez)(tmp_path / name, INTS)
        with pytest.raises(DiffusionalError) as caught:
            load(tmp_path / name, size=8)
        assert str(caught.value) == (
            "size=8 was given for an array (.npy, .npz, IDX), but it is for images and the Hub; leave it out"
        )
