"""Guidance of the stages of a composite model. Networks here are linear in the condition, so that guidance with weight w multiplies it by w."""

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.models.composite import Cascade, Composite, FrozenEncoder, FrozenPosterior

X, Y, W = 3, 2, 3.0


class Linear(nn.Module):
    """A z + B c, and L y for a network that is given the variable y of the stage before it; without c, or with it."""

    def __init__(self, n: int, given: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(n + 10 * given)
        parts = (n, given, 1)
        self.own, self.low, self.label = (
            nn.Parameter(0.4 * torch.randn(n, m, generator=generator, dtype=torch.float64)) for m in parts
        )

    def forward(
        self, z: Tensor, log_snr: Tensor, *, variable: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        out = z @ self.own.T
        if self.low.shape[1]:
            assert variable is not None, "the variable of the stage before it was left out"
            out = out + variable @ self.low.T
        return out if label is None else out + label @ self.label.T


def diffusion(n: int, given: int = 0) -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(-2.0, 3.0, 4))
    decoder = likelihood.GaussianLikelihood(df.Continuous((n,)), variance=0.3)
    return df.DiffusionModel(process, df.Denoiser(Linear(n, given), "data"), decoder).requires_grad_(False)


def linear(n: int, m: int) -> nn.Module:
    layer = nn.Linear(m, n)
    nn.init.constant_(layer.weight, 0.3)
    return layer.double()


def systems() -> dict[str, Composite]:
    prior, decoder = diffusion(Y), diffusion(X, Y)
    return {
        "frozen encoder": FrozenEncoder(linear(Y, X), prior, decoder, key="variable", level=2).double(),
        "frozen posterior": FrozenPosterior(linear(2 * Y, X), prior, decoder, key="variable").double(),
        "cascade": Cascade({"prior": prior, "decoder": decoder}, [linear(Y, X)], handover=1, key="variable").double(),
    }


DATA = torch.randn(5, X, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABEL = torch.randn(5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", ["frozen encoder", "frozen posterior", "cascade"])
def test_every_stage_that_takes_the_condition_is_guided_by_it_and_keeps_the_variable(name: str) -> None:
    model = systems()[name]
    guided = model.guided(W)
    noise = torch.randn(5, *model.noise_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    c, times = {"label": LABEL}, {"label": W * LABEL}
    ours, theirs = guided.terms(DATA, noise, c), model.terms(DATA, noise, times)
    for term, cost in theirs.totals().items():
        torch.testing.assert_close(ours.totals()[term], cost, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ours.nelbo, model.terms(DATA, noise, c).nelbo)
    one, other = guided.visited(), model.visited()
    level, ε = torch.tensor([1, 2, 3, 4, 5]), noise[:, : one.visit_shape[0]]
    torch.testing.assert_close(one.level_kl(DATA, level, ε, c), other.level_kl(DATA, level, ε, times))
    drawn = guided.sample(5, torch.Generator().manual_seed(3), c)
    torch.testing.assert_close(drawn, model.sample(5, torch.Generator().manual_seed(3), times))


def test_single_stages_are_guided_by_name_and_by_weights_of_their_own() -> None:
    model = systems()["frozen encoder"]
    noise = torch.randn(5, *model.noise_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    c = {"label": LABEL}

    def terms(weighted: Composite, times: float) -> dict[str, Tensor]:
        return weighted.terms(DATA, noise, {"label": times * LABEL}).totals()

    twice = model.guided(2.0, stages=["prior"]).guided(W, stages="decoder")
    of_prior, of_decoder, found = terms(model, 2.0), terms(model, W), terms(twice, 1.0)
    for term, cost in found.items():
        wanted = (of_prior if term.startswith("prior.") else of_decoder)[term]
        torch.testing.assert_close(cost, wanted, rtol=1e-10, atol=1e-10)
    # Evaluations of a guided chain are those of another model.
    assert model.identity() != twice.identity()
    result = df.evaluate(twice, DATA, visits=4, plan=df.Plan.uniform(twice), audit=False, condition=c)
    assert result.nelbo.n == 5


def test_stages_without_a_condition_are_refused() -> None:
    model = systems()["frozen encoder"]
    with pytest.raises(df.DiffusionalError, match=r"stages to guide among prior, decoder.*upsampler"):
        model.guided(2.0, stages=["upsampler"])
    none = FrozenEncoder(model.encoder, diffusion(Y), diffusion(X, Y), key="variable", conditional=())
    with pytest.raises(df.DiffusionalError, match="no stage takes a condition"):
        none.guided(2.0)
    with pytest.raises(df.DiffusionalError, match=r"requires a condition besides variable.*got variable"):
        model.guided(2.0, stages=["decoder"]).elbo(DATA)
    with pytest.raises(df.DiffusionalError, match=r"kept.*null"):
        diffusion(Y).guided(2.0, null=torch.zeros(1), kept=("variable",))
