"""`data.read`: all items of a file in its order, in the space of a model, and where each item came from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusional import data
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete, Space

PLANE = Continuous((2,), (30.0, 1000.0), (10.0, 100.0))


def table(path: Path, header: str, rows: list[list[float]]) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_one_item_is_enough_and_a_column_may_be_constant(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", [[40.0, 900.0]])
    np.save(tmp_path / "flat.npy", [[30.0, 1000.0], [30.0, 1100.0]])
    assert data.read(tmp_path / "one.npy", PLANE).encode().tolist() == [[1.0, -1.0]]
    assert data.read(tmp_path / "flat.npy", PLANE).encode().tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_items_are_in_the_files_order_with_their_rows(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1000, 2))
    np.save(tmp_path / "a.npy", values)
    items = data.read(tmp_path / "a.npy", PLANE)
    assert torch.equal(items.encode(), PLANE.encode(torch.from_numpy(values)))
    columns = items.columns()
    assert columns["row"].tolist() == list(range(1000))
    assert set(columns["source"]) == {"a.npy"}
    assert set(columns["split"]) == {"all"}


def test_splits_that_the_file_has_are_kept(tmp_path: Path) -> None:
    parts = {"test": np.full((2, 2), 2.0), "train": np.full((3, 2), 1.0)}
    np.savez(tmp_path / "a.npz", **parts)
    items = data.read(tmp_path / "a.npz", Continuous((2,)))
    assert items.columns()["split"].tolist() == ["train"] * 3 + ["test"] * 2
    assert items.columns()["row"].tolist() == [0, 1, 2, 0, 1]
    assert items.encode()[:, 0].tolist() == [1, 1, 1, 2, 2]
    only = data.read(tmp_path / "a.npz", Continuous((2,)), split="test")
    assert only.encode()[:, 0].tolist() == [2, 2]
    with pytest.raises(DiffusionalError, match=r"validation.*has train, test"):
        data.read(tmp_path / "a.npz", Continuous((2,)), split="validation")


def test_images_are_known_by_their_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for i in (2, 0, 1):
            Image.new("L", (4, 4), 10 * i + (split == "test")).save(tmp_path / split / f"{i}.png")
    items = data.read(tmp_path, Discrete((1, 4, 4), 256))
    names = [f"{split}/{i}.png" for split in ("train", "test") for i in range(3)]
    assert items.columns()["source"].tolist() == names
    assert items.items["test"][:][:, 0, 0, 0].tolist() == [1, 11, 21]
    assert items.origin_of(4) == "test/1.png"


def test_a_folder_of_tables_gives_file_and_row(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "x,y", [[0, 0], [1, 1]])
    table(tmp_path / "b.csv", "y,x", [[2.5, 2]])
    items = data.read(tmp_path, Continuous((2,)))
    assert list(zip(items.columns()["source"], items.columns()["row"].tolist(), strict=True)) == [
        ("a.csv", 0),
        ("a.csv", 1),
        ("b.csv", 0),
    ]
    assert items.encode()[2].tolist() == [2.0, 2.5]


def test_a_dataset_knows_the_rows_of_its_splits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    np.save(tmp_path / "a.npy", values)
    dataset = data.load(tmp_path / "a.npy", seed=3)
    for split in ("train", "validation", "test"):
        origin = dataset.origin(split)
        assert origin is not None
        assert np.array_equal(values[origin.rows()], dataset.tensor(split).numpy())
    shuffled = replace(dataset, test=dataset.tensor("test").flip(0))
    assert shuffled.origin("test") is None
    assert shuffled.arguments is None
    assert dataset.arguments is not None
    again = data.load(**dataset.arguments)
    assert again.fingerprint("test") == dataset.fingerprint("test")


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_columns_are_matched_by_name(tmp_path: Path, kind: str) -> None:
    rows = [[900.0, 40.0], [1100.0, 20.0]]
    path = tmp_path / f"swapped.{kind}"
    if kind == "csv":
        table(path, "weight,age", rows)
    else:
        np.savez(path, samples=np.array(rows), columns=np.array(["weight", "age"]))
    items = data.read(path, PLANE, names=("age", "weight"))
    assert items.encode().tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert items.labels == ("age", "weight")
    assert not items.notes


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("age,height", "'weight' is missing.*'height' is not among them"),
        ("age,wieght", "Rename 'wieght' to 'weight'"),
        ("age,weight,label", "'label' is not among them"),
        ("age", "'weight' is missing"),
    ],
)
def test_other_columns_are_refused_by_name(tmp_path: Path, header: str, said: str) -> None:
    path = table(tmp_path / "new.csv", header, [[1.0] * len(header.split(","))])
    with pytest.raises(DiffusionalError, match=f"'age', 'weight'.*{said}"):
        data.read(path, PLANE, names=("age", "weight"))


def test_further_columns_are_left_out_when_the_others_are_chosen(tmp_path: Path) -> None:
    path = table(tmp_path / "new.csv", "label,weight,age", [[7.0, 900.0, 40.0]])
    items = data.read(path, PLANE, names=("age", "weight"), columns=("weight", "age"))
    assert items.encode().tolist() == [[1.0, -1.0]]


def test_unknown_names_are_said(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", [[40.0, 900.0]])
    (note,) = data.read(tmp_path / "a.npy", PLANE, names=("age", "weight")).notes
    assert "'age', 'weight'" in note
    path = table(tmp_path / "new.csv", "a,b", [[40.0, 900.0]])
    items = data.read(path, PLANE)
    assert "'a', 'b'" in items.notes[0]
    assert items.encode().tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("values", "space", "said"),
    [
        (np.zeros((2, 3)), PLANE, r"shape \(2,\).*got \(3,\)"),
        (np.array([[0.0, 1], [np.nan, 1]]), PLANE, "row 1 has a value that is not finite"),
        (np.array([[0, 1]]), PLANE, "real values"),
        (np.array([[0.0, 0.5]]), Discrete((2,), 4), "row 0 has a fraction.*0 … 3"),
        (np.array([[0, 1], [0, 4]]), Discrete((2,), 4), "row 1 has a value outside the 4 levels"),
        (np.array([[True, False]]), Discrete((2,), 4), "4 levels.*got 2"),
        (np.zeros((0, 2)), PLANE, "no items"),
    ],
)
def test_items_that_are_not_of_the_space_are_refused(
    tmp_path: Path, values: np.ndarray, space: Space, said: str
) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DiffusionalError, match=said):
        data.read(tmp_path / "a.npy", space)


def test_whole_floats_are_levels_and_images_have_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0.0, 3.0]]))
    assert data.read(tmp_path / "a.npy", Discrete((2,), 4)).encode().tolist() == [[-1.0, 1.0]]
    (tmp_path / "images").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DiffusionalError, match=r"17 levels.*got 256"):
        data.read(tmp_path / "images", Discrete((1, 4, 4), 17))


def test_digits_and_options_of_other_kinds() -> None:
    digits = data.load("digits")
    assert torch.equal(data.read("digits", digits.space, split="test").encode(), digits.encode("test"))
    with pytest.raises(DiffusionalError, match="size=8"):
        data.read("digits", digits.space, size=8)
    with pytest.raises(DiffusionalError, match=r"mine.*Python"):
        data.load("python:mine")


def test_names_of_another_number_of_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", samples=np.zeros((3, 2)), columns=np.array(["x", "y", "z"]))
    with pytest.raises(DiffusionalError, match="3 column names"):
        data.load(tmp_path / "a.npz")


def test_torch_items_know_their_rows() -> None:
    dataset = data.from_torch([torch.tensor([i, 1]) for i in range(10)], levels=10)
    origin = dataset.origin("test")
    assert origin is not None
    assert origin.rows().tolist() == dataset.tensor("test")[:, 0].tolist()
    assert dataset.arguments is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_scaled_levels_come_with_the_number_to_divide_by(tmp_path: Path, dtype: type) -> None:
    """Binary images stored as 0 and 255: nothing is to be mended or dropped item by item."""
    bits = np.random.default_rng(0).integers(0, 2, (20, 1, 3, 4))
    path = tmp_path / "bits.npy"
    np.save(path, (255 * bits).astype(dtype))
    with pytest.raises(DiffusionalError, match=r"0 … 1; only 0, 255 occur.* divide all values by 255"):
        data.read(path, Discrete((1, 3, 4), 2))
    np.save(path, (16 * np.random.default_rng(0).integers(0, 17, (20, 1, 3, 4)).clip(0, 15)).astype(dtype))
    with pytest.raises(DiffusionalError, match="divide all values by 16"):
        data.read(path, Discrete((1, 3, 4), 17))
    # Other values: it is not known how they came about.
    for other in (bits + 1, np.where(bits, 255, 3), -255 * bits):
        if np.issubdtype(dtype, np.signedinteger) or other.min() >= 0:
            np.save(path, other.astype(dtype))
            with pytest.raises(DiffusionalError, match="correct or drop the item"):
                data.read(path, Discrete((1, 3, 4), 2))
