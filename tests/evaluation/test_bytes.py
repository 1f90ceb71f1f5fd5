"""The memory of an evaluation: how many bytes an item takes beside the data, from the allocations themselves."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import likelihood, schedule, space
from diffusional.evaluation import Plan, noise, provenance, visit_records
from diffusional.evaluation.visit_records import VisitRecords

SPACE = df.Discrete((1, 8, 8), levels=16)
# Bytes an item, beside the 256 of its pixels: at most this many of tensors, of which 264 are the expected costs in 32 cells and the
# decoder, and of Python's objects and NumPy's arrays. A copy of the pixels as int64 or float64 would be 512.
TENSORS, OBJECTS = 400, 120


def model() -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.linear(steps=100))
    return df.DiffusionModel(
        process, df.Denoiser(lambda z, log_snr: 0.5 * z), likelihood.DiscretizedGaussian(SPACE)
    ).eval()


def images(n: int) -> Tensor:
    return SPACE.encode(torch.randint(0, 16, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0)))


def peak_of_tensors(work: Callable[[], Any]) -> int:
    """The most bytes that torch had allocated at once on the CPU, beyond those at the start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    results: Any = profile.profiler and profile.profiler.kineto_results
    events = [one for one in results.events() if one.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def peak_of_objects(work: Callable[[], Any]) -> int:
    """The same of Python and NumPy."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.fixture(scope="module")
def sets() -> tuple[df.DiffusionModel, Plan, dict[int, Tensor]]:
    one = model()
    return one, Plan.fit(one, images(500), 200), {n: images(n) for n in (8192, 16384)}


@pytest.mark.parametrize(("peak", "limit"), [(peak_of_tensors, TENSORS), (peak_of_objects, OBJECTS)])
def test_an_item_takes_few_bytes(
    sets: Any, peak: Callable[[Callable[[], Any]], int], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the difference of two sets, so that what does not depend on their size does not count. Blocks are small, so that what a block
    takes does not hide what all items take.
    """
    for module in (space, noise, provenance, visit_records):
        monkeypatch.setattr(module, "_BLOCK", 512)
    one, plan, data = sets

    def work(n: int) -> Callable[[], Any]:
        return lambda: df.evaluate(one, data[n], target_error=0.5, plan=plan, audit=False)

    work(8192)()  # once, for what is kept between evaluations
    small, large = (peak(work(n)) for n in (8192, 16384))
    assert 0 < (large - small) / 8192 < limit


def test_visits_take_memory_of_visited_items_only(sets: Any) -> None:
    one, plan, data = sets
    records = VisitRecords(one, plan, data[8192])
    records.extend(torch.tensor([7000, 3]), torch.tensor([40, 2]))
    assert {tuple(values.shape) for values in (*records._costs.values(), records._cell)} == {(2, 40)}
    found, filled = records.parts(torch.tensor([5, 7000, 3]))
    assert filled.sum(1).tolist() == [0, 40, 2]
    other = VisitRecords(one, plan, data[8192])
    other.extend(torch.tensor([3, 5, 7000]), torch.tensor([2, 0, 40]))
    again, _ = other.parts(torch.tensor([5, 7000, 3]))
    assert torch.equal(found.cell, again.cell)
    torch.testing.assert_close(found.costs, again.costs, rtol=1e-5, atol=1e-4)
    assert not bool(found.total[0].any())
