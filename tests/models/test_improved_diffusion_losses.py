"""Agreement with improved-diffusion's training: its losses, their gradients and its resampler, all in float64.

The fixture was made by running github.com/openai/improved-diffusion, commit 1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5, with
tools/peer_fixtures.py, which says what is in it: 24 items, 8 indices of two schedules, 48 settings of its three enums. Its index
i = 0 … T − 1 is our latent z_{i+1}: its term i ≥ 1 is KL_t at the level t = i, its term 0 is −ln p(x|z_1).

    EPSILON, START_X         Denoiser(…, "noise" or "data")
    PREVIOUS_X               its output is c_1 x̂ + c_2 z, the mean of q(z_{t−1}|z_t, x̂): x̂ by the inverse of that
    FIXED_SMALL, FIXED_LARGE "posterior" and "transition"; at i = 0 both decode with s² of q(z_1|z_2, x)
    LEARNED_RANGE            learns_variance=True, DiscretizedGaussian(least=s² of q(z_1|z_2, x))
    LEARNED                  its output is ln v: f by the inverse of ln v = (1 − f) ln v_q + f ln β_t
    MSE, RESCALED_MSE        `hybrid_costs` with λ = 1/T and 1/1000 where it learns a variance, `simple_costs` where not
    KL, RESCALED_KL          `kl_at` and `reconstruction`, in bits/dim, times 1 and T

Where it predicts x or z_{t−1}, its squared error is of these: σ²/α² and c_1² σ²/α² of ours, which is of ε.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from battery import F64, close, float64
from diffusional import Denoiser, DiffusionModel, Discrete, GaussianDiffusion, likelihood, schedule
from diffusional.ledger import Costs, per_unit
from diffusional.models.likelihood import log_bin_mass
from diffusional.models.parameterization import Prediction
from diffusional.models.time import TrainedIndex
from diffusional.timesteps import SecondMoment, position

FIXTURE = dict(np.load(Path(__file__).parents[1] / "fixtures" / "improved_diffusion_losses.npz"))
COMMIT = "1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5"
SPACE = Discrete((3, 4, 4), 256)
UNIT = per_unit("bits/dim", SPACE.dimensions)

SCHEDULES = {"linear": lambda: schedule.linear(1000), "cosine": lambda: schedule.cosine(50)}
MEANS: dict[str, Literal["data", "noise"]] = {"PREVIOUS_X": "data", "START_X": "data", "EPSILON": "noise"}
VARIANCES = {
    "LEARNED": "learned",
    "FIXED_SMALL": "posterior",
    "FIXED_LARGE": "transition",
    "LEARNED_RANGE": "learned",
}
LEARNED = ("LEARNED", "LEARNED_RANGE")
WEIGHTS = ("w1", "b", "w2", "v2")
EXACT = 1e-10  # bits/dim

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_mean = pytest.mark.parametrize("mean", MEANS)
every_variance = pytest.mark.parametrize("variance", VARIANCES)
every_learned = pytest.mark.parametrize("variance", LEARNED)


class Chain(NamedTuple):
    """Coefficients of its chain by index, from its betas, as written in Ho et al. 2020, eq. 6 and 7."""

    beta: Tensor
    alpha2: Tensor  # ᾱ
    first: Tensor  # c_1 of x
    second: Tensor  # c_2 of z
    least: Tensor  # ln v_q, v_q the posterior's variance, at i = 0 that of i = 1
    span: Tensor  # ln β_t − ln v_q

    @classmethod
    def of(cls, name: str) -> "Chain":
        beta = float64(FIXTURE[f"{name}/betas"])
        alpha2 = torch.cumprod(1 - beta, 0)
        before = torch.cat([torch.ones(1, dtype=F64), alpha2[:-1]])
        posterior = beta * (1 - before) / (1 - alpha2)
        least = torch.cat([posterior[1:2], posterior[1:]]).log()
        # −ln (1 − ᾱ_{t−1})/(1 − ᾱ_t), which is 8e-7 at the end of a thousand levels: without the difference of two logarithms.
        span = -torch.log1p(-before[1:] * beta[1:] / (1 - alpha2[1:]))
        return cls(
            beta,
            alpha2,
            beta * before.sqrt() / (1 - alpha2),
            (1 - before) * (1 - beta).sqrt() / (1 - alpha2),
            least,
            torch.cat([beta[:1].log() - least[:1], span]),
        )


def decoder_variance(name: str) -> float:
    """s² of q(z_1|z_2, x), with which its fixed variances decode."""
    return float(Chain.of(name).least[0].exp())


def column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def weights(*names: str) -> dict[str, Tensor]:
    """Some of its network's, as leaves."""
    return {k: float64(FIXTURE[k]).requires_grad_() for k in names}


def network(
    name: str, mean: str, variance: str, given: dict[str, Tensor], shift: float = 1.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network of tools/peer_fixtures.py, its output as ours has it: of x or ε, and of o with f = (o + `shift`)/2."""
    chain = Chain.of(name)
    steps = len(chain.beta)

    def run(z: Tensor, index: Tensor) -> Tensor:
        tau = column((index.to(z) + 1) / steps)
        gate = {"START_X": 1 - tau, "PREVIOUS_X": 1 - 1 / steps}.get(mean, tau)
        hidden = torch.tanh(conv2d(z, given["w1"], padding=1) + tau * given["b"])
        output = gate * z + (1 - gate) * conv2d(hidden, given["w2"], padding=1)
        if mean == "PREVIOUS_X":
            output = (output - column(chain.second[index]) * z) / column(chain.first[index])
        if variance not in LEARNED:
            return output
        o = conv2d(hidden, given["v2"], padding=1)
        if variance == "LEARNED":
            o = 2 * (o - 5 - column(chain.least[index])) / column(chain.span[index]) - 1
        return torch.cat([output, o + 1 - shift], 1)

    return run


def model(name: str, mean: str, variance: str, given: dict[str, Tensor] | None = None, **other: Any) -> DiffusionModel:
    """Ours in its setting, or with another `first` index, `backward` variance, `least` or `shift`."""
    made, learns = SCHEDULES[name](), variance in LEARNED
    module = network(name, mean, variance, given or weights(*WEIGHTS), other.get("shift", 1.0))
    time = TrainedIndex(made, other.get("first", 0))
    denoiser = Denoiser(module, MEANS[mean], learns_variance=learns, time=time)
    least = other.get("least", decoder_variance(name))
    p = likelihood.DiscretizedGaussian(SPACE, **({"least": least} if learns else {"variance": least}))
    return DiffusionModel(GaussianDiffusion(made), denoiser, p, other.get("backward", VARIANCES[variance]))


def batch(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """x, index and noise of the 24 items."""
    x = SPACE.encode(torch.from_numpy(FIXTURE["images"]).long(), F64)[torch.from_numpy(FIXTURE["image"])]
    return x, torch.from_numpy(FIXTURE[f"{name}/index"]), float64(FIXTURE["noise"])


def bound(ours: DiffusionModel, name: str, shift: int = 0) -> Tensor:
    """The bound's term of every item (24,), bits/dim; of levels `shift` above its own where they are KLs."""
    x, index, noise = batch(name)
    steps = len(FIXTURE[f"{name}/betas"])
    kl = ours.kl_at(x, (index + shift).clamp(1, steps - 1), noise)
    return torch.where(index == 0, ours.reconstruction(x, noise), kl) / UNIT


def draws(name: str, weight: Tensor | None = None) -> dict[str, Tensor]:
    """As `latent_draw` gives them: with the weight T its loss is a plain mean."""
    _, index, noise = batch(name)
    steps = len(FIXTURE[f"{name}/betas"])
    return {
        "level": index + 1,
        "weight": torch.full_like(index, steps).double() if weight is None else weight,
        "noise": noise,
    }


def hybrid(ours: DiffusionModel, name: str, loss: str = "RESCALED_MSE", **other: Any) -> Costs:
    """`hybrid_costs` with the λ of its loss."""
    scale = {"RESCALED_MSE": 1e-3, "MSE": 1 / len(FIXTURE[f"{name}/betas"])}[loss]
    return ours.hybrid_costs(batch(name)[0], draws(name, **other), weight=scale)


def theirs(*setting: str) -> Tensor:
    return float64(FIXTURE["/".join(setting)])


def squared_error_of(name: str, mean: str) -> Tensor:
    """What one unit of the squared error of ε is of what its network predicts (24,)."""
    chain, index = Chain.of(name), batch(name)[1]
    of_x = (1 - chain.alpha2[index]) / chain.alpha2[index]
    return {"EPSILON": torch.ones_like(of_x), "START_X": of_x, "PREVIOUS_X": chain.first[index].square() * of_x}[mean]


def tanh_bin_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """ln of a bin's mass under their stand-in for the normal CDF, with their floor of 1e-12."""

    def cdf(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    # An open bin's edge at infinity would make NaN of its gradient: 0 · ∞. At 100 the CDF is one, too.
    return (cdf(upper.clamp(max=100)) - cdf(lower.clamp(min=-100))).clamp(min=1e-12).log()


@pytest.fixture(autouse=True)
def their_cdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our DiscretizedGaussian, its bins and edges, with their CDF."""
    monkeypatch.setattr(likelihood, "log_bin_mass", tanh_bin_mass)


def test_what_their_cdf_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """z_1's decoder alone, by up to 0.007 bits/dim in these settings; docs/presets.md says so."""
    changes = []
    for name, mean, variance in itertools.product(SCHEDULES, MEANS, VARIANCES):
        monkeypatch.setattr(likelihood, "log_bin_mass", tanh_bin_mass)
        said = bound(model(name, mean, variance), name)
        monkeypatch.setattr(likelihood, "log_bin_mass", log_bin_mass)
        change, first = (bound(model(name, mean, variance), name) - said).abs().detach(), batch(name)[1] == 0
        assert not change[~first].any()
        changes.append(float(change[first].max()))
    assert max(changes) == pytest.approx(0.0067, abs=1e-4)


def off(ours: Tensor, said: Tensor) -> float:
    """The largest difference."""
    assert ours.shape == said.shape
    assert ours.dtype == F64
    return float((ours - said).detach().abs().max())


def test_the_same_commit_and_every_setting() -> None:
    """What was run, and that none of its 48 settings is missing; a learned o leaves [−1, 1], a learned f its ends, too."""
    assert str(FIXTURE["commit"]) == COMMIT
    losses = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")
    for setting in itertools.product(SCHEDULES, MEANS, VARIANCES, losses):
        assert theirs(*setting, "loss").shape == (24,)
    for name, make in SCHEDULES.items():
        assert {0, 1, len(make().betas) - 1} <= set(batch(name)[1].tolist())
    outside = (
        model("cosine", "EPSILON", "LEARNED_RANGE")
        .denoiser(batch("cosine")[0], schedule.cosine(50).grid()[20])
        .fraction.detach()
    )
    assert float(outside.min()) < 0
    assert float(outside.max()) > 1


# KL and RESCALED_KL.


@every_variance
@every_mean
@every_schedule
def test_every_term_of_the_bound(name: str, mean: str, variance: str) -> None:
    """`_vb_terms_bpd`, which is its loss KL, to 1e-10 bits/dim (measured: 4e-11), and T times that, which is RESCALED_KL."""
    ours, steps = bound(model(name, mean, variance), name), len(FIXTURE[f"{name}/betas"])
    assert off(ours, theirs(name, mean, variance, "KL", "loss")) < EXACT
    assert off(ours, theirs(name, mean, variance, "RESCALED_KL", "loss") / steps) < EXACT


@every_variance
@every_mean
@every_schedule
def test_another_index_variance_or_decoder_does_not(name: str, mean: str, variance: str) -> None:
    """The controls, s² of the decoder one per cent off among them: measured 1.6e-3 to 270 bits/dim, for 4e-11."""
    said = theirs(name, mean, variance, "KL", "loss")
    assert off(bound(model(name, mean, variance, first=-1), name), said) > 1e5 * EXACT
    assert off(bound(model(name, mean, variance), name, shift=1), said) > 1e5 * EXACT
    assert off(bound(model(name, mean, variance, least=1.01 * decoder_variance(name)), name), said) > 1e5 * EXACT
    if variance not in LEARNED:
        other = next(v for v in ("posterior", "transition") if v != VARIANCES[variance])
        assert off(bound(model(name, mean, variance, backward=other), name), said) > 1e5 * EXACT


@every_mean
@every_schedule
def test_the_fraction_is_half_of_o_plus_one(name: str, mean: str) -> None:
    """The control: f = o/2, or f counted from the transition's variance to the posterior's."""
    said = theirs(name, mean, "LEARNED_RANGE", "KL", "loss")
    assert off(bound(model(name, mean, "LEARNED_RANGE", shift=0.0), name), said) > 1e5 * EXACT
    turned = weights(*WEIGHTS)
    turned["v2"] = -turned["v2"]
    assert off(bound(model(name, mean, "LEARNED_RANGE", turned), name), said) > 1e5 * EXACT


# MSE and RESCALED_MSE.


@every_variance
@every_mean
@every_schedule
def test_every_squared_error(name: str, mean: str, variance: str) -> None:
    """Its mse, in all settings, and its loss where the variance is fixed, to 1e-12 of it (measured: 4e-14)."""
    x = batch(name)[0]
    ours = model(name, mean, variance).simple_costs(x, draws(name)).total() * squared_error_of(name, mean)
    for loss in ("MSE", "RESCALED_MSE"):
        close(ours, theirs(name, mean, variance, loss, "mse"), rtol=1e-12)
        if variance not in LEARNED:
            close(ours, theirs(name, mean, variance, loss, "loss"), rtol=1e-12)
    shifted = model(name, mean, variance, first=-1).simple_costs(x, draws(name)).total() * squared_error_of(name, mean)
    assert float((shifted / theirs(name, mean, variance, "MSE", "mse") - 1).detach().abs().max()) > 1e-4


@every_learned
@every_mean
@every_schedule
def test_its_hybrid_loss(name: str, mean: str, variance: str) -> None:
    """Both parts and their sum: with vb whole (MSE), and times T/1000 (RESCALED_MSE: L_hybrid)."""
    ours = model(name, mean, variance)
    for loss in ("MSE", "RESCALED_MSE"):
        costs, setting = hybrid(ours, name, loss), (name, mean, variance, loss)
        squared = costs.terms["squared_error"] * squared_error_of(name, mean)
        assert off(costs.terms["vlb"], theirs(*setting, "vb")) < EXACT
        assert off(squared + costs.terms["vlb"], theirs(*setting, "loss")) < EXACT
        if mean == "EPSILON":
            assert off(costs.total(), theirs(*setting, "loss")) < EXACT
            assert off(costs.density, theirs(*setting, "loss")) < EXACT  # what its resampler is told


@every_schedule
def test_the_weight_of_l_hybrid_is_a_thousandth(name: str) -> None:
    """As it comes, `hybrid_costs` is RESCALED_MSE. The control: MSE's, which at T = 1000 is the same, and at T = 50 is not."""
    ours = model(name, "EPSILON", "LEARNED_RANGE").hybrid_costs(batch(name)[0], draws(name)).total()
    assert off(ours, theirs(name, "EPSILON", "LEARNED_RANGE", "RESCALED_MSE", "loss")) < EXACT
    other = off(ours, theirs(name, "EPSILON", "LEARNED_RANGE", "MSE", "loss"))
    assert other < EXACT if name == "linear" else other > 0.1


@every_schedule
def test_sampled_indices_are_weighted_as_its_training_loop_does(name: str) -> None:
    """It multiplies losses by 1/(T π_t); ours carry 1/π_t."""
    mass = torch.linspace(0.1, 2.0, 24, dtype=F64) / 24
    steps = len(FIXTURE[f"{name}/betas"])
    ours = hybrid(model(name, "EPSILON", "LEARNED_RANGE"), name, weight=1 / mass)
    said = theirs(name, "EPSILON", "LEARNED_RANGE", "RESCALED_MSE", "loss")
    close(ours.total(), said / (steps * mass), rtol=1e-9)
    assert off(ours.density, said) < EXACT


# Gradients.


def gradients(name: str, loss: str) -> dict[str, Tensor]:
    """Of the mean of `loss` over the batch, EPSILON and LEARNED_RANGE, by every weight of the network."""
    given = weights(*WEIGHTS)
    ours = model(name, "EPSILON", "LEARNED_RANGE", given)
    cost = bound(ours, name) if loss == "KL" else hybrid(ours, name).total()
    return dict(zip(WEIGHTS, torch.autograd.grad(cost.mean(), list(given.values())), strict=True))


def worst(name: str, loss: str) -> float:
    """The largest difference of a gradient, of the largest element of that weight's."""
    said = {k: theirs(name, "EPSILON", "LEARNED_RANGE", loss, "gradient", k) for k in WEIGHTS}
    return max(off(g, said[k]) / float(said[k].abs().max()) for k, g in gradients(name, loss).items())


@pytest.mark.parametrize("loss", ["KL", "RESCALED_MSE"])
@every_schedule
def test_every_gradient(name: str, loss: str) -> None:
    """By all 328 numbers of the network, to 1e-10 of a weight's largest (measured: 5e-12)."""
    assert worst(name, loss) < 1e-10


@every_schedule
def test_the_hybrid_loss_holds_the_mean_fixed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: let the bound reach the mean, and the loss is the same, but its gradients are 3 % and 37 % off."""
    monkeypatch.setattr(Prediction, "frozen", lambda self: self)
    costs = hybrid(model(name, "EPSILON", "LEARNED_RANGE"), name)
    assert off(costs.total(), theirs(name, "EPSILON", "LEARNED_RANGE", "RESCALED_MSE", "loss")) < EXACT
    assert worst(name, "RESCALED_MSE") > 0.01


# The resampler.


def replay(sampler: SecondMoment, chunk: int = 1) -> Tensor:
    """π after every `chunk` of its updates, and before the first (N/chunk + 1, 6)."""
    index, loss = torch.from_numpy(FIXTURE["resampler/index"]), theirs("resampler", "loss")
    levels = theirs("resampler", "weights").shape[1]
    sampler.sample(1, levels)  # so that it knows how many there are
    masses = [sampler.mass(levels)]
    for i, cost in zip(index.split(chunk), loss.split(chunk), strict=True):
        sampler.update(position(i + 1, levels), cost)
        masses.append(sampler.mass(levels))
    return torch.stack(masses)


def resampled() -> Tensor:
    """Its weights as probabilities, as its `sample` makes them."""
    w = theirs("resampler", "weights")
    return w / w.sum(1, keepdim=True)


def test_the_resampler_step_by_step() -> None:
    """After each of 150 updates: uniform until every index has had ten, and from there without the oldest."""
    warm = (theirs("resampler", "weights")[:, 0] != 1).nonzero()[0]
    counts = np.bincount(FIXTURE["resampler/index"][: int(warm)])
    assert counts.min() == 10
    assert counts.max() > 10
    assert 60 < int(warm) < 120
    close(replay(SecondMoment()), resampled(), rtol=1e-12)
    close(replay(SecondMoment(), chunk=10), resampled()[::10], rtol=1e-12)


@pytest.mark.parametrize("other", [{"history": 9}, {"history": 11}, {"floor": 0.0}])
def test_another_history_or_floor_is_another_resampler(other: dict[str, Any]) -> None:
    assert off(replay(SecondMoment(**other)), resampled()) > 1e-4


def test_a_level_off_is_another_resampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: index i as the level i, and not i + 1."""
    monkeypatch.setitem(FIXTURE, "resampler/index", (FIXTURE["resampler/index"] - 1) % 6)
    assert off(replay(SecondMoment()), resampled()) > 0.1
