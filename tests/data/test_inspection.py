"""Inspections: each thing that is wrong is found where it is, and nothing is found in data that are as they should be."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusional.data import Dataset, inspection, load, survey
from diffusional.data import dataset as dataset_file
from diffusional.data.inspection import Inspection, inspect
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

RNG = np.random.default_rng(0)


def levels(values: np.ndarray, k: int, n: int = 1000) -> Dataset:
    raw = torch.from_numpy(np.asarray(values, np.int64))
    return Dataset("d", Discrete(tuple(raw.shape[1:]), k), raw[:n], raw[n : n + 300], raw[n + 300 :])


def reals(values: np.ndarray, labels: tuple[str, ...] = (), n: int = 1000) -> Dataset:
    raw = torch.from_numpy(values)
    space = Continuous(values.shape[1:], tuple(values[:n].mean(0).ravel()), tuple(values[:n].std(0).ravel()))
    return Dataset("r", space, raw[:n], raw[n : n + 300], raw[n + 300 :], labels)


def good_levels(k: int = 17) -> np.ndarray:
    return RNG.integers(0, k, (1600, 1, 4, 4))


def good_reals() -> np.ndarray:
    return RNG.normal(size=(1600, 3)) * [1, 10, 100] + [5, 0, -3]


def only(found: Inspection) -> str:
    (finding,) = found.findings
    return finding


# --------------------------------------------------------------------------------------------------- the record


def test_the_record_of_levels() -> None:
    data = levels(good_levels(), 17)
    found = inspect(data)
    assert found.findings == ()
    assert found.items == found.looked_at == {"train": 1000, "validation": 300, "test": 300}
    assert (found.name, found.raw_type, found.distinct, found.held, found.bytes) == (
        "d",
        "int64",
        17,
        "in memory",
        1600 * 16 * 8,
    )
    assert found.ranges == dict.fromkeys(("train", "validation", "test"), (0.0, 16.0))
    assert found.fingerprints["test"] == data.fingerprint("test")
    assert torch.equal(found.picture, data.tensor("train")[:64])
    told = json.loads(json.dumps(found.to_json()))
    assert told["space"] == data.space.to_dict()
    assert "picture" not in told
    assert {field.name for field in dataclasses.fields(found)} - set(told) == {"picture"}


def test_the_record_of_reals() -> None:
    data = reals(good_reals())
    found = inspect(data)
    assert found.findings == ()
    assert found.distinct is None
    for split, pair in found.ranges.items():
        raw = data.tensor(split)
        assert pair == (float(raw.min()), float(raw.max()))


@pytest.mark.parametrize("block", [7, 100, 2**19])
def test_moments_are_numpy_s_whatever_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_file, "_BLOCK", block)
    values = good_reals() + 1e7
    seen = survey.survey(reals(values), "train")
    np.testing.assert_allclose(seen.mean, values[:1000].mean(0), rtol=1e-13)
    np.testing.assert_allclose(seen.deviation, values[:1000].std(0), rtol=1e-9)
    np.testing.assert_array_equal(seen.columns, values[:1000])
    np.testing.assert_allclose(seen.brightness, (values[:1000].mean(1).mean(), values[:1000].mean(1).std()), rtol=1e-9)
    monkeypatch.setattr(survey, "_COLUMNS", 1200)
    np.testing.assert_array_equal(survey.survey(reals(values), "train").columns, values[:1000:3])


def test_where_train_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusional.data import checks, from_torch

    assert inspect(from_torch(list(torch.randn(400, 2)))).held == "read item by item"
    monkeypatch.setattr(checks, "IN_MEMORY", 0)
    np.save(tmp_path / "a.npy", good_reals())
    np.savez(tmp_path / "a.npz", good_reals())
    assert inspect(load(tmp_path / "a.npy")).held == "memory-mapped"
    assert inspect(load(tmp_path / "a.npz")).held == "in memory"


# ------------------------------------------------------------------------------------------------------- levels


def test_a_coarser_scale() -> None:
    assert inspect(levels(17 * good_levels(16), 256)).distinct == 16
    assert only(inspect(levels(17 * good_levels(16), 256))).startswith(
        "16 of 256 declared levels occur, all multiples of 17: these are data of 16 levels, scaled; divide them by 17 "
        "and declare levels=16"
    )
    # Rounded on the way, 17 levels leave no common step.
    finding = only(inspect(levels(np.rint(good_levels(17) * 255 / 16), 256)))
    assert finding.startswith("17 of 256 declared levels occur; if the data were scaled from fewer levels, map them")


def test_too_many_levels() -> None:
    finding = only(inspect(levels(good_levels(17), 256)))
    assert finding.startswith("17 of 256 declared levels occur, 0 to 16; declare levels=17")


def test_a_level_that_does_not_occur_is_no_finding() -> None:
    values = good_levels(17)
    values[values == 5] = 6
    assert inspect(levels(values, 17)).findings == ()


def test_constant_pixels() -> None:
    values = good_levels()
    values[:1000, 0, 1, 2:] = 3  # in train alone, as the finding says
    assert only(inspect(levels(values, 17))).startswith("2 of 16 positions never change over the train items")


def test_values_outside_the_levels() -> None:
    values = good_levels()
    values[1100, 0, 0, 0] = 20
    data = levels(values, 17)
    with pytest.raises(DiffusionalError):
        data.encode("validation")
    assert only(inspect(data)).startswith("validation has values from 0 to 20, outside the declared levels 0 … 16")


def sparse() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**31, (1600, 4))


@pytest.mark.parametrize("declared", [2**31, 2**62, 2**64])
def test_memory_does_not_grow_with_the_declared_levels(declared: int) -> None:
    values = sparse()
    tracemalloc.start()
    found = inspect(levels(values, declared))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25
    assert found.distinct == len(np.unique(values))
    # That most levels do not occur says nothing where hardly a value repeats; that models cannot tell them apart does.
    assert only(found).startswith(f"{declared} levels are declared, and float32")


def test_levels_are_counted_alike_with_and_without_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    values = 17 * good_levels(16)
    by_counters = inspect(levels(values, 256))
    monkeypatch.setattr(survey, "_COUNTED", 40)
    monkeypatch.setattr(dataset_file, "_BLOCK", 100)
    by_sorting = inspect(levels(values, 256))
    assert by_sorting.distinct == by_counters.distinct == 16
    assert by_sorting.findings == by_counters.findings


def test_more_distinct_levels_than_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_COUNTED", 0)
    monkeypatch.setattr(survey, "MOST", 10)
    monkeypatch.setattr(inspection, "MOST", 10)
    found = inspect(levels(2 * good_levels(17), 40))
    assert found.distinct == 10
    assert len(survey.survey(levels(good_levels(17), 40), "train").levels) == 10
    assert found.findings == ()  # a common step of ten levels need not be that of all


def test_levels_that_float32_tells_apart() -> None:
    assert inspect(levels(good_levels(17), 2**24)).findings[0].startswith("17 of 16777216 declared levels occur")
    told = inspect(levels(good_levels(17), 2**24 + 1)).findings
    assert told[0].startswith("16777217 levels are declared, and float32")


# --------------------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize(
    ("copy", "original", "finding"),
    [
        (7, 3, r"1 train items repeat another, such as items 3 and 7; drop"),
        (1005, 12, r"1 validation items are also in train, such as validation item 5 and train item 12; drop"),
        (1309, 999, r"1 test items are also in train, such as test item 9 and train item 999; drop"),
        (1300, 1299, r"1 test items are also in validation, such as test item 0 and validation item 299; drop"),
    ],
)
@pytest.mark.parametrize("kind", ["levels", "reals"])
def test_copies(kind: str, copy: int, original: int, finding: str) -> None:
    values = good_levels() if kind == "levels" else good_reals()
    values[copy] = values[original]
    assert only(inspect(levels(values, 17) if kind == "levels" else reals(values))).startswith(finding)


def test_copies_in_another_type_and_minus_zero() -> None:
    values = good_reals()
    values[5, 0], values[1005] = 0.0, values[5]
    values[1005, 0] = -0.0
    data = reals(values)
    assert "validation item 5 and train item 5" in only(inspect(data))
    small = levels(good_levels(), 17)
    small = dataclasses.replace(small, test=small.tensor("train")[:300].to(torch.uint8))
    assert only(inspect(small)).startswith("300 test items are also in train, such as test item 0 and train item 0")


# -------------------------------------------------------------------------------------------------------- reals


def test_columns_of_few_values() -> None:
    values = good_reals()
    values[:, 1] = np.rint(values[:, 1])
    finding = only(inspect(reals(values, ("height", "age", "weight"))))
    distinct = len(np.unique(values[:1000, 1]))
    assert finding.startswith(
        f"columns of few values among 1000 train items: 'age' ({distinct} distinct); a density of disc"
    )
    assert "1 (" in only(inspect(reals(values)))


def test_columns_with_a_spike() -> None:
    values = good_reals()
    values[::5, 2] = 0.0
    finding = only(inspect(reals(values, ("a", "b", "c"))))
    assert finding.startswith("columns in which one value occurs often: 'c' (0 in 20%); a density of discrete values")


def images(values: np.ndarray) -> Dataset:
    wide = values.astype(np.float64)  # for the moments; what is looked at has the narrow type
    data = reals(wide)
    return dataclasses.replace(data, **{part: getattr(data, part).float() for part in ("train", "validation", "test")})


def byte_images() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (1600, 3, 4, 4))


@pytest.mark.parametrize(
    ("scaled", "grid", "index"),
    [
        (lambda x: x / 255, "multiples of 1/255", "x * 255"),
        (lambda x: x / 256, "multiples of 1/256", "x * 256"),
        (lambda x: x / 127.5 - 1, "multiples of 1/127.5, counted from -1", "(x + 1) * 127.5"),
        (lambda x: (x / 255).astype(np.float16), "multiples of 1/255", "x * 255"),
        (lambda x: 257 * x / 65535, "multiples of 1/255", "x * 255"),
        (lambda x: x, "whole numbers", "x"),
    ],
)
def test_bytes_stored_as_reals(scaled, grid: str, index: str) -> None:
    finding = only(inspect(images(scaled(byte_images()))))
    assert finding.startswith(f"all values are {grid}: these are data of 256 levels")
    assert finding.endswith(f"store np.rint({index}) as integers and declare levels=256")


def test_bytes_standardised_by_channel() -> None:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    values = (byte_images() / 255 - mean[:, None, None]) / deviation[:, None, None]
    told = inspect(images(values)).findings
    assert len(told) == 3
    for channel, finding in enumerate(told):
        assert finding.startswith(f"channel {channel} has only 256 distinct values among 16000, so they are levels")


def test_one_channel_and_one_column_of_levels() -> None:
    values = byte_images() / 255
    values[:, 2] = np.random.default_rng(3).normal(size=(1600, 4, 4))
    told = inspect(images(values)).findings
    assert [finding[:46] for finding in told] == [
        f"the values of channel {c} are multiples of 1/255"[:46] for c in (0, 1)
    ]
    table = good_reals()
    table[:, 1] = np.random.default_rng(4).integers(0, 256, 1600) / 255
    assert only(inspect(reals(table, ("a", "b", "c")))).startswith("the values of column 'b' are multiples of 1/255: ")


def test_images_of_real_numbers_are_no_finding() -> None:
    generator = np.random.default_rng(5)
    for values in (generator.normal(size=(1600, 3, 4, 4)), generator.random((1600, 3, 4, 4))):
        for kind in (np.float16, np.float32):
            assert inspect(images(values.astype(kind))).findings == ()
    # As few distinct values as bytes might have, but none of them twice.
    assert inspect(images(generator.normal(size=(1600, 1, 1, 1)).astype(np.float32))).findings == ()


def test_outliers() -> None:
    values = good_reals()
    values[1500, 1] = -700.0
    finding = only(inspect(reals(values)))
    assert finding.startswith(
        "test has values more than 20 standard deviations from the train mean in 1 of 3 positions"
    )
    mean, deviation = values[:1000, 1].mean(), values[:1000, 1].std()
    assert f"farthest {(700 + mean) / deviation:.0f} at" in finding
    assert "at 1;" in finding


def test_values_that_are_not_finite() -> None:
    raw = torch.from_numpy(good_reals())
    bad = raw[1300:].clone()
    bad[4, 1], bad[5, 0] = np.nan, np.inf
    data = Dataset("r", Continuous((3,), (5.0, 0.0, -3.0), (1.0, 10.0, 100.0)), raw[:1000], raw[1000:1300], bad)
    assert only(inspect(data)).startswith("test has 2 values that are not finite; correct or drop")


# ------------------------------------------------------------------------------------------------------- splits


def test_small_splits() -> None:
    values = good_levels()
    data = levels(values[:1399], 17)
    assert only(inspect(data)).startswith("test has 99 items; with fewer than 100")
    assert inspect(levels(values[:1400], 17)).findings == ()


def test_splits_that_differ() -> None:
    values = good_reals()
    values[1300:, 2] += 150.0
    finding = only(inspect(reals(values)))
    assert finding.startswith("the mean at 2 differs by 1.")
    assert "between train and test" in finding
    images = good_levels()
    images[1000:1300] = np.minimum(images[1000:1300] + 4, 16)
    finding = only(inspect(levels(images, 17)))
    assert finding.startswith("the mean of an item differs by ")
    assert "between train and validation" in finding


# ------------------------------------------------------------------------------------------------- large, streamed


def test_large_splits_are_sampled_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "ALL", 1000 * 16 * 8 - 1)
    monkeypatch.setattr(survey, "_SAMPLE", 100 * 16 * 8)
    values = good_levels()
    values[20] = values[990]
    found = inspect(levels(values, 17))
    assert found.looked_at == {"train": 100, "validation": 300, "test": 300}
    first, second = found.findings
    assert first.startswith("only some items were examined (100 of train)")
    assert "items 20 and 990" in second


def test_streams(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    values = np.random.default_rng(0).normal(size=(3000, 2))
    features = datasets.Features({"x": datasets.List(datasets.Value("float64"), length=2)})
    datasets.Dataset.from_dict({"x": values.tolist()}, features=features).to_parquet(tmp_path / "train.parquet")
    found = inspect(load(f"hf:{tmp_path}", streaming=True, holdout=200))
    assert found.held == "streamed"
    assert found.items == {"train": None, "validation": 200, "test": 200}
    assert found.looked_at["train"] == 1000
    assert only(found).startswith("only some items were examined (1000 of train)")
    np.testing.assert_array_equal(found.picture.numpy(), values[400:464])
