"""A family of one's own on the abstract class `Chain` goes through every kind of evaluation: masked bits, all of them guessed at random."""

import math

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional.evaluation import Plan, compare, evaluate
from diffusional.models.chain import Chain
from diffusional.space import binary

D, STEPS, N = 8, 50, 200


class Masked(Chain):
    """z_t shows each bit with probability 1 − t/T, and the step to z_t reveals what is masked at t + 1 only. P(bit) = `guess`."""

    space, steps, decoder_uses_network = binary((D,)), STEPS, True

    def __init__(self, guess: float = 0.5) -> None:
        super().__init__()
        self.cost = -math.log(guess)

    def masked(self, t: Tensor, noise: Tensor) -> Tensor:
        return torch.special.ndtr(noise.double()) >= 1 - t.double()[:, None] / STEPS

    def reconstruction(self, x: Tensor, noise: Tensor, condition: object = None) -> Tensor:
        return self.cost * self.masked(torch.ones(len(x)), noise).sum(1).double()

    def prior(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64)

    def level_kl(self, x: Tensor, level: Tensor, noise: Tensor, condition: object) -> Tensor:
        return self.cost * self.masked(level + 1, noise).sum(1).double() / (level + 1)

    def costs(self, x: Tensor, draws: object, condition: object = None) -> None:
        raise AssertionError("not trained here")

    def sample(self, n: int, generator: object = None, condition: object = None) -> None:
        raise AssertionError("not sampled here")


@pytest.fixture(scope="module")
def x() -> Tensor:
    return binary((D,)).encode(torch.randint(2, (N, D), generator=torch.Generator().manual_seed(0)))


TRUTH = D * math.log(2)


@pytest.mark.parametrize(
    "way", [{"draws": 3}, {"visits": 4}, {"target_error": 0.02, "unit": "nats"}, {"item_error": 1.0}]
)
def test_every_kind_of_evaluation(way: dict[str, float], x: Tensor) -> None:
    found = evaluate(Masked(), x, **way)  # type: ignore[arg-type]
    assert abs(found.nelbo.value - TRUTH) < 4 * found.nelbo.error
    assert found.reached
    assert sum(term.value for term in found.terms.values()) == pytest.approx(found.nelbo.value)


def test_two_of_the_family_compare(x: Tensor) -> None:
    found = compare(Masked(), Masked(0.4), x, 0.02, "nats")
    assert abs(found.difference.value - (TRUTH + D * math.log(0.4))) < 4 * found.difference.error


def test_a_plan_is_saved_and_knows_its_levels(x: Tensor, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = Plan.fit(Masked(), x, 500)
    plan.save(path)
    assert Plan.load(path, Masked()).sha256() == plan.sha256()

    class Shorter(Masked):
        steps = 40

    with pytest.raises(df.DiffusionalError, match="latents"):
        Plan.load(path, Shorter())
