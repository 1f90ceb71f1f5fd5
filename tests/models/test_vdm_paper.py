"""Agreement with Google's VDM (Kingma et al. 2021): its three losses per item, its noise schedules and their gradients, in float64.

The fixture was made by running github.com/google-research/vdm, commit dc27b98a554f65cdc654b800da5aa1846545d41b, with
tools/vdm_fixtures.py, which says what is in it. Term by term,

    loss_recon    reconstruction: LevelPosterior at its z_0, our z_1
    loss_klz      prior
    loss_diff     T · KL_t at the level t, T of theirs T + 1 latents of ours; or dKL/du in continuous time, its T = 0
    NoiseSchedule_FixedLinear, _Scalar, _NNet    log_snr_linear; `learned` without units; `learned`

on data values (2k + 1)/256 − 1. Its schedules have an offset and a slope of their own, where ours have the end points γ_min and
γ_max: the paper's App. H, which normalises what the released code does not. They are one function where γ_min and γ_max are its
network's own values at 0 and 1. Its ScoreUNet is `VDMUNet`, as tests/networks/test_vdm.py maps its weights.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from battery import F64, close, float64
from diffusional import Denoiser, DiffusionModel, Discrete, GaussianDiffusion, likelihood, schedule
from diffusional.ledger import Costs
from diffusional.networks.vdm import VDMUNet
from diffusional.schedule import Learned, Schedule
from networks.test_vdm import ours as our_name
from networks.test_vdm import torch_s as our_weight

FIXTURE = dict(np.load(Path(__file__).parents[1] / "fixtures" / "vdm.npz"))
COMMIT = "dc27b98a554f65cdc654b800da5aa1846545d41b"
CONFIG = json.loads(str(FIXTURE["config"]))
SPACE = Discrete((3, 4, 4), 256, low=-1 + 1 / 256, high=1 - 1 / 256)
ITEMS = len(FIXTURE["images"])
NOTHING = torch.zeros(ITEMS, 1, dtype=F64)  # its conditioning

GAMMAS = ("fixed", "learnable_scalar", "learnable_nnet")
LEARNED = GAMMAS[1:]

every_gamma = pytest.mark.parametrize("kind", GAMMAS)
every_learned_gamma = pytest.mark.parametrize("kind", LEARNED)
every_time = pytest.mark.parametrize("steps", [0, 20])


def theirs(*path: Any) -> Tensor:
    return float64(FIXTURE["/".join(map(str, path))])


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def noise(name: str) -> Tensor:
    """eps_0 or eps."""
    return channels_first(FIXTURE[name]).double()


def data(space: Discrete = SPACE) -> Tensor:
    return space.encode(channels_first(FIXTURE["images"]).long(), F64)


# Its schedules, written out: γ(t) = b + |a| t + (1/n) Σ_j |c_j| (2 σ(|w_j| (2t − 1) + b_j) − 1).


def gamma_weights(kind: str) -> dict[str, Tensor]:
    """Of its schedule, as leaves, by its paths."""
    start = f"gamma/{kind}/"
    values = {k: theirs(k) for k in FIXTURE if k.startswith(start)}
    named = {k.removeprefix(start): v.flatten() for k, v in values.items()}
    return {k: v.requires_grad_() for k, v in named.items() if k not in ("u", "gamma", "slope")}


def plain_gamma(kind: str, weights: dict[str, Tensor], t: Tensor) -> Tensor:
    if kind == "fixed":
        return CONFIG["gamma_min"] + (CONFIG["gamma_max"] - CONFIG["gamma_min"]) * t
    if kind == "learnable_scalar":
        return weights["b"] + weights["w"].abs() * t
    inner = weights["l2/kernel"].abs() * (2 * t - 1)[:, None] + weights["l2/bias"]
    unit = weights["l3/kernel"].abs() * (2 * torch.sigmoid(inner) - 1)
    return weights["l1/bias"] + weights["l1/kernel"].abs() * t + unit.mean(1)


def made(kind: str, steps: int = 0) -> Schedule:
    """Our schedule with its weights; T steps are T + 1 latents."""
    latents = steps + 1 if steps else None
    weights = gamma_weights(kind)
    low, high = plain_gamma(kind, weights, float64([0.0, 1.0])).tolist()
    if kind == "fixed":
        return schedule.log_snr_linear(low, high, latents)
    net = kind == "learnable_nnet"
    out = schedule.learned(low, high, latents, features=1024 if net else 1, ends="learned")
    state = {"slope": out.slope, "heights": torch.zeros_like(out.heights)}
    if net:
        state = {"slope": weights["l1/kernel"][0], "heights": weights["l3/kernel"]}
        state |= {"widths": weights["l2/kernel"], "biases": weights["l2/bias"]}
    with torch.no_grad():
        for name, value in state.items():
            getattr(out, name).copy_(value)
    return out


def network() -> VDMUNet:
    """Ours with the weights of its ScoreUNet."""
    ends = {k: CONFIG[k] for k in ("gamma_min", "gamma_max")}
    net = VDMUNet(3, width=CONFIG["sm_n_embd"], blocks=CONFIG["sm_n_layer"], condition_dim=1, **ends).double()
    own = net.state_dict()
    given = {our_name(k.removeprefix("score/")): w / 16 for k, w in FIXTURE.items() if k.startswith("score/")}
    net.load_state_dict({name: our_weight(w, own[name]) for name, w in given.items()})
    return net.requires_grad_(False)


NETWORK = network()


def model(kind: str, steps: int = 0, space: Discrete = SPACE) -> DiffusionModel:
    return DiffusionModel(GaussianDiffusion(made(kind, steps)), Denoiser(NETWORK), likelihood.LevelPosterior(space))


def level(kind: str, steps: int) -> Tensor:
    """Its t, as ours: u, or the level T t."""
    t = theirs("vdm", kind, steps, "t")
    return (steps * t).round().long() if steps else t


def diffusion_loss(ours: DiffusionModel, at: Tensor, steps: int, eps: Tensor, x: Tensor | None = None) -> Tensor:
    """Its loss_diff (N,): one draw of the whole sum, or of the integral."""
    return (steps or 1) * ours.kl_at(data() if x is None else x, at, eps, NOTHING)


def all_costs(ours: DiffusionModel, at: Tensor, steps: int) -> Costs:
    """What we train on, at its draws."""
    weight = torch.full((ITEMS,), float(steps or 1), dtype=F64)
    draws = {"level": at, "weight": weight, "noise": noise("eps"), "first_noise": noise("eps_0")}
    return ours.costs(data(), draws, NOTHING)


def off(ours: Tensor, said: Tensor) -> float:
    """The largest difference, of the largest value."""
    assert ours.shape == said.shape
    assert ours.dtype == F64
    return float((ours - said).detach().abs().max() / said.abs().max())


def test_the_same_commit_and_data() -> None:
    """x = 2 (k + ½)/256 − 1. The control: levels from −1 to 1, as elsewhere, lie up to half a level off."""
    assert str(FIXTURE["commit"]) == COMMIT
    k = channels_first(FIXTURE["images"]).double()
    close(data(), 2 * (k + 0.5) / 256 - 1)
    assert {0, 255} <= set(FIXTURE["images"].flatten().tolist())
    assert off(data(Discrete((3, 4, 4), 256)), 2 * (k + 0.5) / 256 - 1) > 1e-3


# γ and dγ/dt.


@every_gamma
def test_its_schedules(kind: str) -> None:
    """γ and dγ/dt on 33 times, and its formula written out above, to 1e-13."""
    u, said, slope = (theirs("gamma", kind, what) for what in ("u", "gamma", "slope"))
    ours = made(kind)
    assert off(ours.gamma(u), said) < 1e-13
    assert off(ours.dgamma(u), slope) < 1e-13
    assert off(ours.ends(), said[[0, -1]]) < 1e-13
    assert off(plain_gamma(kind, gamma_weights(kind), u), said) < 1e-13
    grid = made(kind, steps=32).grid()
    assert off(grid, said) < 1e-13  # T = 32 steps are 33 latents


def test_other_monotone_networks_are_not_its() -> None:
    """The controls: units of another number, halved angles, another sign, or end points that are the initial ones."""
    u, said = theirs("gamma", "learnable_nnet", "u"), theirs("gamma", "learnable_nnet", "gamma")
    for name, factor in {"heights": 2.0, "widths": 0.5, "biases": -1.0, "slope": 2.0, "gamma_max": 0.9}.items():
        ours = made("learnable_nnet")
        assert off(ours.gamma(u), said) < 1e-13
        with torch.no_grad():
            getattr(ours, name).mul_(factor)
        assert off(ours.gamma(u), said) > 1e-3, name
    signs = made("learnable_nnet")
    assert isinstance(signs, Learned)
    assert bool((signs.widths < 0).any())
    assert float(signs.slope.detach()) < 0
    with torch.no_grad():
        signs.widths.abs_()
        signs.heights.abs_()
        signs.slope.abs_()
    assert off(signs.gamma(u), said) < 1e-13


# The three losses.


@every_time
@every_gamma
def test_its_network_hears_the_same(kind: str, steps: int) -> None:
    """ε̂ of the same z_t at the same γ_t, and γ_t, to 1e-10."""
    ours, at = model(kind, steps), level(kind, steps)
    gamma = ours.noisy_gamma(at)
    assert off(gamma, theirs("vdm", kind, steps, "g_t")) < 1e-13
    alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    z = alpha.reshape(-1, 1, 1, 1) * data() + sigma.reshape(-1, 1, 1, 1) * noise("eps")
    said = channels_first(FIXTURE[f"vdm/{kind}/{steps}/eps_hat"])
    assert off(ours.denoiser(z, gamma, NOTHING).noise, said) < 1e-10


@every_time
@every_gamma
def test_its_three_losses_per_item(kind: str, steps: int) -> None:
    """loss_recon, loss_klz and loss_diff, nats, to 1e-11 of them (measured: 4e-14), and their sum as training draws it."""
    ours, at = model(kind, steps), level(kind, steps)
    said = {name: theirs("vdm", kind, steps, f"loss_{name}") for name in ("recon", "klz", "diff")}
    assert off(ours.reconstruction(data(), noise("eps_0")), said["recon"]) < 1e-11
    assert off(ours.prior(data()), said["klz"]) < 1e-11
    assert off(diffusion_loss(ours, at, steps, noise("eps")), said["diff"]) < 1e-11
    assert off(all_costs(ours, at, steps).total(), said["recon"] + said["klz"] + said["diff"]) < 1e-11


@every_time
@every_gamma
def test_other_noise_levels_or_data_do_not_agree(kind: str, steps: int) -> None:
    """The controls, 0.15 % to 130 % off: ε_0 for ε, a time or a step off, levels from −1 to 1, one latent too few."""
    ours, at = model(kind, steps), level(kind, steps)
    recon, diff = (theirs("vdm", kind, steps, f"loss_{name}") for name in ("recon", "diff"))
    assert off(ours.reconstruction(data(), noise("eps")), recon) > 1e-3
    assert off(diffusion_loss(ours, at, steps, noise("eps_0")), diff) > 1e-3
    assert off(diffusion_loss(ours, (at - 1).clamp(1) if steps else at * 0.99, steps, noise("eps")), diff) > 1e-3
    whole = Discrete((3, 4, 4), 256)
    assert off(model(kind, steps, whole).reconstruction(data(whole), noise("eps_0")), recon) > 1e-3
    assert off(diffusion_loss(model(kind, steps, whole), at, steps, noise("eps"), data(whole)), diff) > 1e-3
    if steps:
        assert off(diffusion_loss(model(kind, steps - 1), at.clamp(max=steps - 1), steps, noise("eps")), diff) > 1e-3
    else:
        assert off(diffusion_loss(model(kind, 1000), (at * 1000).long(), 1000, noise("eps")), diff) > 1e-3


# What the losses would do to γ.


def gradients(kind: str, steps: int) -> dict[str, Tensor]:
    """Of the mean over the items of their sum, by the weights of its schedule: ours are its own, γ_min and γ_max functions of them."""
    ours, at, weights = model(kind, steps), level(kind, steps), gamma_weights(kind)
    cost = ours.reconstruction(data(), noise("eps_0")) + ours.prior(data())
    cost = cost + diffusion_loss(ours, at, steps, noise("eps"))
    gamma = ours.process.schedule
    assert isinstance(gamma, Learned)
    by_name = dict(gamma.named_parameters())
    ours_by = dict(zip(by_name, torch.autograd.grad(cost.mean(), list(by_name.values())), strict=True))
    ends = torch.stack([ours_by["gamma_min"], ours_by["gamma_max"]])
    through_ends = torch.autograd.grad(plain_gamma(kind, weights, float64([0.0, 1.0])), list(weights.values()), ends)
    same = {"l1/kernel": "slope", "l2/kernel": "widths", "l2/bias": "biases", "l3/kernel": "heights"}
    return {
        path: part + (ours_by[same[path]].reshape(part.shape) if path in same else 0)
        for path, part in zip(weights, through_ends, strict=True)
    }


@every_time
@every_learned_gamma
def test_every_gradient_of_its_schedule(kind: str, steps: int) -> None:
    """Through z, the network, its time and the weight of its error, and through all three losses, to 1e-9 (measured: 1.3e-12)."""
    for path, ours in gradients(kind, steps).items():
        said = theirs("vdm", kind, steps, "gradient", path)
        assert off(ours[: len(said)], said) < 1e-9, path


@every_time
def test_what_training_does_to_its_end_points(steps: int) -> None:
    """The same gradients by `costs`, which in continuous time trains γ's shape by the loss's variance (App. I.2) and its end points
    by the bound: of b + |w| t, w < 0, that by b is the sum of those by both, and that by w is −1 times that by γ_max.
    """
    ours = model("learnable_scalar", steps)
    gamma = ours.process.schedule
    assert isinstance(gamma, Learned)
    cost = all_costs(ours, level("learnable_scalar", steps), steps).total().mean()
    first, last = torch.autograd.grad(cost, [gamma.gamma_min, gamma.gamma_max])
    by_b, by_w = (theirs("vdm", "learnable_scalar", steps, "gradient", name) for name in ("b", "w"))
    assert off((first + last)[None], by_b) < 1e-9
    assert off(-last[None], by_w) < 1e-9


@every_time
@every_learned_gamma
def test_a_gradient_that_misses_a_part_is_another(kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the network's time cut off from γ, as where a schedule is a table of numbers."""
    forward = VDMUNet.forward
    monkeypatch.setattr(VDMUNet, "forward", lambda self, z, log_snr, c: forward(self, z, log_snr.detach(), c))
    differences = {
        path: off(ours[:100], theirs("vdm", kind, steps, "gradient", path))
        for path, ours in gradients(kind, steps).items()
    }
    assert min(differences.values()) > 1e-4, differences
