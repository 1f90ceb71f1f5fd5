"""From a config to its data: every option of DataConfig reaches `load`, and what no option says is the default."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusional.data import load
from diffusional.errors import DiffusionalError
from diffusional.training.build import build_dataset
from diffusional.training.config import Config, DataConfig


def test_a_config_s_images(tmp_path: Path) -> None:
    for i in range(10):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 9, 3)).astype(np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    config = DataConfig(str(tmp_path), split_seed=4, size=3, fit="resize", grey="yes")
    expected = load(tmp_path, seed=4, size=3, fit="resize", grey=True)
    assert build_dataset(config).fingerprint("train") == expected.fingerprint("train")
    assert expected.space.shape == (1, 3, 3)
    assert build_dataset(DataConfig(str(tmp_path), grey="no")).space.shape == (3, 6, 9)
    assert build_dataset(DataConfig(str(tmp_path), size=6)).fingerprint("test") == load(tmp_path, size=6).fingerprint(
        "test"
    )


def test_a_config_s_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,c\n" + "".join(f"{i},{i * i},{-i}\n" for i in range(20)))
    config = DataConfig(str(tmp_path / "a.csv"), columns=("c", "a"))
    assert build_dataset(config).labels == ("c", "a")
    assert Config.from_dict(Config(data=config).to_dict()).data == config


def test_a_config_s_stream(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    number = datasets.List(datasets.Value("float64"), length=2)
    columns = {"x": [[float(i), i * i] for i in range(50)], "y": [[i / 2, -i] for i in range(50)]}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features({"x": number, "y": number}))
    rows.to_parquet(tmp_path / "train.parquet")
    data = build_dataset(DataConfig(f"hf:{tmp_path}", column="y", streaming=True, holdout=5))
    assert torch.equal(data.tensor("test"), torch.tensor(columns["y"][5:10], dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "expected data.size to be at least 1 pixel, got 0"),
        ({"columns": ()}, r"expected data.columns to be one or more names, got \(\)"),
        ({"holdout": 0}, "expected data.holdout to be at least 1, got 0"),
        ({"split_seed": -1}, "data.split_seed to be an integer from 0 to"),
    ],
)
def test_options_that_are_none(options: dict, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        DataConfig(**options)
