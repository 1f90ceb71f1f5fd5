"""Agreement with OpenAI's improved-diffusion, term by term, on the same weights, images and noise.

The fixture was made by running github.com/openai/improved-diffusion, commit 1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5, in
float32, with tools/peer_fixtures.py, which says what is in it. Its index i = 0 … T − 1 is our z_{i+1}: its term i ≥ 1 is KL_t
at the level t = i, and its term 0 is −ln p(x|z_1).

Its FIXED_SMALL is our "posterior" and its FIXED_LARGE our "transition" at every level, i ≥ 1. At i = 0, where the posterior
variance is zero, both take that of i = 1, which is neither's own: so its decoder is N(x̂, s²) in bins, s² the variance of
q(z_1|z_2, x), while ours takes σ_1² = β_1 unless told.

Measured on 3 images, 12 settings: KLs agree to 3.3e-6 bits/dim at every level, priors to 6e-10, the decoder with the same CDF
to 3.1e-6, the sum of all to 4.9e-6. What is left is float32: run in float64, its coefficients too, it agrees to 3e-13, 2e-11
and 2e-11. The exact CDF moves the decoder by −0.016 to +0.0013 bits/dim of 0.97 to 5.0.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from battery import F64, float64
from diffusional import Denoiser, DiffusionModel, Discrete, GaussianDiffusion, Ledger, likelihood, schedule
from diffusional.models.parameterization import Prediction
from diffusional.models.time import TrainedIndex

FIXTURE = dict(np.load(Path(__file__).parents[1] / "fixtures" / "improved_diffusion.npz"))
COMMIT = "1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5"
BITS_PER_DIM = 1e-5
SPACE = Discrete((3, 4, 4), 256)
UNIT = SPACE.dimensions * math.log(2)

SCHEDULES = {"linear": lambda: schedule.linear(1000), "cosine": lambda: schedule.cosine(50)}
OUTPUTS = ("epsilon", "x_start", "epsilon, clipped")
VARIANCES: dict[str, Literal["posterior", "transition"]] = {"FIXED_SMALL": "posterior", "FIXED_LARGE": "transition"}

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_output = pytest.mark.parametrize("output", OUTPUTS)
every_variance = pytest.mark.parametrize("variance", VARIANCES)


class Setting(NamedTuple):
    """One run of theirs: a schedule, what the network's output means, and a fixed variance."""

    schedule: str
    output: str
    variance: str

    def theirs(self, what: str) -> Tensor:
        """vb (N, T), prior or total (N,), bits/dim."""
        return float64(FIXTURE["/".join((*self, what))])


def decoder_variance(name: str) -> float:
    """β_2 (1 − ᾱ_1)/(1 − ᾱ_2), the variance of q(z_1|z_2, x): what both of its fixed variances give to the decoder."""
    b1, b2 = FIXTURE[f"betas/{name}"][:2]
    return float(b2 * b1 / (1 - (1 - b1) * (1 - b2)))


def network(setting: Setting) -> Callable[[Tensor, Tensor], Tensor]:
    """The network of tools/peer_fixtures.py as a function of z and its index; "epsilon, clipped" is then a prediction of x."""
    betas = torch.from_numpy(FIXTURE[f"betas/{setting.schedule}"])
    alpha2 = torch.cumprod(1 - betas, 0)

    def run(z: Tensor, index: Tensor) -> Tensor:
        w1, b, w2 = (torch.from_numpy(FIXTURE[k]).to(z) for k in ("w1", "b", "w2"))
        tau = ((index.to(z) + 1) / len(betas)).reshape(-1, 1, 1, 1)
        gate = 1 - tau if setting.output == "x_start" else tau
        output = gate * z + (1 - gate) * conv2d(torch.tanh(conv2d(z, w1, padding=1) + tau * b), w2, padding=1)
        if setting.output != "epsilon, clipped":
            return output
        a2 = alpha2[index].reshape(-1, 1, 1, 1)
        return ((z - (1 - a2).sqrt().to(z) * output) / a2.sqrt().to(z)).clamp(-1, 1)

    return run


def terms(setting: Setting, **other: Any) -> Ledger:
    """Our costs for `setting`, or with another `first` index, `variance`, decoder variance `s2` or `noise`."""
    made = SCHEDULES[setting.schedule]()
    predicts = "noise" if setting.output == "epsilon" else "data"
    denoiser = Denoiser(network(setting), predicts, time=TrainedIndex(made, other.get("first", 0)))
    p = likelihood.DiscretizedGaussian(SPACE, other.get("s2", decoder_variance(setting.schedule)))
    model = DiffusionModel(GaussianDiffusion(made), denoiser, p, other.get("variance", VARIANCES[setting.variance]))
    noise = torch.from_numpy(FIXTURE["noise"])
    noise = noise[torch.arange(len(made.betas)) % len(noise)]
    return model.terms(SPACE.encode(torch.from_numpy(FIXTURE["images"]).long()), other.get("noise", noise))


def tanh_bin_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """ln of a bin's mass under their stand-in for the normal CDF, with their floor of 1e-12."""

    def cdf(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    return (cdf(upper) - cdf(lower)).clamp(min=1e-12).log()


@pytest.fixture
def their_cdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our DiscretizedGaussian, its bins and edges, with their CDF."""
    monkeypatch.setattr(likelihood, "log_bin_mass", tanh_bin_mass)


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; ours in nats, theirs in bits/dim."""
    assert ours.shape == theirs.shape
    assert ours.dtype == F64
    return float((ours / UNIT - theirs).abs().max())


def test_the_same_images_and_schedules() -> None:
    assert str(FIXTURE["commit"]) == COMMIT
    assert {0, 255} <= set(FIXTURE["images"].flatten().tolist())
    x = SPACE.encode(torch.from_numpy(FIXTURE["images"]).long())
    assert float((x - (torch.from_numpy(FIXTURE["images"]) / 127.5 - 1)).abs().max()) < 1e-7
    for name, make in SCHEDULES.items():
        np.testing.assert_allclose(make().betas, FIXTURE[f"betas/{name}"], rtol=1e-11, atol=0)


@every_variance
@every_output
@every_schedule
@pytest.mark.usefixtures("their_cdf")
def test_every_term_and_their_sum(name: str, output: str, variance: str) -> None:
    """All T terms and the prior of each image, and the total, to 1e-5 bits/dim."""
    setting = Setting(name, output, variance)
    ledger, vb = terms(setting), setting.theirs("vb")
    assert off(ledger.kl, vb[:, 1:]) < BITS_PER_DIM
    assert off(ledger.prior, setting.theirs("prior")) < BITS_PER_DIM
    assert off(ledger.reconstruction, vb[:, 0]) < BITS_PER_DIM
    assert off(ledger.nelbo, setting.theirs("total")) < BITS_PER_DIM


@every_variance
@every_schedule
def test_another_index_variance_or_noise_does_not_agree(name: str, variance: str) -> None:
    """The control: one index, one level or one draw off, or the other variance; measured 9.4e-4 to 1.7 bits/dim."""
    setting = Setting(name, "epsilon", variance)
    vb = setting.theirs("vb")
    assert off(terms(setting, first=1).kl, vb[:, 1:]) > 50 * BITS_PER_DIM
    assert off(terms(setting).kl[:, 1:], vb[:, 1:-1]) > 50 * BITS_PER_DIM
    swapped = next(v for v in VARIANCES.values() if v != VARIANCES[variance])
    assert off(terms(setting, variance=swapped).kl, vb[:, 1:]) > 50 * BITS_PER_DIM
    noise = torch.from_numpy(FIXTURE["noise"])
    shifted = noise[(torch.arange(vb.shape[1]) + 1) % len(noise)]
    assert off(terms(setting, noise=shifted).kl, vb[:, 1:]) > 50 * BITS_PER_DIM


@every_output
@every_schedule
@pytest.mark.usefixtures("their_cdf")
def test_its_decoder_has_neither_fixed_variance(name: str, output: str) -> None:
    """Both variances give one decoder, with s² of q(z_1|z_2, x); σ_1² = β_1, our default, is another model's.

    s² is 5.45e-5 of β_1 = 1e-4 (linear, T = 1000) and 1.19e-3 of 1.75e-3 (cosine, T = 50).
    """
    small, large = (Setting(name, output, variance).theirs("vb") for variance in VARIANCES)
    assert small[:, 0].equal(large[:, 0])
    assert not small[:, 1:].equal(large[:, 1:])
    ours = terms(Setting(name, output, "FIXED_LARGE"), s2=None).reconstruction
    assert off(ours, large[:, 0]) > 0.1


# Bits/dim that the exact CDF adds to −ln p(x|z_1) of each image.
EXACT_MINUS_TANH = {
    ("linear", "epsilon"): (-0.014587, -0.000879, -0.001322),
    ("linear", "x_start"): (-0.000305, -0.002141, -0.000354),
    ("linear", "epsilon, clipped"): (-0.014615, -0.000881, -0.001322),
    ("cosine", "epsilon"): (-0.015610, -0.000072, 0.001031),
    ("cosine", "x_start"): (-0.003283, -0.006421, 0.001301),
    ("cosine", "epsilon, clipped"): (-0.015582, -0.000067, 0.001031),
}


@every_output
@every_schedule
def test_the_exact_cdf_changes_the_decoder_alone(name: str, output: str) -> None:
    """By −0.016 to +0.0013 bits/dim, image by image as in EXACT_MINUS_TANH; the first, all 0 and 255, lives in tails."""
    setting = Setting(name, output, "FIXED_SMALL")
    ledger, vb = terms(setting), setting.theirs("vb")
    change = float64(EXACT_MINUS_TANH[name, output])
    assert off(ledger.reconstruction, vb[:, 0] + change) < BITS_PER_DIM
    assert off(ledger.nelbo, setting.theirs("total") + change) < BITS_PER_DIM


# The decoder alone, every level at a few x̂ and s².


def our_levels() -> Tensor:
    """ln p of every level (V, M, 256), as FIXTURE["decoder/…"]."""
    means = float64(FIXTURE["decoder/means"])[:, None]
    prediction = Prediction(means, torch.zeros(len(means)), means, "data")
    decoders = (likelihood.DiscretizedGaussian(Discrete((1,), 256), float(s2)) for s2 in FIXTURE["decoder/variances"])
    return torch.stack([p.level_log_probs(prediction).squeeze(2) for p in decoders])


def deviations() -> Tensor:
    """How many s a level lies above x̂ (V, M, 256)."""
    x = Discrete((1,), 256).values - float64(FIXTURE["decoder/means"])[:, None]
    return x / float64(FIXTURE["decoder/variances"]).sqrt()[:, None, None]


@pytest.mark.usefixtures("their_cdf")
def test_every_level_of_the_decoder_with_its_cdf() -> None:
    """Its own CDF in float64, outermost bins and floor included.

    A level's mass is the difference of two values of the CDF, a tanh of a cubic, each of them exact to some ulps of 1: what processors
    differ by in ln p is that over the mass.
    """
    ours, theirs = our_levels(), float64(FIXTURE["decoder/float64"])
    apart = (ours - theirs).abs()
    assert float((apart * theirs.exp()).max()) < 32 * torch.finfo(torch.float64).eps
    assert float(apart[theirs.exp() > 1e-3].max()) < 1e-12


def test_every_level_of_the_decoder_with_the_exact_cdf() -> None:
    """What the exact CDF changes, in nats per pixel; both decoders sum to one, so both bounds are sound.

    Exact − tanh of ln p lies in [−0.0082, 0.0334] within 3 s of x̂; from 3 to 6 s the tanh charges more, by 0.04 to 3.6;
    past 8 s it charges less, since its floor caps a pixel at 27.6 nats (39.9 bits): at 270 s the Gaussian's price is 36 228.
    """
    ours, theirs, s = our_levels(), float64(FIXTURE["decoder/float64"]), deviations().abs()
    torch.testing.assert_close(ours.exp().sum(2), torch.ones_like(ours[:, :, 0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(theirs.exp().sum(2), torch.ones_like(ours[:, :, 0]), rtol=0, atol=1e-9)
    change = ours - theirs
    near, middle, far = change[s < 3], change[(s > 3) & (s < 6)], change[s > 8]
    assert (float(near.min()), float(near.max())) == pytest.approx((-0.00823, 0.03342), abs=1e-5)
    assert (float(middle.min()), float(middle.max())) == pytest.approx((0.0367, 3.5947), abs=1e-4)
    assert float(far.max()) < 0
    assert float(theirs.min()) == pytest.approx(math.log(1e-12), rel=1e-12)
    assert float(ours.min()) == pytest.approx(-36_227.7, abs=0.1)


def test_its_floor_comes_sooner_in_float32() -> None:
    """From 5.1 s above x̂ and 5.5 s below, for 6.4 s in float64: there its CDF rounds to 1 or to 0, and a pixel costs up to
    10.4 nats more. Within 4 s float32 costs it 0.0016 nats at most.
    """
    short, long, s = float64(FIXTURE["decoder/float32"]), float64(FIXTURE["decoder/float64"]), deviations()
    at_floor = [said < math.log(1e-12) + 1e-5 for said in (short, long)]
    assert float(s[at_floor[0] & (s > 0)].min()) == pytest.approx(5.15, abs=0.01)
    assert float(-s[at_floor[0] & (s < 0)].max()) == pytest.approx(5.52, abs=0.01)
    assert float(s[at_floor[1]].abs().min()) == pytest.approx(6.45, abs=0.01)
    assert float((long - short).max()) == pytest.approx(10.4, abs=0.1)
    assert float((long - short)[s.abs() < 4].abs().max()) < 0.002
