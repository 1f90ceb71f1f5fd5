"""Values that several processes compute: each computes its share of the items, and all get the values of one process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from battery import HANGS, environment
from diffusional.errors import DiffusionalError
from diffusional.evaluation.shares import shared

# Two classes of two real numbers; a denoiser that counts the rows it has evaluated.
SCRIPT = """
import json, sys
import torch, torch.distributed as dist
import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.information import bounded, pointwise

rank, folder = int(sys.argv[1]), sys.argv[2]
if rank >= 0:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
world = exact.Labelled(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.eye(2).expand(2, 2, 2) * 0.25)
seen = []
inner = world.conditional_denoiser().module

def network(z, log_snr, c=None):
    seen.append(len(z))
    return inner(z, log_snr, c)

denoiser = df.Denoiser(network, world.conditional_denoiser().predicts)
process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0))
decoder = likelihood.GaussianLikelihood(df.Continuous((2,)), assisted=False)
model = df.DiffusionModel(process, denoiser, decoder)
x, c = world.sample_labelled(23, torch.Generator().manual_seed(0))
out = {}

def note(name, counted, **values):
    out[name] = {"counted": int(counted), "seen": sum(seen), "values": {k: torch.as_tensor(v).tolist() for k, v in values.items()}}
    seen.clear()

found = df.classify(model, x, classes=2, max_visits=16, evidence_visits=4)
note("classify", found.evaluations.sum() + found.pilot, label=found.label, nelbo=found.nelbo, visits=found.visits,
     confidence=found.confidence, evidence=found.evidence, error=found.evidence_error)
found = df.guidance_table(model, x, [0.0, 1.0, 2.0], condition=c, visits=6)
note("guidance", found.direct.network_evaluations, items=found.items, rise=[one.error for one in found.rise])
found = pointwise(model, x, c, visits=6, positions=True)
note("pointwise", found.network_evaluations, items=found.items, errors=found.errors, map=found.map, levels=found.levels,
     shuffled=found.shuffled.value)
found = bounded(model, x, c, classes=2, visits=4)
note("bounded", found.least.network_evaluations, items=found.items, least=found.least.error)
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(out, file)
if rank >= 0:
    dist.barrier()
    dist.destroy_process_group()
"""


def test_two_processes_are_one(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path)],
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (-1, 0, 1)
    ]
    for one in running:
        _, said = one.communicate(timeout=HANGS)
        assert one.returncode == 0, said
    alone, first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (-1, 0, 1))
    for name, wanted in alone.items():
        for found in (first[name], second[name]):
            assert found["counted"] == wanted["counted"], name
            for key, values in wanted["values"].items():
                np.testing.assert_allclose(found["values"][key], values, rtol=1e-5, atol=1e-5, err_msg=f"{name}: {key}")
    # Pilots that fit a plan are run by every process; everything else is shared.
    for name in ("pointwise", "bounded"):
        both = first[name]["seen"] + second[name]["seen"]
        assert both == alone[name]["seen"], name
        assert max(first[name]["seen"], second[name]["seen"]) < 0.6 * both, name
    for name in ("classify", "guidance"):
        assert max(first[name]["seen"], second[name]["seen"]) < alone[name]["seen"], name


def test_values_come_in_blocks_with_their_progress() -> None:
    calls: list[list[int]] = []
    progress: list[tuple[int, int]] = []

    def values(rows: Tensor) -> dict[str, Tensor]:
        calls.append(rows.tolist())
        return {"twice": 2 * rows.double(), "pair": rows.double()[:, None].expand(-1, 2)}

    found = shared(
        torch.tensor([4, 9, 1]),
        {"twice": (), "pair": (2,)},
        values,
        block=2,
        progress=lambda done, every: progress.append((done, every)),
    )
    assert calls == [[4, 9], [1]]
    assert progress == [(2, 3), (3, 3)]
    assert found["twice"].tolist() == [8, 18, 2]
    assert found["pair"].tolist() == [[4, 4], [9, 9], [1, 1]]


def test_a_value_that_is_not_finite_is_an_error_with_its_item() -> None:
    def values(rows: Tensor) -> dict[str, Tensor]:
        out = torch.zeros(len(rows), 3)
        out[1, 2] = torch.nan
        return {"costs": out}

    with pytest.raises(DiffusionalError, match=r"item 9 .* in column 2"):
        shared(torch.tensor([4, 9]), {"costs": (3,)}, values, about=lambda place: f" in column {place[0]}")


def test_no_items_are_no_values() -> None:
    found = shared(torch.zeros(0, dtype=torch.long), {"costs": (3,)}, lambda rows: {})
    assert found["costs"].shape == (0, 3)
