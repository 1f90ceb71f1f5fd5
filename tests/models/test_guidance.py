"""Guidance as a denoiser that wraps a denoiser (MATH (26))."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.conditions import dropped, missing_rows
from diffusional.errors import DiffusionalError
from diffusional.forward import diffuse
from diffusional.models.guidance import Guided, GuidedLevels
from diffusional.models.parameterization import LevelsPrediction
from diffusional.models.rules import Clip, Threshold
from diffusional.networks import MLP, UNet, VDMUNet, ddpm_unet
from diffusional.space import Discrete

LOW, HIGH = -24.0, 24.0


def world() -> exact.Labelled:
    weights, means = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([[-1.0], [0.3], [1.5]])
    return exact.Labelled(weights, means, torch.tensor([[[0.3]], [[0.5]], [[0.2]]]))


def expected_error(world: exact.Labelled, denoiser: df.Denoiser, gamma: Tensor) -> Tensor:
    """Return E ‖x − x̂(z, c)‖² (L,) over the labelled world, by quadrature."""
    total = torch.zeros_like(gamma)
    for label, (weight, one) in enumerate(zip(world.weights, world.given, strict=True)):

        def error(z: Tensor, gamma: Tensor, label: int = label, one: exact.Gaussian = one) -> Tensor:
            x = denoiser(z, gamma, torch.full((len(z),), label)).data
            return (one.optimum(z, gamma)[0] - x).square().sum(1)

        total = total + weight * (one.mmse(gamma) + one.expectation(error, gamma))
    return total


@pytest.mark.parametrize("predicts", ["noise", "data", "v"])
@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.4, 1.0, 3.0])
def test_the_bound_of_an_optimal_denoiser_rises_by_the_square_times_the_information(
    predicts: Any, weight: float
) -> None:
    """NELBO(w) = NELBO(1) + (w − 1)² I(x; c) in continuous time."""
    here = world()
    guided = Guided(here.conditional_denoiser(predicts), weight)
    nodes, weights = np.polynomial.legendre.leggauss(160)
    gamma = torch.from_numpy(0.5 * (HIGH - LOW) * nodes + 0.5 * (HIGH + LOW))
    # d NELBO = ½ ‖x − x̂‖² SNR dγ.
    measure = torch.from_numpy(weights) * 0.5 * (HIGH - LOW) * 0.5 * torch.exp(-gamma)
    rise = (measure * (expected_error(here, guided, gamma) - here.mmse_given(gamma))).sum()
    assert float(rise) == pytest.approx(
        (weight - 1) ** 2 * here.label_information(), abs=1e-8 * (1 + (weight - 1) ** 2)
    )


@pytest.mark.parametrize("predicts", ["noise", "data", "v", "score"])
def test_the_costs_are_an_exact_quadratic_in_the_weight(predicts: Any) -> None:
    here, generator = world(), torch.Generator().manual_seed(0)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=7))
    model = df.DiffusionModel(
        process, here.conditional_denoiser(predicts), likelihood.GaussianLikelihood(df.Continuous((1,)), assisted=False)
    )
    x, c = here.sample_labelled(5, generator)
    noise = torch.randn(7, 5, 1, generator=generator, dtype=torch.float64)

    def nelbo(weight: float) -> Tensor:
        return model.guided(weight).terms(x, noise, c).nelbo

    a, b, d = nelbo(0.0), nelbo(1.0), nelbo(2.0)
    for w in (-1.0, 0.5, 4.0):
        expected = a * (1 - w) * (2 - w) / 2 + b * w * (2 - w) + d * w * (w - 1) / 2
        assert nelbo(w) == pytest.approx(expected, abs=1e-8)
    assert nelbo(1.0).equal(model.terms(x, noise, c).nelbo)
    assert nelbo(0.0).equal(model.terms(x, noise).nelbo)


def test_the_guided_bound_is_that_of_the_guided_sampler() -> None:
    """Path form and closed form agree for a guided chain: the KLs are those of the chain that is sampled (MATH (7), (8))."""
    here, generator = world(), torch.Generator().manual_seed(0)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-4.0, 5.0, steps=6))
    model = df.DiffusionModel(
        process, here.conditional_denoiser(), likelihood.GaussianLikelihood(df.Continuous((1,)))
    ).guided(2.5)
    x, c = here.sample_labelled(1, generator)
    x, c = x.expand(40_000, -1), c.expand(40_000)
    path, terms = model.path_elbo(x, generator, c).nelbo, model.elbo(x, generator, c).nelbo
    error = math.hypot(float(path.std()), float(terms.std())) / 200
    assert abs(float(path.mean() - terms.mean())) < 4 * error
    unguided = df.DiffusionModel(process, model.denoiser.denoiser, model.likelihood).elbo(x, generator, c).nelbo
    assert abs(float(terms.mean() - unguided.mean())) > 20 * error


def levels_denoiser(head: Any) -> df.Denoiser:
    space = Discrete((1, 2, 2), 5)
    channels = 5 if head == "categorical" else 2
    table = torch.randn(3, channels, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def network(z: Tensor, log_snr: Tensor, c: Tensor | None = None) -> Tensor:
        return table[torch.full((len(z),), 2) if c is None else c] + 0 * z

    return df.Denoiser(network, "levels", space, head)


@pytest.mark.parametrize("head", ["categorical", "logistic"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 4.0])
def test_the_distribution_of_a_guided_levels_head(head: Any, weight: float) -> None:
    denoiser, z, gamma, c = (
        levels_denoiser(head),
        torch.zeros(2, 1, 2, 2).double() + 0.2,
        torch.tensor([0.3, 2.0]),
        torch.tensor([0, 1]),
    )
    said = Guided(denoiser, weight)(z, gamma, c)
    assert isinstance(said, LevelsPrediction)
    given, without = denoiser(z, gamma, c), denoiser(z, gamma)
    assert isinstance(given, LevelsPrediction)
    assert isinstance(without, LevelsPrediction)
    expected = ((1 - weight) * without.log_probs + weight * given.log_probs).log_softmax(1)
    assert said.log_probs == pytest.approx(expected, abs=1e-10)
    assert said.priors == pytest.approx(
        (without.priors ** (1 - weight) * given.priors**weight)
        / (without.priors ** (1 - weight) * given.priors**weight).sum(1, keepdim=True),
        abs=1e-10,
    )
    assert said.data == pytest.approx(without.data + weight * (given.data - without.data), abs=1e-12)
    if isinstance(said, GuidedLevels):
        assert said[torch.tensor([1])].log_probs == pytest.approx(said.log_probs[1:], abs=1e-12)
        assert said.frozen().log_probs.equal(said.log_probs)


def test_extreme_distributions_are_combined_without_overflow() -> None:
    space = Discrete((1,), 3)
    outputs = torch.tensor([[-2000.0, 0.0, 2000.0], [2000.0, 0.0, -2000.0]])
    denoiser = df.Denoiser(
        lambda z, s, c=None: outputs[torch.zeros(len(z), dtype=torch.long) if c is None else c], "levels", space
    )
    said = Guided(denoiser, 7.0)(torch.zeros(1, 1), torch.tensor([4.0]), torch.tensor([1]))
    assert isinstance(said, LevelsPrediction)
    assert said.log_probs.exp().flatten().tolist() == pytest.approx([1.0, 0.0, 0.0])


def constant(given: list[float], without: list[float], predicts: Any = "data") -> df.Denoiser:
    def network(z: Tensor, log_snr: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.tensor(without if c is None else given).expand_as(z)

    return df.Denoiser(network, predicts)


def test_thresholding_and_rescaling_are_those_of_the_papers() -> None:
    denoiser, z, gamma, c = constant([1.0, -0.5], [0.0, 0.5]), torch.zeros(1, 2), torch.zeros(1), torch.zeros(1)
    plain = Guided(denoiser, 3.0)(z, gamma, c).data
    assert plain.tolist() == [[3.0, -2.5]]
    assert Guided(denoiser, 3.0, threshold=1.0)(z, gamma, c).data.flatten().tolist() == pytest.approx([1.0, -2.5 / 3])
    assert Guided(denoiser, 3.0, threshold=Clip(-1.0, 1.0))(z, gamma, c).data.tolist() == [[1.0, -1.0]]
    s_c, s_w = torch.tensor([1.0, -0.5]).std(correction=0), plain.std(correction=0)
    whole = Guided(denoiser, 3.0, rescale=1.0)(z, gamma, c).data
    assert whole == pytest.approx(plain * s_c / s_w)
    assert Guided(denoiser, 3.0, rescale=0.7)(z, gamma, c).data == pytest.approx(0.7 * whole + 0.3 * plain)
    # Below 1 a threshold changes nothing (Saharia et al. 2022).
    small = constant([0.5, -0.25], [0.0, 0.25])
    assert Guided(small, 1.5, threshold=0.9)(z, gamma, c).data.equal(Guided(small, 1.5)(z, gamma, c).data)


def test_thresholding_does_not_depend_on_the_prediction_s_parameterisation() -> None:
    z, gamma, c = torch.randn(3, 4), torch.tensor([-1.0, 0.5, 2.0]), torch.zeros(3)
    as_data = Guided(constant([2.0, -3.0, 0.1, 0.0], [0.2, 0.3, -0.1, 0.5]), 2.0, threshold=0.9)

    def network(z: Tensor, log_snr: Tensor, c: Tensor | None = None) -> Tensor:
        return as_data.denoiser(z, -log_snr, c).noise

    as_noise = Guided(df.Denoiser(network, "noise"), 2.0, threshold=0.9)
    assert as_noise.predicts == "data"
    assert as_noise(z, gamma, c).data == pytest.approx(as_data(z, gamma, c).data, abs=1e-5)


def test_a_learned_variance_is_not_extrapolated() -> None:
    def network(z: Tensor, log_snr: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.cat([z, torch.full_like(z, 0.0 if c is None else 1.0)], 1)

    denoiser, c = df.Denoiser(network, "noise", learns_variance=True), torch.zeros(1)
    fractions = [float(Guided(denoiser, w)(torch.ones(1, 1), torch.zeros(1), c).fraction) for w in (0.0, 0.5, 1.0, 3.0)]
    assert fractions == [0.5, 0.75, 1.0, 1.0]


def test_the_null_condition_of_a_foreign_network() -> None:
    def network(z: Tensor, log_snr: Tensor, c: Tensor) -> Tensor:
        return z * 0 + c[:, None]

    with pytest.raises(DiffusionalError, match=r"condition dropout.*null="):
        Guided(df.Denoiser(network, "data"), 2.0)
    guided = Guided(df.Denoiser(network, "data"), 2.0, null=torch.tensor(10.0))
    assert guided(torch.zeros(2, 3), torch.zeros(2), torch.tensor([1.0, 11.0])).data[:, 0].tolist() == [-8.0, 12.0]
    named = df.Denoiser(lambda z, s, *, text: z * 0 + text[:, None], "data")
    guided = Guided(named, 3.0, null={"text": torch.tensor(1.0)})
    assert guided(torch.zeros(1, 2), torch.zeros(1), {"text": torch.tensor([2.0])}).data.tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight": math.inf}, "finite.*inf"),
        ({"weight": 2.0, "rescale": 1.5}, "rescale.*1.5"),
        ({"weight": 2.0, "threshold": 0.0}, "threshold.*0.0"),
        ({"weight": 2.0, "threshold": 1.5}, "threshold.*1.5"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(DiffusionalError, match=match):
        Guided(constant([1.0], [0.0]), **options)


def test_what_cannot_be_guided() -> None:
    with pytest.raises(DiffusionalError, match="guided already"):
        Guided(Guided(constant([1.0], [0.0]), 2.0), 2.0)
    with pytest.raises(DiffusionalError, match="requires a condition"):
        Guided(constant([1.0], [0.0]), 2.0)(torch.zeros(1, 1), torch.zeros(1))
    with pytest.raises(DiffusionalError, match=r"Denoiser.*model\.guided"):
        Guided(torch.nn.Linear(1, 1), 2.0)
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=7))
    model = df.DiffusionModel(forward, constant([1.0], [0.0]), likelihood.GaussianLikelihood(df.Continuous((1,))))
    with pytest.raises(DiffusionalError, match="threshold"):
        model.guided(2.0, threshold=0.9)
    vae = df.VAE(
        torch.nn.Linear(1, 2), torch.nn.Linear(1, 1), likelihood.GaussianLikelihood(df.Continuous((1,)), 0.1), 1
    )
    with pytest.raises(DiffusionalError, match="VAE"):
        vae.guided(2.0)


def test_the_identity_of_a_guided_chain_names_what_changes_it() -> None:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=7))
    space = Discrete((1,), 3)
    model = df.DiffusionModel(forward, constant([1.0], [0.0]), likelihood.LevelPosterior(space))
    identities = [
        model.identity(),
        *(model.guided(2.0, t, r).identity() for t in (None, 0.9) for r in (0.0, 0.5)),
        model.guided(3.0).identity(),
    ]
    assert len({str(one) for one in identities}) == 6
    assert model.guided(1.0, rescale=0.5).identity() == model.identity()
    assert list(model.guided(2.0).parameters()) == list(model.parameters())


NETWORKS = {
    "unet": lambda null: UNet(1, widths=(8, 16), classes=3, null=null),
    "mlp": lambda null: MLP((1, 8, 8), hidden=16, classes=3, null=null),
    "vdm": lambda null: VDMUNet(1, width=8, blocks=1, classes=3, null=null),
    "ddpm": lambda null: ddpm_unet(1, (8, 8), widths=(8, 16), blocks=1, attention=(), classes=3, null=null),
    "numbers": lambda null: MLP((1, 8, 8), hidden=16, condition_dim=2, null=null),
    "vdm numbers": lambda null: VDMUNet(1, width=8, blocks=1, condition_dim=2, null=null),
}


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter random values: output layers start with zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_a_null_condition_takes_it_in_some_rows_or_in_all(name: str) -> None:
    network = randomised(NETWORKS[name](True))
    z, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.0, 1.0, 2.0])
    c = torch.randn(3, 2) if "numbers" in name else torch.tensor([0, 2, 0])
    some = dropped(c, torch.tensor([False, True, False]))
    assert missing_rows(some).tolist() == [False, True, False]
    with torch.no_grad():
        given, mixed, without, none = (network(z, t, one) for one in (c, some, None, dropped(c)))
    assert mixed[[0, 2]] == pytest.approx(given[[0, 2]], abs=1e-5)
    assert mixed[1] == pytest.approx(without[1], abs=1e-5)
    assert none == pytest.approx(without, abs=1e-5)
    assert float((without - given).abs().amax((1, 2, 3)).min()) > 1e-4  # no class is the null condition
    network(z, t, some).square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_a_null_condition_refuses_guidance(name: str) -> None:
    network = NETWORKS[name](False)
    time = df.networks.FromDiffusers.needs_time and name == "ddpm"
    denoiser = df.Denoiser(network, "v", time=(lambda s: s) if time else None)
    with pytest.raises(DiffusionalError, match="condition dropout"):
        Guided(denoiser, 2.0)
    with pytest.raises(DiffusionalError):
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.tensor([-1]))


def test_null_needs_a_condition() -> None:
    with pytest.raises(DiffusionalError, match="null"):
        UNet(1, widths=(8,), null=True)


def test_a_diffused_item_is_denoised_better_with_its_label() -> None:
    """The two errors of which the quadratic is made, at one draw: guided predictions lie on one line."""
    here = world()
    x, c = here.sample_labelled(2000, torch.Generator().manual_seed(0))
    noise, gamma = (
        torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        torch.zeros(2000).double(),
    )
    z = diffuse(x, gamma, noise)
    errors = [
        float(Guided(here.conditional_denoiser(), w)(z, gamma, c).squared_error(x, noise).mean())
        for w in (0.0, 1.0, 2.0)
    ]
    assert errors[1] < errors[0]
    assert errors[1] < errors[2]
    assert Threshold(0.9, 2.0) != Threshold(0.8, 2.0)
