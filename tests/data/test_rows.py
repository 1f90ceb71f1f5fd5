"""Splits as views: the same values, hashes and errors as splits in memory, and nothing held that was not asked for."""

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from battery import PEAK, environment
from diffusional.data import Dataset, checks, load
from diffusional.data import dataset as dataset_file
from diffusional.data.dataset import Items, Stream
from diffusional.data.rows import Rows, integers, reals
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous

RNG = np.random.default_rng(0)
TABLE = RNG.normal(5.0, 3.0, (200, 3)) * np.array([1.0, 10.0, 100.0])
IMAGES = RNG.integers(0, 256, (60, 6, 5, 3)).astype(np.uint8)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small: every split stays a view, is read three items or so at a time, and gathered twenty at a time."""
    monkeypatch.setattr(checks, "IN_MEMORY", 0)
    monkeypatch.setattr(dataset_file, "_BLOCK", 11)
    monkeypatch.setattr(dataset_file, "_GATHER", 500)


def both(path: Path, monkeypatch: pytest.MonkeyPatch, **options) -> tuple[Dataset, Dataset]:
    held = load(path, **options)
    with monkeypatch.context() as patch:
        patch.setattr(checks, "IN_MEMORY", 0)
        return held, load(path, **options)


# ------------------------------------------------------------------------------------------------------ rows


@given(st.integers(1, 12), st.data())
def test_a_view_is_numpy_s_indexing(n: int, draw: st.DataObject) -> None:
    array = np.arange(3 * n).reshape(n, 3)
    index = st.integers(-n - 2, n + 2)
    step = st.sampled_from([None, 1, 2, -1, -3])
    slices = st.builds(slice, st.none() | index, st.none() | index, step)
    rows = draw.draw(slices | st.lists(st.integers(0, n - 1), min_size=1).map(np.array))
    view, plain = Rows(array, rows, integers), array[rows]
    assert view.shape == plain.shape
    assert len(view) == len(plain)
    part = draw.draw(slices)
    np.testing.assert_array_equal(view[part].numpy(), plain[part])
    if len(plain):
        wanted = draw.draw(st.lists(st.integers(-len(plain), len(plain) - 1), min_size=1))
        np.testing.assert_array_equal(view[torch.tensor(wanted)].numpy(), plain[wanted])


@pytest.mark.parametrize("rows", [slice(2, 5), slice(9, 3, -2), np.array([3, 4, 5])])
def test_rows_beyond_the_view_are_no_rows(rows: slice | np.ndarray) -> None:
    view = Rows(np.arange(10)[:, None], rows, integers)
    for wanted in ([3], [-4]):
        with pytest.raises(IndexError):
            view[torch.tensor(wanted)]


@pytest.mark.parametrize("rows", [slice(0, 4), np.arange(4)])
def test_a_mask_is_refused(rows: slice | np.ndarray) -> None:
    with pytest.raises(DiffusionalError, match=r"rows to be int64, got torch.bool"):
        Rows(np.zeros((4, 1)), rows, reals)[torch.tensor([True, False, True, True])]


def test_what_comes_out_is_the_caller_s_own() -> None:
    array = np.zeros((4, 2))
    for rows in (slice(0, 4), np.arange(4)):
        Rows(array, rows, reals)[:2].add_(1.0)
        assert not array.any()


def test_a_tensor_is_items_and_no_stream() -> None:
    assert isinstance(torch.zeros(2, 1), Items)
    assert not isinstance(torch.zeros(2, 1), Stream)
    assert isinstance(Rows(np.zeros((4, 1)), slice(0, 2), reals), Items)


# --------------------------------------------------------------------------------- the same as in memory


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_reals_as_views(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, TABLE)
    same(*both(tmp_path / name, monkeypatch))


def test_images_as_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", train=IMAGES[:40], test=IMAGES[40:])
    same(*both(tmp_path / "a.npz", monkeypatch, levels=256))
    np.save(tmp_path / "b.npy", IMAGES.astype(">i2"))
    same(*both(tmp_path / "b.npy", monkeypatch, levels=256))


def same(held: Dataset, view: Dataset) -> None:
    assert held.space == view.space
    for split in ("train", "validation", "test"):
        raw = getattr(view, split)
        assert isinstance(getattr(held, split), torch.Tensor)
        assert isinstance(raw, Rows)
        assert raw.dtype == held.items(split).dtype
        assert torch.equal(view.tensor(split), held.tensor(split))
        assert torch.equal(view.encode(split), held.encode(split))
        assert view.fingerprint(split) == held.fingerprint(split)
        rows = torch.tensor([3, 0, 3, -1])
        assert torch.equal(view.encode(split, rows), held.encode(split)[rows])


def test_blocks_are_the_split_in_order(lazy: None, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TABLE)
    data = load(tmp_path / "a.npy")
    blocks = list(data.blocks("train", 7))
    assert [len(block) for block in blocks] == [7] * 22 + [6]
    whole = data.space.encode(data.tensor("train"))
    assert torch.equal(torch.cat(blocks), whole)
    assert torch.equal(data.encode("train"), whole)  # itself by blocks, here
    with pytest.raises(DiffusionalError, match="at least 1 item, got size=0"):
        next(data.blocks("train", 0))


class Watched:
    """Rows that remember how many were asked for at a time."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.asked = rows, []

    def __getattr__(self, name: str):
        return getattr(self.rows, name)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        items = self.rows[rows]
        self.asked.append(len(items))
        return items


def test_a_fingerprint_gathers_more_than_it_hashes_at_a_time(lazy: None, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TABLE)
    data = load(tmp_path / "a.npy")
    watched = Watched(data.items("train"))
    again = Dataset("a", data.space, watched, data.validation, data.test)
    held = Dataset("a", data.space, *(data.tensor(split) for split in ("train", "validation", "test")))
    assert again.fingerprint("train") == held.fingerprint("train")
    assert watched.asked == [18] * 8 + [16]  # 500 bytes are six blocks of three rows of 24 bytes
    watched.asked.clear()
    assert [len(block) for block in again.blocks("train", 50)] == [50, 50, 50, 10]  # never less than a block


def test_a_mapped_file_is_read_forwards(tmp_path: Path) -> None:
    """Whatever rows come, in whatever order and however often: those, and the file is asked for them in its own order."""
    np.save(tmp_path / "a.npy", TABLE)
    asked = []

    class Spy(np.memmap):
        def __getitem__(self, where):
            asked.append(where)
            return super().__getitem__(where)

    array = np.load(tmp_path / "a.npy", mmap_mode="r").view(Spy)
    rows = RNG.permutation(200)[:50]
    wanted = torch.tensor([7, 3, 3, 49, -1, 0])
    np.testing.assert_array_equal(Rows(array, rows, reals)[wanted].numpy(), TABLE[rows[wanted.numpy()]])
    np.testing.assert_array_equal(Rows(array, slice(10, 60), reals)[wanted].numpy(), TABLE[10:60][wanted.numpy()])
    assert len(asked) == 2
    for where in asked:
        assert (np.diff(where) >= 0).all()


def test_moments_are_numpy_s_whatever_the_blocks(lazy: None, tmp_path: Path) -> None:
    far = TABLE + np.array([0.0, 1e8, -1e6])  # squares minus squared means would lose all digits
    np.save(tmp_path / "a.npy", far)
    data = load(tmp_path / "a.npy")
    train = data.tensor("train").numpy()
    assert isinstance(data.space, Continuous)
    np.testing.assert_allclose(data.space.shift, train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.space.scale, train.std(0), rtol=1e-7)
    assert train.shape == (160, 3)


def test_errors_name_the_same_item(lazy: None, tmp_path: Path) -> None:
    values = TABLE.copy()
    values[123, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DiffusionalError, match=r"a.npy: item 123 \(split \w+\) has a value that is not finite"):
        load(tmp_path / "a.npy")
    levels = np.arange(200)[:, None] % 17
    levels[77] = 40
    np.save(tmp_path / "b.npy", levels)
    with pytest.raises(DiffusionalError, match=r"item 77 \(split \w+\) has a value outside .*\(values: 0 to 40\)"):
        load(tmp_path / "b.npy", levels=17)
    with pytest.raises(DiffusionalError, match=r"The largest value is 40"):
        load(tmp_path / "b.npy")


def test_an_item_that_turned_bad_is_counted_from_its_block(lazy: None) -> None:
    raw = torch.zeros(20, 3, dtype=torch.float64)
    raw[7, 0] = np.nan
    data = Dataset("d", Continuous((3,)), raw, raw, raw)
    with pytest.raises(DiffusionalError, match=r"split test, counted from item 6: .*not finite in item 1"):
        data.encode("test")


# ------------------------------------------------------------------------------------------ other processes


def total(items: Rows) -> float:
    return float(items[:].sum())


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_views_travel_to_other_processes(lazy: None, tmp_path: Path, name: str, method: str) -> None:
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, IMAGES)
    data = load(tmp_path / name, levels=256)
    assert isinstance(data.train, Rows)
    assert data.train.mapped == (name == "a.npy")
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(data.train))))
    assert torch.equal(again[:], data.train[:])
    if name == "a.npy":
        assert len(pickle.dumps(data.train)) < 2000
    script = "import pickle, sys; print(int(pickle.load(sys.stdin.buffer)[:].sum()))"
    if method == "spawn":
        sent = pickle.dumps(data.train)
        ran = subprocess.run([sys.executable, "-c", script], input=sent, capture_output=True, env=environment())
        assert int(ran.stdout) == total(data.train)
    else:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(total, (data.train,)) == total(data.train)


def test_a_file_that_is_gone(lazy: None, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TABLE)
    sent = pickle.dumps(load(tmp_path / "a.npy").train)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(DiffusionalError, match=r"a.npy does not exist any more"):
        pickle.loads(sent)


# -------------------------------------------------------------------------------------------------- memory

MEASURE = f"""
import sys
{PEAK}
from diffusional.data import load
before = peak()
data = load(sys.argv[1])
assert type(data.train).__name__ == "Rows"
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_large_array_is_held_once(tmp_path: Path, name: str) -> None:
    values = RNG.normal(size=(1_000_000, 20))
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, values)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / name)], capture_output=True, text=True, env=environment()
    )
    assert int(ran.stdout) * 1024 < 1.3 * values.nbytes, ran.stderr
