"""The bound of every guidance weight from one table (MATH (26))."""

from typing import Any

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation.guidance import guidance_table
from diffusional.space import Discrete


def world() -> exact.Labelled:
    weights, means = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([[-1.0, 0.0], [0.3, 0.5], [1.5, -1.0]])
    return exact.Labelled(weights, means, 0.3 * torch.eye(2).expand(3, 2, 2))


def gaussian(assisted: bool, steps: int | None = None, predicts: Any = "data") -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)), assisted=assisted)
    return df.DiffusionModel(process, world().conditional_denoiser(predicts), decoder)


def levels() -> df.DiffusionModel:
    space = Discrete((1, 2, 2), 5)
    table = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1))

    def network(z: Tensor, log_snr: Tensor, c: Tensor | None = None) -> Tensor:
        return table[torch.full((len(z),), 2) if c is None else c] + 0 * z

    denoiser = df.Denoiser(network, "levels", space, "logistic")
    process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=20))
    return df.DiffusionModel(process, denoiser, likelihood.NetworkLevels(space))


def items(model: df.DiffusionModel, n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(model.space, Discrete):
        raw = torch.randint(5, (n, 1, 2, 2), generator=generator)
        return model.space.encode(raw), torch.randint(2, (n,), generator=generator)
    return world().sample_labelled(n, generator)


MODELS = {
    "decoder without network": lambda: gaussian(False, 30),
    "decoder with network": lambda: gaussian(True, 30, "noise"),
    "continuous time": lambda: gaussian(False, None, "v"),
    "levels": levels,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_table_has_the_numbers_of_the_guided_evaluations(name: str) -> None:
    model = MODELS[name]()
    x, c = items(model, 6)
    weights = (-0.5, 0.0, 1.0, 2.5)
    plan = df.Plan.fit(model, x, 300, condition=c)
    table = guidance_table(model, x, weights, condition=c, visits=5, plan=plan, seed=3)
    for w, nelbo, column in zip(weights, table.nelbo, table.items.T, strict=True):
        result = df.evaluate(model.guided(w), x, visits=5, plan=plan, condition=c, seed=3, audit=False)
        tolerance = 1e-4 if name == "levels" else 1e-8
        assert column == pytest.approx(result.per_item["nelbo"], abs=tolerance, rel=tolerance)
        assert nelbo.value == pytest.approx(result.nelbo.value, abs=tolerance, rel=tolerance)
    assert table.rise[2].value == table.rise[2].error == 0
    assert table.direct.value == pytest.approx(table.rise[1].value)


def test_both_estimates_of_the_information_cover_it() -> None:
    here = world()
    x, c = here.sample_labelled(2000, torch.Generator().manual_seed(1))
    table = guidance_table(gaussian(False), x, (0.0, 1.0, 3.0), condition=c, visits=8)
    truth = here.label_information()
    for estimate in (table.curvature, table.direct):
        error = (estimate.error**2 + estimate.item_error**2) ** 0.5
        assert abs(estimate.value - truth) < 4 * error
        assert error < 0.1 * truth
    assert table.optimum == pytest.approx(1.0, abs=0.15)
    assert table.best == 1.0
    assert abs(table.rise[2].value - 4 * truth) < 4 * (table.rise[2].error + table.rise[2].item_error)


def test_shuffled_labels_are_best_ignored() -> None:
    x, c = world().sample_labelled(1000, torch.Generator().manual_seed(1))
    shuffled = c[torch.randperm(1000, generator=torch.Generator().manual_seed(2))]
    table = guidance_table(gaussian(False), x, (0.0, 1.0), condition=shuffled, visits=6)
    assert table.direct.value < -4 * table.direct.error
    assert table.optimum is not None
    assert abs(table.optimum) < 0.2


def test_a_record_and_a_text_of_the_table() -> None:
    model = gaussian(True, 10)
    x, c = items(model, 4)
    table = guidance_table(model, x, (0.0, 2.0), condition=c, visits=2)
    record = table.to_dict()
    assert record["weights"] == [0.0, 2.0]
    assert record["optimum"] is None
    assert record["network_evaluations"] >= 2 * 4 * 2
    assert len(str(table).splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (lambda model: model.guided(2.0), {}, "guided"),
        (lambda model: model, {"visits": 1}, "visits"),
        (lambda model: model, {"weights": ()}, "weights"),
        (lambda model: model, {"weights": (float("nan"),)}, "finite.*nan"),
        (lambda model: model, {"condition": torch.zeros(3, dtype=torch.long)}, "3 rows for 4"),
    ],
)
def test_what_a_table_refuses(change: Any, options: dict[str, Any], match: str) -> None:
    model = gaussian(True, 10)
    x, c = items(model, 4)
    with pytest.raises(DiffusionalError, match=match):
        guidance_table(change(model), x, **({"condition": c, "visits": 2} | options))


def test_a_learned_variance_and_a_network_that_needs_its_condition_are_refused() -> None:
    model = gaussian(True, 10)
    x, c = items(model, 4)
    needs = df.Denoiser(lambda z, s, c: 0 * z, "data")
    other = df.DiffusionModel(model.process, needs, model.likelihood)
    with pytest.raises(DiffusionalError, match="condition dropout"):
        guidance_table(other, x, condition=c)
    learned = df.Denoiser(lambda z, s, c=None: torch.cat([z, z], 1), "data", learns_variance=True)
    with pytest.raises(DiffusionalError, match="learned"):
        guidance_table(df.DiffusionModel(model.process, learned, model.likelihood, "learned"), x, condition=c)
