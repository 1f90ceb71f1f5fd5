"""Evaluation noise: whose it is, and the two errors that it leaves, against closed forms."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from battery import F64, close, float64, plain_alpha, plain_sigma, randn
from diffusional import schedule
from diffusional.evaluation.evaluation import evaluate
from diffusional.evaluation.noise import item_keys, stream
from diffusional.evaluation.plan import Plan
from diffusional.forward import GaussianDiffusion
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import GaussianLikelihood
from diffusional.space import Continuous

FIRST, LAST, D, N = -8.0, 4.0, 3, 400
X = randn(N, D)


class Off(nn.Module):
    """Told x, it returns (1 + noisy) ε + by x (+ drift · u): so ‖ε − ε̂‖² = ‖noisy ε + by x + drift u‖²."""

    def __init__(self, noisy: float = 0.0, by: float = 0.0, drift: float = 0.0) -> None:
        super().__init__()
        self.noisy, self.by, self.drift = noisy, by, drift

    def forward(self, z: Tensor, log_snr: Tensor, x: Tensor) -> Tensor:
        gamma = -log_snr[:, None]
        noise = (z - plain_alpha(gamma) * x) / plain_sigma(gamma)
        return (1 + self.noisy) * noise + self.by * x + self.drift * (gamma - FIRST) / (LAST - FIRST)


def _model(module: Off, steps: int | None) -> DiffusionModel:
    process = GaussianDiffusion(schedule.log_snr_linear(FIRST, LAST, steps))
    return DiffusionModel(process, Denoiser(module), GaussianLikelihood(Continuous((D,))))


@pytest.mark.parametrize(("draws", "steps"), [(8, 7), (8, None), (1, 7), (1, 8), (1, None)])
def test_the_value_and_both_errors_in_closed_form(draws: int, steps: int | None) -> None:
    """‖c ε + b x‖² has the mean c² D + b² ‖x‖² and the variance 2 c⁴ D + 4 b² c² ‖x‖², at every level and at z_1."""
    c, b = 0.5, 0.3
    levels = 6 if steps is None else steps - 1
    result = evaluate(_model(Off(c, b), steps), X, seed=3, draws=draws, cells=levels, condition=X)
    squares = X.square().sum(1)
    mean, variance = c**2 * D + b**2 * squares, 2 * c**4 * D + 4 * b**2 * c**2 * squares
    step = (LAST - FIRST) / levels
    weight = 0.5 * (step if steps is None else math.expm1(step))
    kl = levels * weight * mean
    reconstruction = 0.5 * D * (math.log(2 * math.pi) + FIRST) + 0.5 * mean
    alpha2, sigma2 = plain_alpha(LAST) ** 2, plain_sigma(LAST) ** 2
    prior = 0.5 * (alpha2 * squares + D * (sigma2 - 1 - math.log(sigma2)))
    nelbo = kl + reconstruction + prior
    assert abs(result.nelbo.value - float(nelbo.mean())) < 4 * result.nelbo.error
    for name, term in {"kl": kl, "reconstruction": reconstruction}.items():
        assert abs(result.terms[name].value - float(term.mean())) < 4 * result.terms[name].error
    assert abs(float(result.levels_kl.sum()) - float(kl.mean())) < 4 * result.terms["kl"].error
    close(float64(result.terms["prior"].value), float(prior.mean()))
    # z_1 is drawn four times a sweep. Of an odd number of levels, one counts twice, upward.
    counted = levels + levels % 2 if draws == 1 else levels
    monte_carlo = counted * weight**2 * variance / draws + 0.25 * variance / (4 * draws)
    assert result.nelbo.error == pytest.approx(math.sqrt(float(monte_carlo.sum())) / N, rel=0.1)
    assert result.terms["reconstruction"].error == pytest.approx(
        math.sqrt(float(0.25 * variance.sum()) / (4 * draws)) / N, rel=0.1
    )
    # Every level has the same share; the odd one out has the whole of its pair's.
    share = weight * math.sqrt(float(variance.sum()) / draws) / N * torch.ones(levels, dtype=F64)
    if counted > levels:
        share[-1] *= math.sqrt(2)
    assert float((result.levels_error / share - 1).abs().max()) < (0.1 if draws > 1 else 0.2)
    assert float(result.levels_error.square().sum()) == pytest.approx(result.terms["kl"].error ** 2, rel=0.1)
    # What the Monte Carlo part has too much, the spread over items lacks.
    spread = float(nelbo.var()) - (counted - levels) * weight**2 * float(variance.mean()) / draws
    assert result.nelbo.item_error == pytest.approx(math.sqrt(spread / N), rel=0.2)
    assert result.nelbo.n == N
    assert result.nelbo.network_evaluations == N * (levels + 4) * draws


def test_u_is_uniform_in_its_cell() -> None:
    """½ (γ_T − γ_1) D ∫ u² du in two cells, of which neither end nor middle gives the integral."""
    result = evaluate(_model(Off(drift=1.0), None), X, cells=2, draws=4, condition=X)
    expected = 0.5 * (LAST - FIRST) * D * torch.tensor([1 / 24, 7 / 24], dtype=F64)
    assert result.terms["kl"].error < 0.02 * result.terms["kl"].value
    assert float((result.levels_kl - expected).abs().max()) < 4 * result.terms["kl"].error


def test_an_item_s_noise_is_its_own() -> None:
    """Of another seed, item or draw it is another; of another batch, order or type of float it is the same."""
    items = float64([[0.5, 1.0], [0.25, 1.0], [0.5, 1.0]])
    keys = item_keys(items, 0)
    assert len({*keys, *item_keys(items, 1)}) == 6  # the repeated item, too, has a key for each occurrence
    assert item_keys(items[[1]], 0) == [keys[1]]
    assert item_keys(items.flip(0).float(), 0) == [keys[0], keys[1], keys[2]]
    first, again, other = (torch.from_numpy(stream(keys[0], draw).standard_normal(2000)) for draw in (0, 0, 1))
    assert first.equal(again)
    assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 4 / math.sqrt(2000)


def test_keys_without_a_condition_are_pinned() -> None:
    """Scores on fixed seeds must not change between versions, so neither may the keys of items without a condition."""
    first, second = item_keys(float64([[0.5, -1.0], [0.5, -1.0]]), 3)
    assert first.hex() == "b7b024bf402fa54f6fe614f5411e3819a2c4362d7b122911ac87461e531374a1"
    assert second.hex() == "6c756c94c269c14ad04de0a0bf149d6f8f3c9d509b2202bbf33231f0e9faded1"


@pytest.mark.parametrize("by_name", [False, True])
def test_the_condition_is_part_of_an_item_s_key(by_name: bool) -> None:
    """Equal items with different conditions have keys of their own, whatever their order; equal pairs differ by occurrence."""

    def keys(rows: list[int]) -> list[bytes]:
        index = torch.tensor(rows)
        items = float64([[0.5, 1.0]]).repeat(len(rows), 1)
        label = torch.tensor([0, 1, 2, 1])[index]
        text = torch.zeros(4, 2, 3)
        text[2, 1, 1] = 1.0
        return item_keys(items, 0, {"label": label, "text": text[index]} if by_name else label[:, None])

    zero, one, two, again = keys([0, 1, 2, 3])
    assert len({zero, one, two, again, *item_keys(float64([[0.5, 1.0]]), 0)}) == 5
    assert keys([2, 1, 0]) == [two, one, zero]
    assert keys([2]) == [two]
    assert keys([3, 1]) == [one, again]


def test_every_tensor_of_a_condition_counts_and_its_float_type_does_not() -> None:
    items = float64([[0.5, 1.0]])
    label, text = torch.tensor([3]), torch.ones(1, 2)
    every = [
        {"label": label, "text": text},
        {"label": label + 1, "text": text},
        {"label": label, "text": 2 * text},
        {"label": label, "words": text},
        {"text": text},
        text,
    ]
    assert len({item_keys(items, 0, condition)[0] for condition in every}) == len(every)
    assert item_keys(items, 0, text.double()) == item_keys(items, 0, text)
    assert item_keys(items, 0, {"text": text, "label": label}) == item_keys(items, 0, every[0])


class Shifted(nn.Module):
    """x̂ = z/2 plus what the condition says, a tensor or tensors by name."""

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | dict[str, Tensor]) -> Tensor:
        if isinstance(condition, Tensor):
            return 0.5 * z + condition
        return 0.5 * z + condition["text"].mean((1, 2))[:, None] + condition["label"][:, None]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("method", ["visits", "sweep"])
def test_scores_of_items_that_differ_in_their_condition_do_not_depend_on_the_order(method: str, by_name: bool) -> None:
    process = GaussianDiffusion(schedule.log_snr_linear(-6.0, 5.0, steps=10))
    model = DiffusionModel(process, Denoiser(Shifted(), "data"), GaussianLikelihood(Continuous((D,)), assisted=False))
    x, label = X[:1].repeat(3, 1), torch.tensor([-1.0, 0.0, 1.0])
    how: dict[str, Any] = {"visits": 4, "plan": Plan.uniform(model)} if method == "visits" else {"draws": 2}

    def scores(rows: list[int]) -> list[float]:
        own = label[torch.tensor(rows)]
        condition = {"text": torch.zeros(len(rows), 5, 2), "label": own} if by_name else own[:, None]
        result = evaluate(model, x[: len(rows)], condition=condition, **how)
        return [round(v, 6) for v in result.per_item["nelbo"].tolist()]

    first, second, third = scores([0, 1, 2])
    assert len({first, second, third}) == 3
    assert scores([2, 1, 0]) == [third, second, first]
    assert scores([2]) == [third]


@pytest.mark.parametrize("method", ["visits", "sweep"])
def test_provenance_includes_the_condition(method: str) -> None:
    process = GaussianDiffusion(schedule.log_snr_linear(-6.0, 5.0, steps=10))
    model = DiffusionModel(process, Denoiser(Shifted(), "data"), GaussianLikelihood(Continuous((D,)), assisted=False))
    how: dict[str, Any] = {"visits": 2, "plan": Plan.uniform(model)} if method == "visits" else {"draws": 2}
    ones = torch.ones(3, 1)
    named = {"text": torch.ones(3, 1, 2), "label": torch.zeros(3)}
    hashes = [
        evaluate(model, X[:3], condition=condition, **how).provenance["condition_sha256"]
        for condition in (ones, 2 * ones, named, named | {"label": torch.ones(3)}, ones.clone())
    ]
    assert len(set(hashes)) == 4
    assert hashes[4] == hashes[0]
    free = DiffusionModel(process, Denoiser(lambda z, s: 0.5 * z, "data"), GaussianLikelihood(Continuous((D,))))
    assert "condition_sha256" not in evaluate(free, X[:3], draws=2).provenance
