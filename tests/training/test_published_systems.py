"""unCLIP and Imagen at published size: their networks are built without memory, and the same systems in small take a step."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from diffusional.condition_form import ConditionForm
from diffusional.training.build import build_model
from diffusional.training.composites import noised, train_composite
from diffusional.training.config import DataConfig
from diffusional.training.published_systems import imagen, reduced, unclip

T5 = ConditionForm("tokens", (128, 4096), masked=True)


def numbers(n: int) -> ConditionForm:
    return ConditionForm("numbers", (n,), mean=(0.0,) * n, scale=(1.0,) * n)


CLIP = numbers(768)
IMAGE = df.Discrete((3, 64, 64), 256)
# By system and stage: the space and condition that its data have, and millions of parameters.
STAGES: dict[tuple[str, str], tuple[df.Discrete | df.Continuous, ConditionForm, float]] = {
    ("imagen", "base"): (IMAGE, T5, 3083),
    ("imagen", "middle"): (df.Discrete((3, 256, 256), 256), ConditionForm("image", (3, 64, 64)), 475),
    ("imagen", "last"): (df.Discrete((3, 1024, 1024), 256), ConditionForm("image", (3, 256, 256)), 429),
    ("unclip", "encoder"): (IMAGE, CLIP, 228),
    ("unclip", "prior"): (df.Continuous((319,)), CLIP, 216),
    ("unclip", "decoder"): (IMAGE, numbers(319), 564),
}
SLOW = [pytest.param(*key, marks=pytest.mark.slow) if key[1] == "base" else key for key in STAGES]


@pytest.mark.parametrize(("system", "stage"), SLOW)
def test_the_networks_have_their_published_size(system: str, stage: str) -> None:
    space, form, millions = STAGES[system, stage]
    config = noised({"imagen": imagen, "unclip": unclip}[system]())[stage]
    with torch.device("meta"):
        model = build_model(config, space, (), form)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Forty noisy images in MNIST's four files."""
    folder, rng = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    for prefix, n in (("train", 40), ("t10k", 8)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes())
        labels = bytes(i % 10 for i in range(n))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels)
    return folder


@pytest.mark.parametrize(("make", "form"), [(imagen, "tokens"), (unclip, "pooled")])
def test_a_dry_step_of_every_stage(make: Any, form: Any, mnist: Path, tmp_path: Path) -> None:
    data = DataConfig(name=str(mnist), levels=256, condition="caption", text_form=form)
    config = reduced(make(), data)
    for name, stage in make().stages.items():
        small = config.stages[name]
        assert (small.model.kind, small.model.network) == (stage.model.kind, stage.model.network)
        assert (small.objective, small.model.variance) == (stage.objective, stage.model.variance)
    model = train_composite(config, tmp_path / "run", console=Console(quiet=True))
    run = df.load_run(tmp_path / "run")
    result = run.evaluate(visits=2, plan=df.Plan.uniform(model), audit=False)
    assert {term.partition(".")[0] for term in result.terms} == set(model.stages)
    assert bool(torch.isfinite(result.per_item["nelbo"]).all())
