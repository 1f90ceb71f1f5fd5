"""Names of splits: kept apart where they are clear, refused where they are not, and never mixed."""

import pytest

from diffusional.data.naming import by_split, decisions, split_named
from diffusional.errors import DiffusionalError


def paths(*folders: str) -> list[str]:
    """Two images in each folder; names that have a dot are files."""
    return [
        name for folder in folders for name in ([folder] if "." in folder else [f"{folder}/1.png", f"{folder}/2.png"])
    ]


CLEAR = [
    ("train", "validation", "test"),
    ("Train", "Val", "TEST"),
    ("training", "", "testing"),
    ("train", "valid", "test"),
    ("train", "dev", "test"),
    ("trainset", "valset", "testset"),
    ("train2017", "val2017", "test2017"),
    ("train2014", "val2017", ""),
    ("train_images", "val_images", "test_images"),
    ("training_set", "", "test_set"),
    ("images-train", "", "images-test"),
    ("TrainImages", "", "TestImages"),
    ("trainA", "", "testA"),
    ("DIV2K_train_HR", "DIV2K_valid_HR", ""),
    ("Training Data", "Validation Data", "Testing Data"),
]


@pytest.mark.parametrize("where", ["{}", "images/{}", "a/b/{}", "{}/cat"])
@pytest.mark.parametrize("names", CLEAR)
def test_clear_names_are_kept_apart(names: tuple[str, ...], where: str) -> None:
    splits = {
        split: paths(where.format(name))
        for split, name in zip(("train", "validation", "test"), names, strict=True)
        if name
    }
    assert by_split([name for listed in splits.values() for name in listed], "d", "images") == splits


def test_splits_within_classes_are_kept_apart() -> None:
    names = paths("cat/train", "cat/test", "dog/train/a", "dog/test")
    assert by_split(names, "d", "images") == {
        "train": [name for name in names if "/train/" in name],
        "test": [name for name in names if "/test/" in name],
    }


@pytest.mark.parametrize(
    "folders",
    [
        ("cat", "dog"),
        ("train",),
        ("trainA", "trainB"),
        ("valid", "invalid"),
        ("dev", "prod"),
        ("train_station", "airport"),
        ("bullet_train", "freight_train", "trainer"),
        ("vehicles/train", "vehicles/bus", "animals/cat"),
        ("valley", "tester", "training_shoe"),
    ],
)
def test_names_that_say_nothing_of_splits(folders: tuple[str, ...]) -> None:
    assert by_split(paths(*folders), "d", "images") == {"train": paths(*folders)}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("val", "test"), "no train folder"),
        (("images/val2017", "images/test2017"), "no train folder"),
        (("test", "images"), "no train folder"),
        (("train", "test", "extra"), "images outside them, such as extra/1"),
        (("train", "test", "0.png"), r"images outside them, such as 0\.png"),
        (("train2017", "val2017", "unlabeled2017"), "outside"),
        (("a/train", "a/test", "b"), "outside"),
        (("train2014", "train2017", "val2017"), "two for one split"),
        (("train", "valid", "val"), "two for one split"),
        (("trainval", "test"), "unclear"),
        (("train", "test_dev"), "unclear"),
        (("train", "eval"), "unclear"),
        (("trainA", "trainB", "testA", "testB"), "unclear"),
        (("train", "train_extra", "val"), "unclear"),
        (("train_station", "test_tube"), "unclear"),
        (("train_1.png", "train_2.png", "test_1.png"), "begin with test, train"),
    ],
)
def test_unclear_names_are_refused(folders: tuple[str, ...], message: str) -> None:
    with pytest.raises(DiffusionalError, match=rf"^d h.*{message}"):
        by_split(paths(*folders), "d", "images")


def test_names_of_images_that_are_no_splits() -> None:
    names = ["cat_1.png", "test_1.png", "train_1.png"]
    assert by_split(names, "d", "images") == {"train": names}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a.csv", "b.csv"], {"train": ["a.csv", "b.csv"]}),
        (["train-0.csv", "train-1.csv"], {"train": ["train-0.csv", "train-1.csv"]}),
        (["train-0.csv", "train-b.csv", "test.csv"], {"train": ["train-0.csv", "train-b.csv"], "test": ["test.csv"]}),
        (["training.csv", "testing.csv"], {"train": ["training.csv"], "test": ["testing.csv"]}),
        (["train2020.csv", "test2021.csv"], {"train": ["train2020.csv"], "test": ["test2021.csv"]}),
        (["wine_train.csv", "wine_test.csv"], {"train": ["wine_train.csv"], "test": ["wine_test.csv"]}),
        (["data/train/0.csv", "data/val/0.csv"], {"train": ["data/train/0.csv"], "validation": ["data/val/0.csv"]}),
    ],
)
def test_tables_by_their_files(names: list[str], splits: dict[str, list[str]]) -> None:
    assert by_split(names, "d", "tables", files=True) == splits


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.csv", "more.csv"], r"train parts and more\.csv; name all parts by their split"),
        (["test.csv", "more.csv"], r"holds test\.csv and no train part"),
        (["strength_training.csv", "stress_test.csv"], "unclear"),
    ],
)
def test_unclear_tables_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        by_split(names, "d", "tables", files=True)


def test_links_between_splits_are_refused() -> None:
    names = paths("train", "val")
    for alias in (("test/", "train/"), ("val/3.png", "train/1.png"), ("val/more/", "train/")):
        with pytest.raises(DiffusionalError, match=f"{alias[0]} is a link to {alias[1]}.*Remove the link"):
            by_split(names, "d", "images", [alias])
    # Within a split, from outside the splits, or to the whole folder, a link only repeats what is there.
    for alias in (("train/more/", "train/"), ("latest/", "train/"), ("train/top/", ""), ("train/3.png", "train/1.png")):
        assert by_split(names, "d", "images", [alias]) == {"train": names[:2], "validation": names[2:]}


def test_the_split_that_a_name_begins_with() -> None:
    named = {
        "train": "train",
        "Validation": "validation",
        "val_1": "validation",
        "testing-3": "test",
        "train2017": "train",
    }
    assert {name: split_named(name) for name in named} == named
    assert not any(map(split_named, ("trainer", "wine_train", "eval", "contest", "", "17")))


def test_decisions_are_told() -> None:
    assert list(decisions({"train": paths("train/a", "train/b"), "test": paths("test")}, [])) == []
    assert list(decisions({"train": paths("train")}, [])) == []
    (told,) = decisions({"train": paths("d/training"), "test": ["test.png"], "validation": paths("a/val", "b/val")}, [])
    assert told == "by their names, train is d/training/ and test is test.png and validation is a/val/1.png …"
    (told,) = decisions({"train": paths("cat")}, [("all/", ""), ("x.png", "cat/1.png")])
    assert told.endswith("skipped: all (to the folder itself) and 1 more")
