"""Data of the Hub, from local folders: the same values as the files', streamed or not; streams begin where they should."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusional.data import Dataset, hub, load, read
from diffusional.data.dataset import Items, LabelledStream, Stream
from diffusional.data.inspection import inspect
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def images(folder: Path, **splits: int) -> str:
    """Folders of 4 × 5 images; the pixel (0, 0) counts them over all splits."""
    count = 0
    for split, n in splits.items():
        for i in range(n):
            path = folder / split / "cat" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = np.full((4, 5, 3), 99, np.uint8)
            values[0, 0] = count
            Image.fromarray(values).save(path)
            count += 1
    return f"hf:{folder}"


def parquet(folder: Path, features: dict, **splits: dict) -> str:
    folder.mkdir(exist_ok=True)
    for split, columns in splits.items():
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        rows.to_parquet(folder / f"{split}.parquet")
    return f"hf:{folder}"


def numbers(items: torch.Tensor) -> list[int]:
    return items[:, 0, 0, 0].tolist()


def epoch(data: Dataset, number: int, skip: int = 0) -> list[int]:
    assert isinstance(data.train, Stream)
    return [int(item[0, 0, 0]) for item in data.train.items(number, skip)]


# ------------------------------------------------------------------------------------------------ downloaded


def test_images_and_their_splits(tmp_path: Path) -> None:
    data = load(images(tmp_path, train=6, validation=3, test=2))
    assert data.space == Discrete((3, 4, 5), levels=256)
    assert [numbers(data.tensor(split)) for split in ("train", "validation", "test")] == [
        [*range(6)],
        [6, 7, 8],
        [9, 10],
    ]
    assert data.tensor("test")[1, :, 3, 4].tolist() == [99] * 3


def test_what_is_missing_is_drawn_from_train(tmp_path: Path) -> None:
    data = load(images(tmp_path, train=20, test=2), split=(0.7, 0.2, 0.1))
    assert numbers(data.tensor("test")) == [20, 21]
    train, validation = numbers(data.tensor("train")), numbers(data.tensor("validation"))
    assert len(validation) == 4
    assert sorted(train + validation) == [*range(20)]
    assert validation != sorted(validation) or validation != [16, 17, 18, 19]


def test_images_within_parquet_and_picture_options(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (6, 4), (i, 0, 0)) for i in range(10)]
    columns = {"picture": pictures, "label": [0] * 10}
    name = parquet(tmp_path, {"picture": datasets.Image(), "label": datasets.Value("int64")}, train=columns)
    data = load(name, size=2)
    assert data.space.shape == (3, 2, 2)
    assert sorted(numbers(torch.cat([data.tensor(s) for s in ("train", "validation", "test")]))) == [*range(10)]
    assert load(name, grey=True).space.shape == (1, 4, 6)
    with pytest.raises(DiffusionalError, match=r"levels=256 for .*picture.*got levels=16"):
        load(name, levels=16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_of_one_shape(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(30, 3)).astype(dtype)
    features = {"x": datasets.List(datasets.Value(dtype), length=3), "label": datasets.Value("string")}
    columns = {"x": values.tolist(), "label": ["a"] * 30}
    name = parquet(
        tmp_path,
        features,
        train={k: v[:20] for k, v in columns.items()},
        validation={k: v[20:25] for k, v in columns.items()},
        test={k: v[25:] for k, v in columns.items()},
    )
    data = load(name)
    assert isinstance(data.space, Continuous)
    np.testing.assert_array_equal(data.tensor("train").numpy(), values[:20])
    np.testing.assert_array_equal(data.tensor("test").numpy(), values[25:])
    with pytest.raises(DiffusionalError, match=r"Options\(size=3.* for .*arrays"):
        load(name, size=3)


def test_matrices_need_levels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, (20, 5, 6)).astype(np.uint8)
    name = parquet(tmp_path, {"x": datasets.Array2D((5, 6), "uint8")}, train={"x": values}, test={"x": values[:4]})
    with pytest.raises(DiffusionalError, match=r"number of levels of these integers"):
        load(name)
    data = load(name, levels=9)
    assert data.space == Discrete((1, 5, 6), levels=9)
    np.testing.assert_array_equal(data.tensor("test")[:, 0].numpy(), values[:4])


# -------------------------------------------------------------------------------------------------- columns


def test_columns_that_could_be_several_or_none(tmp_path: Path) -> None:
    number = datasets.Value("float32")
    features = {
        "a": datasets.List(number, length=2),
        "b": datasets.List(number, length=2),
        "c": datasets.List(number),
        "d": number,
    }
    columns = {
        "a": [[1.0, i] for i in range(20)],
        "b": [[float(i), i * i] for i in range(20)],
        "c": [[1.0]] * 20,
        "d": [0.5] * 20,
    }
    name = parquet(tmp_path / "two", features, train=columns)
    with pytest.raises(
        DiffusionalError,
        match=r"several columns could contain the items; it has a \(List \(2,\)\), b .*--data.column NAME",
    ):
        load(name)
    assert load(name, column="b").space.shape == (2,)
    for column, why in (("c", "of another type"), ("zzz", "none of its columns")):
        with pytest.raises(DiffusionalError, match=rf"got '{column}', which is {why}; it has a "):
            load(name, column=column)
    name = parquet(tmp_path / "none", {"d": number}, train={"d": columns["d"]})
    with pytest.raises(
        DiffusionalError, match=r"no column can contain the items; it has d \(Value float32\).* save them as .parquet"
    ):
        load(name)


# -------------------------------------------------------------------------------------------------- streams


def test_a_stream_is_every_train_item_once_in_an_order_of_seed_and_epoch(tmp_path: Path) -> None:
    name = images(tmp_path, train=30, validation=5, test=4)
    data = load(name, streaming=True, holdout=3, seed=1)
    assert not isinstance(data.train, Items)
    assert data.space == Discrete((3, 4, 5), levels=256)
    assert numbers(data.tensor("validation")) == [30, 31, 32]
    assert numbers(data.tensor("test")) == [35, 36, 37]
    orders = [epoch(data, number) for number in (0, 1, 2)]
    assert all(sorted(order) == [*range(30)] for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    again = load(name, streaming=True, holdout=3, seed=1)
    assert epoch(again, 1) == orders[1]
    assert epoch(load(name, streaming=True, holdout=3, seed=2), 1) != orders[1]


@pytest.mark.parametrize("skip", [1, 7, 29, 30])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stream_is_taken_up_where_it_was_left(tmp_path: Path, number: int, skip: int) -> None:
    data = load(images(tmp_path, train=30, validation=5, test=4), streaming=True, holdout=3)
    assert epoch(data, number, skip) == epoch(data, number)[skip:]


def test_held_out_items_never_train(tmp_path: Path) -> None:
    data = load(images(tmp_path, train=30), streaming=True, holdout=4)
    assert numbers(data.tensor("validation")) == [0, 1, 2, 3]
    assert numbers(data.tensor("test")) == [4, 5, 6, 7]
    assert sorted(epoch(data, 0)) == [*range(8, 30)]
    data = load(images(tmp_path, train=30, test=9), streaming=True, holdout=4)
    assert numbers(data.tensor("validation")) == [0, 1, 2, 3]
    assert sorted(epoch(data, 0)) == [*range(4, 30)]
    with pytest.raises(DiffusionalError, match=r"the stream leaves no train items \(30 of train are held out\)"):
        load(images(tmp_path, train=30, test=9), streaming=True, holdout=30)


def test_a_stream_has_no_rows(tmp_path: Path) -> None:
    data = load(images(tmp_path, train=30), streaming=True, holdout=4)
    for ask in (data.encode, data.tensor, data.items):
        with pytest.raises(DiffusionalError, match=r"train is a stream"):
            ask("train")
    assert data.encode("test").shape == (4, 3, 4, 5)


def test_the_fingerprint_of_a_stream(tmp_path: Path) -> None:
    name = images(tmp_path / "a", train=30)
    prints = [
        load(name, streaming=True, holdout=n, seed=seed).fingerprint("train")
        for n, seed in ((4, 0), (4, 0), (5, 0), (4, 1))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    data = load(name, streaming=True, holdout=4)
    assert isinstance(data.train, Stream)
    assert json.loads(data.train.identity)[:2] == [name, "image"]
    assert torch.equal(data.train.head(3)[:, 0, 0, 0], torch.tensor([8, 9, 10], dtype=torch.uint8))
    assert len(data.train.head(99)) == 22


def test_streamed_arrays_are_standardised_by_their_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_HEAD", 10)
    values = np.random.default_rng(0).normal(3.0, 2.0, (40, 3))
    name = parquet(tmp_path, {"x": datasets.List(datasets.Value("float64"), length=3)}, train={"x": values.tolist()})
    data = load(name, streaming=True, holdout=5)
    assert isinstance(data.space, Continuous)
    np.testing.assert_allclose(data.space.shift, values[10:20].mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.space.scale, values[10:20].std(0), rtol=1e-12)
    assert isinstance(data.train, Stream)
    items = torch.stack(list(data.train.items(0)))
    np.testing.assert_array_equal(np.sort(items[:, 0].numpy()), np.sort(values[10:, 0]))
    assert items.dtype == data.train.dtype == torch.float64


def test_streamed_images_that_differ(tmp_path: Path) -> None:
    name = images(tmp_path, train=30)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "cat" / "020.png")
    data = load(name, streaming=True, holdout=4)
    with pytest.raises(DiffusionalError, match=r"train item 0 has 5 × 4 pixels and .*item \d+ has 9 × 9"):
        epoch(data, 0)


# ------------------------------------------------------------------------------------------------ streamed labels

NAMES = ["ant", "bee", "cow"]


def labelled(folder: Path, n: int = 40, labels: list | None = None, feature: Any = None) -> str:
    """Items (i, i², 3 i mod 7), whose class is i mod 3, with a column of texts and one of numbers besides."""
    numbers = datasets.List(datasets.Value("int64"), length=3)
    columns = {
        "x": [[i, i * i % 50, 3 * i % 7] for i in range(n)],
        "kind": [i % 3 for i in range(n)] if labels is None else labels,
        "text": [NAMES[i % 3] for i in range(n)],
        "n": list(range(n)),
    }
    kind = datasets.ClassLabel(names=NAMES) if feature is None else feature
    features = {"x": numbers, "kind": kind, "text": datasets.Value("string"), "n": datasets.Value("int64")}
    return parquet(folder, features, train=columns)


def streamed(name: str, **options: Any) -> Dataset:
    return load(name, levels=50, column="x", streaming=True, holdout=4, **options)


def test_labels_travel_with_the_items_of_a_stream(tmp_path: Path) -> None:
    name = labelled(tmp_path)
    data, plain = streamed(name, condition="label"), streamed(name)
    assert isinstance(data.train, LabelledStream)
    assert not isinstance(plain.train, LabelledStream)
    assert data.classes == tuple(NAMES)
    for split in ("validation", "test"):
        assert torch.equal(data.condition_of(split), data.tensor(split)[:, 0] % 3)
    for number, skip in ((0, 0), (1, 0), (2, 11)):
        pairs = list(data.train.pairs(number, skip))
        assert all(int(label) == int(item[0]) % 3 for item, label in pairs)
        assert [label.dtype for _, label in pairs] == [torch.int64] * (32 - skip)
        # The items are those of the stream without labels, in the same order.
        assert [item.tolist() for item, _ in pairs] == [item.tolist() for item in plain.train.items(number, skip)]
        assert [item.tolist() for item, _ in pairs] == [item.tolist() for item in data.train.items(number, skip)]
    assert data.fingerprint("train") == plain.fingerprint("train")
    assert data.head_condition(5).tolist() == (data.train.head(5)[:, 0] % 3).tolist() == [2, 0, 1, 2, 0]
    assert len(data.head_condition(99)) == 32
    assert plain.head_condition(5) is None
    assert data.without_condition().condition is None


def test_images_of_a_stream_with_labels(tmp_path: Path) -> None:
    """A folder of images by class: the class is a column of its own."""
    images(tmp_path, train=12, test=4)
    for path in sorted((tmp_path / "train" / "cat").iterdir())[::2]:
        (tmp_path / "train" / "dog").mkdir(exist_ok=True)
        path.rename(tmp_path / "train" / "dog" / path.name)
    data = load(f"hf:{tmp_path}", streaming=True, holdout=2, condition="label")
    assert data.classes == ("cat", "dog")
    assert isinstance(data.train, LabelledStream)
    pairs = list(data.train.pairs(0))
    assert len(pairs) == 10
    assert all(int(label) == 1 - int(item[0, 0, 0]) % 2 for item, label in pairs)
    assert data.condition_of("test").tolist() == [0, 0]


def test_hashes_of_streamed_labels(tmp_path: Path) -> None:
    data = streamed(labelled(tmp_path / "a"), condition="kind")
    other = streamed(labelled(tmp_path / "b", labels=[(i + 1) % 3 for i in range(40)]), condition="kind")
    for split in ("train", "validation", "test"):
        assert data.condition_hash(split) != other.condition_hash(split)
        assert data.condition_hash(split) == streamed(f"hf:{tmp_path / 'a'}", condition="label").condition_hash(split)


def test_labels_of_a_stream_that_are_refused(tmp_path: Path) -> None:
    name = labelled(tmp_path / "a")
    with pytest.raises(DiffusionalError, match=r"condition='n'.*ClassLabel.*without streaming"):
        streamed(name, condition="n")
    with pytest.raises(DiffusionalError, match=r"no column 'sort'.*kind \(ClassLabel"):
        streamed(name, condition="sort")
    data = streamed(name, condition="label")
    with pytest.raises(DiffusionalError, match=r"train is a stream, whose conditions"):
        data.condition_of("train")
    # -1 stands for an unknown class, and None for a missing value.
    for missing, place in ((-1, 9), (None, 30)):
        labels = [missing if i == place else i % 3 for i in range(40)]
        broken = streamed(labelled(tmp_path / f"{place}", labels=labels), condition="label")
        assert isinstance(broken.train, LabelledStream)
        with pytest.raises(DiffusionalError, match=r"'kind': item \d+ of epoch 0 has no label, expected 0 … 2"):
            list(broken.train.pairs(0))
    with pytest.raises(DiffusionalError, match=r"validation item 1 has no label"):
        streamed(labelled(tmp_path / "c", labels=[0, -1, *[0] * 38]), condition="label")


def test_the_labels_of_a_stream_are_counted(tmp_path: Path) -> None:
    found = inspect(streamed(labelled(tmp_path), condition="label"))
    assert found.classes is not None
    assert [found.classes[name]["train"] for name in NAMES] == [11, 10, 11]
    assert [found.classes[name]["test"] for name in NAMES] == [1, 2, 1]


# --------------------------------------------------------------------------------------------------- errors


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest, **more):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DiffusionalError, match=r'not installed; pip install "diffusional\[hub\]"'):
        load("hf:owner/name")


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"hf:no/such could not be loaded \(.*\); check the name, the config"):
        load("hf:no/such")
    with pytest.raises(DiffusionalError, match=r"hf:/no/such does not exist; give a folder, or owner/name"):
        load("hf:/no/such")
    name = images(tmp_path, train=3)
    with pytest.raises(DiffusionalError, match=r":big could not be loaded \(ValueError: BuilderConfig 'big' not found"):
        load(f"{name}:big")


def test_no_train_split(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"has no train split \(it has test\); choose another config"):
        load(images(tmp_path, test=3))


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_of_other_names_are_reported(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = images(tmp_path, train=20, test=4)
    opened = hub._open(name.removeprefix("hf:"), None, False)
    assert opened[2] == ()
    assert load(name).notes == ()

    class Builder:
        hash = "1"

        def __init__(self) -> None:
            whole = datasets.load_dataset(str(tmp_path))
            self.found = {
                "train": whole["train"],
                "valid": whole["test"],
                "val": whole["test"],
                "unsupervised": whole["train"],
            }

        def download_and_prepare(self) -> None:
            pass

        def as_dataset(self) -> dict:
            return self.found

        def as_streaming_dataset(self) -> dict:
            return {split: rows.to_iterable_dataset() for split, rows in self.found.items()}

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: Builder())
    data = load(name, streaming=streaming, holdout=2)
    (note,) = data.notes
    assert "left out splits 'val' and 'unsupervised'" in note or "left out splits 'val', 'unsupervised'" in note
    assert len(data.validation) == (2 if streaming else 4)
    if not streaming:
        found = read(name, data.space)
        assert any("'unsupervised'" in note for note in found.notes)
