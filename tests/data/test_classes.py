"""Class labels from every kind of file, aligned with their items through splits, subsets and scoring."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

import diffusional as df
from diffusional.data.classes import Labels, conditions
from diffusional.data.dataset import Dataset
from diffusional.data.splits import Part
from diffusional.errors import DiffusionalError
from diffusional.training.build import build_dataset
from diffusional.training.config import Config, DataConfig

N = 60
KINDS = ("cat", "cow", "dog")


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


# Every item states its own label: the mean of its values over 20 is the number of its class.


def images(n: int = N, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(n + first).permutation(np.arange(n) % 3)
    values = 20 * labels[:, None, None] + np.arange(n)[:, None, None] % 7 + np.zeros((1, 6, 5))
    return values.astype(np.uint8), labels


def stated(raw: Tensor) -> list[int]:
    return (raw.flatten(1)[:, 0] // 20).long().tolist()


def npz(folder: Path) -> str:
    x, y = images()
    np.savez(folder / "a.npz", x=x, y=y[:, None])
    return str(folder / "a.npz")


def npz_by_split(folder: Path) -> str:
    (x, y), (u, v) = images(), images(12, 1)
    np.savez(folder / "a.npz", train=x, train_labels=y, test=u, test_labels=v)
    return str(folder / "a.npz")


def one_idx(folder: Path) -> str:
    x, y = images()
    (folder / "some-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
    (folder / "some-labels-idx1-ubyte").write_bytes(idx(y))
    return str(folder / "some-images-idx3-ubyte.gz")


def mnist(folder: Path) -> str:
    for stem, (x, y) in (("train", images()), ("t10k", images(9, 1))):
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(x))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(y)))
    return str(folder)


def pictures(folder: Path) -> str:
    for i, (x, y) in enumerate(zip(*images(), strict=True)):
        (folder / KINDS[y]).mkdir(exist_ok=True)
        Image.fromarray(x).save(folder / KINDS[y] / f"{i}.png")
    return str(folder)


def pictures_by_split(folder: Path) -> str:
    for split, (x, y) in (("train", images()), ("test", images(9, 1))):
        for i, (one, label) in enumerate(zip(x, y, strict=True)):
            place = folder / "images" / split / KINDS[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(one).save(place / f"{i}.png")
    return str(folder)


def rows() -> tuple[np.ndarray, np.ndarray]:
    x, y = images()
    return x.reshape(N, -1)[:, :2] + np.random.default_rng(0).random((N, 2)), y


def csv(folder: Path) -> str:
    x, y = rows()
    lines = [f"{a},{KINDS[label]},{b}" for (a, b), label in zip(x, y, strict=True)]
    (folder / "a.csv").write_text("\n".join(["one,label,two", *lines]) + "\n")
    return str(folder / "a.csv")


def parquet(folder: Path) -> str:
    x, y = rows()
    table = {"one": x[:, 0], "label": pa.array([KINDS[i] for i in y]).dictionary_encode(), "two": x[:, 1]}
    pq.write_table(pa.table(table), folder / "a.parquet")
    return str(folder / "a.parquet")


def parts_of_a_table(folder: Path) -> str:
    for split in ("train", "test"):
        (folder / split).mkdir()
        csv(folder / split)
    return str(folder)


FILES: dict[Callable[[Path], str], dict[str, Any]] = {
    npz: {"levels": 256},
    npz_by_split: {"levels": 256},
    one_idx: {"levels": 256},
    mnist: {"levels": 256},
    pictures: {},
    pictures_by_split: {},
    csv: {},
    parquet: {},
    parts_of_a_table: {},
}


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_labels_are_those_of_their_items_in_every_split(make: Callable[[Path], str], tmp_path: Path) -> None:
    name = make(tmp_path)
    data = df.data.load(name, condition="label", seed=3, **FILES[make])
    named = make in (pictures, pictures_by_split, csv, parquet, parts_of_a_table)
    assert data.classes == (KINDS if named else ("0", "1", "2"))
    for split in ("train", "validation", "test"):
        condition = data.condition_of(split)
        assert condition.dtype == torch.int64
        assert condition.tolist() == stated(data.tensor(split))
    assert data.arguments is not None
    assert data.arguments["condition"] == "label"
    # The items are the same, in the same order, as without labels.
    given = FILES[make] | ({"columns": ("one", "two")} if "one" in data.labels else {})
    plain = df.data.load(name, seed=3, **given)
    assert plain.condition is None
    assert plain.classes == ()
    assert [plain.fingerprint(split) for split in ("train", "test")] == [
        data.fingerprint(split) for split in ("train", "test")
    ]


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_a_file_to_score_has_its_labels_in_the_file_s_order(make: Callable[[Path], str], tmp_path: Path) -> None:
    name = make(tmp_path)
    data = df.data.load(name, condition="label", **FILES[make])
    # The model's classes may have another order than the file's.
    classes = data.classes[::-1]
    found = df.data.read(name, data.space, names=data.labels, condition="label", classes=classes)
    assert found.condition is not None
    raw = torch.cat([items[:] for items in found.items.values()])
    assert (2 - found.condition).tolist() == stated(raw)
    with pytest.raises(DiffusionalError, match=r"row .*label .*none of the classes"):
        df.data.read(name, data.space, names=data.labels, condition="label", classes=data.classes[:2])
    with pytest.raises(DiffusionalError, match="condition=None"):
        df.data.read(name, data.space, names=data.labels, classes=classes)


def test_digits_and_their_warped_copies() -> None:
    from sklearn.datasets import load_digits

    data = df.data.load("digits", condition="label")
    assert data.condition_of("test").tolist() == load_digits().target[1350:].tolist()
    warped = build_dataset(DataConfig(condition="label", warps=2))
    assert warped.condition_of("train").tolist() == data.condition_of("train").repeat(4).tolist()
    assert warped.tensor("train")[1000:1003].equal(data.tensor("train")[:3])


def test_a_subset_takes_conditions_and_origins_along(tmp_path: Path) -> None:
    data = df.data.load(npz(tmp_path), condition="label", levels=256)
    order = torch.randperm(len(data.tensor("train")), generator=torch.Generator().manual_seed(0))[:20]
    origin = data.origin("train")
    assert origin is not None
    for chosen in (order, slice(3, 17, 2), data.condition_of("train") == 1):
        some = data.subset("train", chosen)
        index = torch.arange(len(origin))[chosen]
        assert (
            some.condition_of("train").tolist()
            == stated(some.tensor("train"))
            == data.condition_of("train")[index].tolist()
        )
        kept = some.origin("train")
        assert kept is not None
        assert kept.rows().tolist() == origin.rows()[index.numpy()].tolist()
        assert some.condition_of("test").equal(data.condition_of("test"))
        assert some.arguments is None
        assert some.condition_hash("train") != data.condition_hash("train")
    with pytest.raises(DiffusionalError, match="empty"):
        data.subset("train", torch.zeros(0, dtype=torch.int64))


def test_items_cannot_be_exchanged_under_their_labels(tmp_path: Path) -> None:
    data = df.data.load(npz(tmp_path), condition="label", levels=256)
    train = data.tensor("train").flip(0)
    with pytest.raises(DiffusionalError, match=r"train.*condition.*subset"):
        replace(data, train=train)
    assert data.condition is not None
    both = replace(data, train=train, condition=dict(data.condition) | {"train": data.condition_of("train").flip(0)})
    assert both.condition_of("train").tolist() == stated(both.tensor("train"))
    with pytest.raises(DiffusionalError, match=r"rows for \d+ items"):
        replace(data, train=train[:5], condition=dict(data.condition))
    plain = data.without_condition()
    assert plain.condition is None
    assert plain.arguments is not None
    assert plain.arguments["condition"] is None
    assert plain.fingerprint("train") == data.fingerprint("train")


@pytest.mark.parametrize(
    ("condition", "match"),
    [
        (torch.tensor([0, 1, 3]), "label 3"),
        (torch.tensor([0, -1, 1]), "label -1"),
        (torch.tensor([0.0, 1.0, 1.0]), "float32"),
        (torch.tensor([0, 1]), "2 rows for 3 items"),
        (torch.zeros(3, 1, dtype=torch.int64), r"\(3, 1\)"),
        ({"label": torch.zeros(3, dtype=torch.int64)}, "dict"),
    ],
)
def test_labels_that_are_none_are_refused(condition: Any, match: str) -> None:
    raw = torch.arange(6).reshape(3, 2)
    good = torch.tensor([0, 1, 1])
    given = {"train": good, "validation": good, "test": condition}
    with pytest.raises(DiffusionalError, match=match):
        Dataset("six", df.Discrete((2,), 6), raw, raw, raw, condition=given, classes=("a", "b", "c"))


def test_any_condition_may_travel_with_items() -> None:
    raw = torch.arange(6).reshape(3, 2)
    one = {"text": torch.randn(3, 4, 2), "score": torch.rand(3)}
    data = Dataset(
        "six", df.Discrete((2,), 6), raw, raw, raw, condition=dict.fromkeys(("train", "validation", "test"), one)
    )
    some = data.condition_of("train", torch.tensor([2, 0]))
    assert some["text"].equal(one["text"][[2, 0]])
    assert (
        len({data.condition_hash("train"), data.subset("train", torch.tensor([1, 0, 2])).condition_hash("train")}) == 2
    )
    broken = one | {"score": torch.tensor([0.0, float("nan"), 1.0])}
    with pytest.raises(DiffusionalError, match=r"'score'.*NaN.*row 1"):
        Dataset("six", data.space, raw, raw, raw, condition=dict.fromkeys(("train", "validation", "test"), broken))
    with pytest.raises(DiffusionalError, match="condition must be a dict with train"):
        replace(data, condition={"train": one})


def save(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "a.npz")


X, Y = images()


@pytest.mark.parametrize(
    ("arrays", "condition", "match"),
    [
        ({"x": X}, "label", "no such labels.*x"),
        ({"x": X, "y": Y[:-1]}, "label", "59 labels for 60 items"),
        ({"x": X, "y": Y + 0.5}, "label", "row 0.*label.*whole number"),
        ({"x": X, "y": Y, "labels": Y}, "label", "one array of labels"),
        ({"x": X, "y": Y}, "fine", "no such labels"),
        ({"train": X, "test": X, "y_train": Y}, "label", "test items, got none"),
        ({"train": X, "test": X, "y_train": Y, "y_test": Y + 5}, "label", "test split.*'5', '6', '7'.*train"),
        ({"x": X, "y": np.array(["a"] * 59 + [""])}, "label", "row 59 has no label"),
    ],
)
def test_labels_of_an_archive_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], condition: str, match: str, tmp_path: Path
) -> None:
    with pytest.raises(DiffusionalError, match=match):
        df.data.load(save(tmp_path, **arrays), levels=256, condition=condition)


def test_a_key_is_chosen_by_name(tmp_path: Path) -> None:
    data = df.data.load(save(tmp_path, x=X, coarse_labels=Y, fine_labels=9 - Y), levels=256, condition="fine")
    assert data.classes == ("7", "8", "9")
    assert [9 - int(data.classes[number]) for number in data.condition_of("train")] == stated(data.tensor("train"))


def test_files_without_labels_name_what_is_missing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(DiffusionalError, match=r"a\.npy.*npz"):
        df.data.load(tmp_path / "a.npy", levels=256, condition="label")
    one_idx(tmp_path)
    (tmp_path / "some-labels-idx1-ubyte").unlink()
    with pytest.raises(DiffusionalError, match="some-labels-idx1-ubyte"):
        df.data.load(tmp_path / "some-images-idx3-ubyte.gz", levels=256, condition="label")
    with pytest.raises(DiffusionalError, match="expected 'label'"):
        df.data.load("digits", condition="species")
    for i in range(10):
        Image.fromarray(X[i]).save(tmp_path / f"{i}.png")
    (tmp_path / "flat").mkdir()
    for i in range(10):
        (tmp_path / f"{i}.png").rename(tmp_path / "flat" / f"{i}.png")
    with pytest.raises(DiffusionalError, match="one folder for each class"):
        df.data.load(tmp_path / "flat", condition="label")


def test_the_column_of_a_table_is_named(tmp_path: Path) -> None:
    name = csv(tmp_path)
    with pytest.raises(DiffusionalError, match=r"'labels'.*'label'"):
        df.data.load(name, condition="labels")
    with pytest.raises(DiffusionalError, match="columns"):
        df.data.load(name, condition="label", columns=("one", "label"))
    text = (tmp_path / "a.csv").read_text().replace(",cat,", ",,", 1)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DiffusionalError, match=r"row \d+ has no label"):
        df.data.load(name, condition="label")


def test_a_hub_column_of_classes_keeps_its_declared_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["zebra", "cow", "ant", "never"]
    features = datasets.Features(
        {"x": datasets.Array2D((6, 5), "uint8"), "kind": datasets.ClassLabel(names=names), "n": datasets.Value("int64")}
    )
    made = datasets.Dataset.from_dict({"x": X.tolist(), "kind": Y.tolist(), "n": list(range(N))}, features=features)
    made.to_parquet(tmp_path / "train.parquet")
    name = f"hf:{tmp_path}"
    data = df.data.load(name, levels=256, column="x", condition="label")
    assert data.classes == tuple(names)
    assert data.condition_of("test").tolist() == stated(data.tensor("test"))
    by_name = df.data.load(name, levels=256, column="x", condition="kind")
    assert by_name.condition_hash("train") == data.condition_hash("train")
    with pytest.raises(DiffusionalError, match=r"'sort'.*kind \(ClassLabel"):
        df.data.load(name, levels=256, column="x", condition="sort")


def test_names_are_merged_over_files_and_classes_without_items_left_out() -> None:
    array, other = np.zeros((4, 2)), np.zeros((2, 2))
    train = Part(array, np.array([3, 1, 0]), "a", targets=Labels.of(["b", "a", "z", "b"], "a"))
    test = Part(other, slice(0, 2), "b", targets=Labels.of(["b", "b"], "b"))
    condition, classes = conditions({"train": train, "test": test})
    assert classes == ("a", "b")  # z is of no item
    assert condition is not None
    assert {split: one.tolist() for split, one in condition.items()} == {"train": [1, 0, 1], "test": [1, 1]}


def test_the_config_says_where_labels_are_and_old_configs_load() -> None:
    config = Config(data=DataConfig(condition="label"))
    assert Config.from_dict(config.to_dict()) == config
    old = Config().to_dict()
    del old["data"]["condition"]
    assert Config.from_dict(old) == Config()
    with pytest.raises(DiffusionalError, match=r"data\.condition"):
        DataConfig(condition="")
    streamed = Config(data=DataConfig("hf:a/b", condition="label", streaming=True))
    assert Config.from_dict(streamed.to_dict()) == streamed


class Animals(torch.utils.data.Dataset):
    """Pairs of an image and the number of its class, as in torchvision; the names of the classes are known."""

    classes = ("ant", "bee", "cow")

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.from_numpy(X[row]), int(Y[row])


def test_labels_of_a_data_set_of_pytorch() -> None:
    data = df.data.from_torch(Animals(), levels=256, condition=1, seed=2)
    assert data.classes == Animals.classes
    for split in ("train", "validation", "test"):
        assert data.condition_of(split).tolist() == stated(data.tensor(split))
    with pytest.raises(DiffusionalError, match="train item 0 has no label at 2"):
        df.data.from_torch(Animals(), levels=256, condition=2)
    dicts = [{"x": torch.from_numpy(x), "y": KINDS[y]} for x, y in zip(X, Y, strict=True)]
    named = df.data.from_torch(dicts[:40], test=dicts[40:], levels=256, key="x", condition="y")
    assert named.classes == KINDS
    assert named.condition_of("test").tolist() == stated(named.tensor("test")) == Y[40:].tolist()


def test_captions_beside_labels_are_not_labels(tmp_path: Path) -> None:
    """Of several arrays with a row for each item, the one with a name of labels is taken."""
    y = np.arange(40) % 3
    np.savez(tmp_path / "a.npz", x=np.arange(40)[:, None] % 5, label=y, captions=np.array([f"a {i}" for i in y]))
    data = df.data.load(tmp_path / "a.npz", 5, condition="label")
    origin = data.origin("test")
    assert origin is not None
    assert data.condition_of("test").tolist() == y[origin.rows()].tolist()
    assert df.data.load(tmp_path / "a.npz", 5, condition="caption").captions_of("test")[0] == f"a {y[origin.rows()[0]]}"
