"""Record the numbers that the library computes on fixed seeds, and show what a change altered.

    python tools/digest.py --out before.json             # record: a minute and a half on one core
    python tools/digest.py --against before.json         # compare: prints every difference, exit status 1 if there is one
    python tools/digest.py --against before.json --only vae

Covered: losses with the gradient norms of all parameters, ledgers, walked paths, samples, per-item scores and errors (by full
sweep, by visits and to a target error), plans, comparisons, informations, nat budgets, exact worlds, baselines, and the numbers of
the claims, for Gaussian diffusions (T = 1000, short chains, continuous time; every prediction and variance), learned schedules,
binomial diffusions and autoencoders.

Networks are small and untrained. Their weights are set here from a seed, so that a change to a network's initialisation or to
training shows as such, not as a change of every number. Plans are part of the record: `--against` evaluates under the plans of the
file it compares with, so that a change to `Plan.fit` does not hide what happens under a given plan.

Only public names are used, so that the tool runs on older versions too:

    git worktree add /tmp/before COMMIT && PYTHONPATH=/tmp/before/src python tools/digest.py --out before.json

A part that raises is recorded as the type of its exception. Entries are compared bit by bit (float64, NaN equals NaN), except for what
`Plan.fit` finds: the last digits of LAPACK's solutions differ from run to run, so these are compared to a relative 1e-6 (coefficients,
which are badly conditioned where a control varies little, to 1e-2). An entry that only the new run has is listed, but is no difference.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import exact, information, likelihood, networks, schedule, space
from diffusional.evaluation.controls import restored
from diffusional.models.denoiser import clipped

DIGITS = space.Discrete((1, 8, 8), levels=17)
BITS = space.binary((16,))
TABLE = space.Continuous((5,), shift=(1.0, -2.0, 0.5, 30.0, 0.0), scale=(1.0, 3.0, 0.2, 10.0, 1.0))


def rng(seed: int = 0) -> torch.Generator:
    """A generator at `seed`."""
    return torch.Generator().manual_seed(seed)


# The record.


class Record:
    """Named numbers, and the plans under which some of them were found."""

    def __init__(self, plans: dict[str, Any] | None = None) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self.given, self.plans = plans, dict[str, Any]()

    def put(self, name: str, value: Any) -> None:
        """Record a tensor, number, string, or (nested) mapping, sequence or dataclass of them."""
        if isinstance(value, df.Evaluation):
            self._evaluation(name, value)
        elif isinstance(value, Tensor):
            flat = value.detach().cpu().double().flatten().numpy()
            self.entries[name] = {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": list(value.shape),
                "sha256": hashlib.sha256(flat.tobytes()).hexdigest(),
                "values": flat.tolist(),
            }
        elif isinstance(value, bool | int | float | np.number):
            self.put(name, torch.tensor(value, dtype=torch.float64))
        elif value is None or isinstance(value, str):
            self.entries[name] = {"text": str(value)}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            self.put(name, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self.put(f"{name}/{key}", part)
        elif isinstance(value, list | tuple):
            numbers = bool(value) and all(isinstance(v, bool | int | float) for v in value)
            self.put(name, torch.tensor(value, dtype=torch.float64) if numbers else dict(enumerate(value)))
        else:
            raise TypeError(f"{name}: cannot record a {type(value).__name__}")

    def _evaluation(self, name: str, value: df.Evaluation) -> None:
        self.put(name, {"nelbo": value.nelbo, "terms": value.terms, "per_item": value.per_item})
        levels = {"kl": value.levels_kl, "error": value.levels_error, "edges": value.level_edges}
        # Of caveats their number: their wording is no number.
        about = {"freedom": value.freedom, "reached": value.reached, "caveats": len(value.caveats)}
        self.put(name, {"levels": levels, **about})

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What fails inside is recorded as the type of its exception."""
        torch.manual_seed(0)
        try:
            yield
        except Exception as error:
            self.entries[name] = {"error": type(error).__name__}
            print(f"  {name}: {type(error).__name__}: {error}", file=sys.stderr)

    def plan(self, name: str, model: Any, make: Callable[[], df.Plan]) -> df.Plan:
        """The plan `name`: that of the record compared with, if it has one, else a new one."""
        if self.given is not None and name in self.given:
            self.plans[name] = self.given[name]
            return _plan(self.given[name], model)
        made = make()
        self.plans[name] = _numbers(made)
        return _plan(self.plans[name], model)


_PLAN = ("edges", "mass", "constant", "expected", "drawn", "scale")


def _numbers(plan: df.Plan) -> dict[str, Any]:
    def written(value: Tensor) -> dict[str, Any]:
        return {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "values": value.flatten().tolist(),
        }

    return {
        "tensors": {name: written(getattr(plan, name)) for name in _PLAN},
        "controls": {
            c.name: {part: written(torch.as_tensor(v)) for part, v in c.state().items()} for c in plan.controls
        },
        "provenance": dict(plan.provenance),
    }


def _plan(numbers: dict[str, Any], model: Any) -> df.Plan:
    def read(part: dict[str, Any]) -> Tensor:
        return torch.tensor(part["values"], dtype=getattr(torch, part["dtype"])).reshape(part["shape"])

    controls = tuple(
        restored(name, model, {part: read(v) for part, v in state.items()})
        for name, state in numbers["controls"].items()
    )
    tensors = {name: read(part) for name, part in numbers["tensors"].items()}
    return df.Plan(**tensors, controls=controls, provenance=dict(numbers["provenance"]))


# Networks and models.


def weigh(module: nn.Module, seed: int = 0, gain: float = 1.0) -> Any:
    """Set all weights from `seed`: matrices to N(0, gain²/fan-in), vectors to their value + N(0, 0.1²)."""
    generator = rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if p.ndim > 1:
                p.copy_(gain * noise / math.sqrt(math.prod(p.shape[1:])))
            else:
                p.add_(0.1 * noise)
    return module


class Net(nn.Module):
    """The best prediction for unit Gaussian data, plus a tenth of a random network, which gives further output channels."""

    def __init__(self, shape: tuple[int, ...], predicts: str, outputs: int = 1, condition: int = 0, seed: int = 0):
        super().__init__()
        self.shape, self.predicts, self.outputs = shape, predicts, outputs
        d = math.prod(shape)
        self.first, self.last = nn.Linear(d + 2 + condition, 24), nn.Linear(24, outputs * d)
        weigh(self, seed)

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        time = torch.stack([torch.sin(0.3 * log_snr), torch.cos(0.5 * log_snr)], 1).to(z.dtype)
        said = [z.flatten(1), time]
        if condition is not None:
            said.append(condition.to(z.dtype).reshape(len(z), -1))
        out = self.last(torch.tanh(self.first(torch.cat(said, 1))))
        out = out.unflatten(1, (self.outputs * self.shape[0], *self.shape[1:]))
        if self.predicts in ("noise", "data"):
            sign = 1 if self.predicts == "data" else -1
            factor = torch.sigmoid(sign * log_snr.double()).sqrt().to(z.dtype)
            best = z * factor.reshape(-1, *(1,) * (z.ndim - 1))
            more = out.shape[1] - z.shape[1]
            out = 0.1 * out + (torch.cat([best, torch.zeros_like(out[:, :more])], 1) if more else best)
        return out


def diffusion(
    predicts: str,
    noise: schedule.Schedule,
    decoder: Callable[..., Any],
    variance: str = "posterior",
    over: Any = DIGITS,
    head: str = "logistic",
    condition: int = 0,
) -> df.DiffusionModel:
    """A small diffusion model."""
    learns = variance == "learned"
    outputs = 1 + learns
    if predicts == "levels":
        outputs = (2 if head == "logistic" else over.levels) + learns
    module = Net(over.shape, predicts, outputs, condition)
    denoiser = df.Denoiser(module, predicts, over if predicts == "levels" else None, head, learns_variance=learns)  # type: ignore[arg-type]
    return df.DiffusionModel(df.GaussianDiffusion(noise), denoiser, decoder(over), variance)  # type: ignore[arg-type]


def diffusions() -> dict[str, tuple[df.DiffusionModel, str]]:
    """Models by name, and their data: "digits" or "table"."""
    lp, dg, nl, gl = (
        likelihood.LevelPosterior,
        likelihood.DiscretizedGaussian,
        likelihood.NetworkLevels,
        likelihood.GaussianLikelihood,
    )
    by_snr = schedule.log_snr_linear
    learned = schedule.learned(-9.0, 8.0, features=16)
    ends = schedule.learned(-9.0, 8.0, features=16, ends="learned")
    clip = diffusion("noise", schedule.cosine(steps=50), dg)
    clip = df.DiffusionModel(clip.process, clipped(clip.denoiser, DIGITS), dg(DIGITS))
    mlp = networks.MLP((1, 8, 8), hidden=16, depth=2)
    weigh(mlp, gain=0.5)
    own = df.DiffusionModel(df.GaussianDiffusion(by_snr(-9.0, 10.0, steps=100)), df.Denoiser(mlp, "v"), lp(DIGITS))
    return {
        "noise, T=1000": (diffusion("noise", schedule.linear(steps=1000), lp), "digits"),
        "noise, T=1000, transition": (diffusion("noise", schedule.linear(steps=1000), dg, "transition"), "digits"),
        "v, T=1000, cosine": (diffusion("v", schedule.cosine(steps=1000), dg), "digits"),
        "learned variance, T=1000": (diffusion("noise", schedule.linear(steps=1000), dg, "learned"), "digits"),
        "levels, T=1000": (diffusion("levels", by_snr(-9.0, 10.0, steps=1000), nl), "digits"),
        "noise, continuous": (diffusion("noise", by_snr(-9.0, 10.0), lp), "digits"),
        "v, continuous": (diffusion("v", by_snr(-9.0, 10.0), lp), "digits"),
        "data, continuous": (diffusion("data", by_snr(-9.0, 10.0), dg), "digits"),
        "levels, continuous": (diffusion("levels", by_snr(-9.0, 10.0), nl), "digits"),
        "categorical levels, T=20": (
            diffusion("levels", by_snr(-9.0, 10.0, steps=20), nl, head="categorical"),
            "digits",
        ),
        "score, T=20": (diffusion("score", by_snr(-4.0, 6.0, steps=20), dg), "digits"),
        "learned variance, levels, T=20": (
            diffusion("levels", by_snr(-9.0, 10.0, steps=20), nl, "learned"),
            "digits",
        ),
        "clipped, T=50": (clip, "digits"),
        "library's MLP, T=100": (own, "digits"),
        "learned γ": (diffusion("noise", learned, lp), "digits"),
        "learned γ, learned ends": (diffusion("v", ends, lp), "digits"),
        "learned γ, T=20": (diffusion("v", learned.regrid(20), lp), "digits"),
        "learned betas, T=20": (diffusion("noise", schedule.learned_betas(steps=20, beta_first=1e-3), dg), "digits"),
        "table, T=100": (diffusion("noise", by_snr(-9.0, 9.0, steps=100), gl, over=TABLE), "table"),
        "table, continuous": (diffusion("v", by_snr(-9.0, 9.0), gl, over=TABLE), "table"),
        "condition, T=100": (diffusion("v", by_snr(-9.0, 10.0, steps=100), lp, condition=1), "digits"),
    }


def autoencoders() -> dict[str, Any]:
    """A VAE, one with a continuous likelihood, a hierarchical one, and one with a diffusion prior in discrete and continuous time."""
    nl = likelihood.NetworkLevels(DIGITS)

    def encoder(n: int, seed: int) -> nn.Module:
        return weigh(nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 2 * n)), seed)

    def decoder(n: int, channels: int, seed: int) -> nn.Module:
        layers = nn.Linear(n, 24), nn.Tanh(), nn.Linear(24, channels * 64), nn.Unflatten(1, (channels, 8, 8))
        return weigh(nn.Sequential(*layers), seed)

    def prior(steps: int | None) -> df.DiffusionModel:
        over = space.Continuous((4,))
        made = likelihood.GaussianLikelihood(over, assisted=False)
        noise = schedule.log_snr_linear(-8.0, 8.0, steps=steps)
        return df.DiffusionModel(df.GaussianDiffusion(noise), df.Denoiser(Net((4,), "v"), "v"), made)

    ladder = networks.Ladder((1, 8, 8), (2, 8, 8), latents=(6, 3), hidden=16)
    weigh(ladder, gain=0.7)
    gaussian = likelihood.DiscretizedGaussian(DIGITS, variance=0.05)
    return {
        "vae": df.VAE(encoder(4, 1), decoder(4, 2, 2), nl, latents=4),
        "vae, discretised Gaussian": df.VAE(encoder(4, 1), decoder(4, 1, 2), gaussian, latents=4),
        "hierarchical vae": df.HierarchicalVAE(ladder, nl),
        "vae, diffusion prior, T=50": df.VAE(encoder(4, 1), decoder(4, 2, 2), nl, latents=4, prior=prior(50)),
        "vae, diffusion prior, continuous": df.VAE(encoder(4, 1), decoder(4, 2, 2), nl, latents=4, prior=prior(None)),
    }


def digits(split: str) -> Tensor:
    return df.data.load("digits").encode(split)


def table(n: int, seed: int = 0) -> Tensor:
    """Correlated rows."""
    mixing = torch.randn(5, 5, generator=rng(1), dtype=torch.float64) / math.sqrt(5)
    return (torch.randn(n, 5, generator=rng(seed), dtype=torch.float64) @ mixing).float()


# The parts.


def losses(out: Record, name: str, model: Any, x: Tensor, condition: Tensor | None = None, **options: Any) -> None:
    """The loss and the gradient norm of every parameter."""
    with out.part(f"{name}/loss"):
        model.zero_grad(set_to_none=True)
        loss = model.loss(x, rng(3), condition, **options)
        loss.backward()
        out.put(f"{name}/loss", loss)
        for key, p in model.named_parameters():
            if p.grad is not None:
                out.put(f"{name}/loss/gradient/{key}", p.grad.double().norm())
        model.zero_grad(set_to_none=True)


def models(out: Record, chosen: Callable[[str], bool]) -> None:
    """Gaussian diffusions."""
    test, train = digits("test"), digits("train")
    for name, (model, kind) in diffusions().items():
        name = f"diffusion/{name}"
        if not chosen(name):
            continue
        x, reference = (test, train[:400]) if kind == "digits" else (table(200), table(400, 2))
        n = 8 if model.timesteps is None or model.timesteps > 200 else 24
        c = torch.linspace(-1, 1, len(x)).reshape(-1, 1) if "condition" in name else None
        cr = torch.linspace(-1, 1, len(reference)).reshape(-1, 1) if "condition" in name else None
        first = None if c is None else c[:64]
        losses(out, name, model, x[:64], first)
        if "learned" not in name:
            losses(out, f"{name}, adaptive", model, x[:64], first, sampler=df.timesteps.Adaptive())
        with out.part(f"{name}/simple"), torch.no_grad():
            out.put(f"{name}/simple", model.simple_loss(x[:64], rng(4), first))
        with out.part(f"{name}/elbo"), torch.no_grad():
            ledger = model.elbo(x[:3], rng(5), None if c is None else c[:3])
            out.put(f"{name}/elbo", ledger)
            out.put(f"{name}/elbo/nelbo", ledger.nelbo)
            out.put(f"{name}/elbo/bits per dim", ledger.bits_per_dim())
        with out.part(f"{name}/path"), torch.no_grad():
            walked = model if model.steps is not None else model.regrid(100)
            out.put(f"{name}/path", walked.path_elbo(x[:2], rng(6), None if c is None else c[:2]))
        with out.part(f"{name}/samples"):
            steps = 40 if model.steps is None or model.steps > 100 else None
            cs = None if c is None else c[:4]
            out.put(f"{name}/samples", model.sample(4, rng(7), cs, steps=steps))
            out.put(f"{name}/samples, ddim", model.sample(4, rng(7), cs, method="ddim", steps=steps))
            out.put(f"{name}/samples, ddim, η=0.5", model.sample(4, rng(7), cs, method="ddim", steps=steps, eta=0.5))
        with out.part(f"{name}/sweep"):
            cn = None if c is None else c[:n]
            out.put(f"{name}/sweep", df.evaluate(model, x[:n], cells=200, condition=cn, seed=1))
        with out.part(f"{name}/plan"), torch.no_grad():
            plan = df.Plan.fit(model, reference, 1500, seed=2, condition=cr)
            out.put(f"{name}/plan", {key: getattr(plan, key) for key in _PLAN})
            out.put(f"{name}/plan/variance of a draw", plan.draw_variance)
            out.put(f"{name}/plan/base", plan.base(model, x[:10]))
        evaluations(out, name, model, x, reference, c, cr)


def evaluations(
    out: Record, name: str, model: Any, x: Tensor, reference: Tensor, c: Tensor | None, cr: Tensor | None
) -> None:
    """Evaluations under given plans."""
    few = None if c is None else c[:32]
    with out.part(f"{name}/visits, uniform"):
        uniform = df.Plan.uniform(model)
        out.put(f"{name}/visits, uniform", df.evaluate(model, x[:32], visits=4, plan=uniform, condition=few, seed=3))
    with out.part(f"{name}/visits"):
        plan = out.plan(name, model, lambda: df.Plan.fit(model, reference, 1500, seed=2, condition=cr))
        options: dict[str, Any] = {"plan": plan, "audit": False, "seed": 4}
        out.put(f"{name}/visits", df.evaluate(model, x[:32], visits=4, condition=few, **options))
        with out.part(f"{name}/target"):
            result = df.evaluate(model, x[:100], 0.1, condition=None if c is None else c[:100], **options)
            out.put(f"{name}/target", result)
        with out.part(f"{name}/target, audited"):
            audited: dict[str, Any] = options | {"audit": True}
            result = df.evaluate(model, x[:100], 0.2, condition=None if c is None else c[:100], **audited)
            out.put(f"{name}/target, audited", result)
        with out.part(f"{name}/item error"):
            own = None if c is None else c[:4]
            out.put(f"{name}/item error", df.evaluate(model, x[:4], item_error=0.3, condition=own, **options))


def hybrid(out: Record, chosen: Callable[[str], bool]) -> None:
    """L_hybrid of a learned variance."""
    if not chosen("hybrid"):
        return
    model = diffusion("noise", schedule.linear(steps=1000), likelihood.DiscretizedGaussian, "learned")
    x = digits("train")[:64]
    costs = model.hybrid_costs(x, model.latent_draw(x, df.timesteps.SecondMoment(), rng(8)))
    out.put("hybrid", costs)
    costs.total().mean().backward()
    for key, p in model.named_parameters():
        if p.grad is not None:
            out.put(f"hybrid/gradient/{key}", p.grad.double().norm())


def binomial(out: Record, chosen: Callable[[str], bool]) -> None:
    """A binomial diffusion of 16 pixels, black or white."""
    if not chosen("binomial"):
        return
    x = torch.where(digits("test").flatten(1)[:, 24:40] > 0, 1.0, -1.0)
    process = df.BinomialDiffusion.constant(50)
    model = df.BinomialDiffusionModel(process, Net((16,), "logits"), BITS)
    losses(out, "binomial", model, x[:64])
    with torch.no_grad():
        out.put("binomial/elbo", model.elbo(x[:4], rng(5)))
        out.put("binomial/path", model.path_elbo(x[:4], rng(6)))
    out.put("binomial/samples", model.sample(6, rng(7)))
    out.put("binomial/sweep", df.evaluate(model, x[:24], seed=1))
    with out.part("binomial/plan"):
        plan = df.Plan.fit(model, x, 1500, seed=2)
        out.put("binomial/plan", {key: getattr(plan, key) for key in _PLAN})
    evaluations(out, "binomial", model, x, x, None, None)


def learned_posteriors(out: Record, chosen: Callable[[str], bool]) -> None:
    """Autoencoders."""
    x = digits("test")
    for name, model in autoencoders().items():
        name = f"autoencoder/{name}"
        if not chosen(name):
            continue
        losses(out, name, model, x[:64])
        with out.part(f"{name}/elbo"), torch.no_grad():
            out.put(f"{name}/elbo", model.elbo(x[:8], rng(5)))
        with out.part(f"{name}/samples"):
            out.put(f"{name}/samples", model.sample(4, rng(7)))
        with out.part(f"{name}/evaluate"):
            out.put(f"{name}/evaluate", df.evaluate(model, x[:16], visits=4, seed=1))
        with out.part(f"{name}/target"):
            wanted = 0.1 if "prior" in name else 0.02
            out.put(f"{name}/target", df.evaluate(model, x[:16], wanted, seed=2))
        with out.part(f"{name}/importance weighted"):
            from diffusional.evaluation import importance_weighted

            out.put(f"{name}/importance weighted", importance_weighted(model, x[:16], 32, seed=3))
        with out.part(f"{name}/information"):
            out.put(f"{name}/information", information.aggregated(model, digits("train")[:300], 600, rng(8)))


def comparisons(out: Record, chosen: Callable[[str], bool]) -> None:
    """`compare` under given plans."""
    if not chosen("compare"):
        return
    x, reference = digits("test")[:200], digits("train")[:400]
    for name, steps in (("T=200", 200), ("continuous", None)):
        noise = schedule.log_snr_linear(-9.0, 10.0, steps=steps)
        a = diffusion("v", noise, likelihood.LevelPosterior)
        b = diffusion("noise", noise, likelihood.LevelPosterior)
        with out.part(f"compare/{name}"):
            one = out.plan(f"compare/{name}/a", a, lambda a=a: df.Plan.fit(a, reference, 1500, seed=2))
            other = out.plan(
                f"compare/{name}/b", b, lambda b=b, one=one: df.Plan.fit(b, reference, 1500, seed=2, like=one)
            )
            found = df.compare(a, b, x, 0.05, plans=(one, other), seed=1, audit=False)
            out.put(f"compare/{name}", {"difference": found.difference, "a": found.a, "b": found.b})
            out.put(f"compare/{name}/freedom", found.freedom)


def informations(out: Record, chosen: Callable[[str], bool]) -> None:
    """Curves, chains, budgets and bounds."""
    if not chosen("information"):
        return
    x = digits("test")[:200]
    gaussian = exact.Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 2.0]]))
    mixture = exact.Mixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[[0.1]], [[0.3]]]))
    finite = exact.Finite(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [1.0, 0.5], [0.0, -1.0]]))
    wide = exact.Mixture(
        torch.tensor([0.4, 0.6]), torch.randn(2, 3, generator=rng(1)), torch.eye(3).expand(2, 3, 3) * 0.3
    )
    repeated = torch.cat([x[:50], x[:20], x[:5]])
    worlds: dict[str, Any] = {
        "digits": x,
        "repeated digits": repeated,
        "gaussian": gaussian,
        "mixture": mixture,
        "finite": finite,
        "wide": wide,
    }
    for name, data in worlds.items():
        for time_, noise in (("T=1000", schedule.linear(steps=1000)), ("continuous", schedule.log_snr_linear(-9, 9))):
            with out.part(f"information/curve/{name}, {time_}"):
                found = information.curve(data, noise, timesteps=12, samples=300, generator=rng(1))
                out.put(f"information/curve/{name}, {time_}", found)
                out.put(f"information/curve/{name}, {time_}/lost", [found.lost(s) for s in (0.1, 0.5, 0.9)])
                out.put(f"information/curve/{name}, {time_}/wasted", found.wasted())
    betas = schedule.from_betas([0.05, 0.1, 0.3, 0.4, 0.6])
    for name, process in (
        ("markov", df.GaussianDiffusion(betas)),
        ("non-markov", df.NonMarkovDiffusion(betas, eta=0.5)),
    ):
        for data in ("gaussian", "finite"):
            with out.part(f"information/chain/{name}, {data}"):
                out.put(
                    f"information/chain/{name}, {data}",
                    vars(information.chain_rule(worlds[data], process, 300, rng(2))),
                )
    for name, steps in (("T=20", 20), ("continuous", None)):
        noise = schedule.log_snr_linear(-8.0, 8.0, steps=steps)
        over = space.Continuous((2,))
        world = df.DiffusionModel(
            df.GaussianDiffusion(noise), df.Denoiser(Net((2,), "data"), "data"), likelihood.GaussianLikelihood(over)
        )
        oracle = df.DiffusionModel(
            df.GaussianDiffusion(noise), gaussian.denoiser(), likelihood.GaussianLikelihood(over)
        )
        with out.part(f"information/budget/{name}"):
            out.put(
                f"information/budget/{name}",
                information.budget(world, gaussian, samples=300, generator=rng(3)).to_json(),
            )
            out.put(
                f"information/budget/{name}, closed",
                information.budget(oracle, gaussian, samples=300, generator=rng(3)).to_json(),
            )
        real = diffusion("v", schedule.log_snr_linear(-9.0, 10.0, steps=steps), likelihood.LevelPosterior)
        with out.part(f"information/bound/{name}"):
            out.put(f"information/bound/{name}", vars(information.bound(real, x, 10, 200, rng(4))))
        with out.part(f"information/budget, real/{name}"):
            other = diffusion("noise", schedule.log_snr_linear(-9.0, 10.0, steps=steps), likelihood.LevelPosterior)
            out.put(
                f"information/budget, real/{name}",
                information.budget(real, x, other, samples=200, generator=rng(3)).to_json(),
            )
    gamma = torch.tensor([-6.0, 0.0, 4.0], dtype=torch.float64)
    for name, world in (("gaussian", gaussian), ("mixture", mixture), ("finite", finite)):
        with out.part(f"exact/{name}"):
            out.put(f"exact/{name}/entropy", world.entropy())
            out.put(f"exact/{name}/mmse", world.mmse(gamma))
            out.put(f"exact/{name}/information", [world.information(float(g)).value for g in gamma])
            points = world.sample(6, rng(9))
            out.put(f"exact/{name}/points", points)
            out.put(f"exact/{name}/log_prob", world.log_prob(points))
            out.put(f"exact/{name}/optimum", torch.stack([world.optimum(points, g)[0] for g in gamma]))


def baselines(out: Record, chosen: Callable[[str], bool]) -> None:
    """The yardsticks."""
    if not chosen("baselines"):
        return
    data = df.data.load("digits")
    train, test = data.tensor("train")[:400], data.tensor("test")[:50]
    categorical, mixture = df.baselines.FactorizedCategorical, df.baselines.CategoricalMixture
    out.put("baselines/factorised", categorical.fit(train, DIGITS, test).log_prob(test))
    out.put("baselines/mixture", mixture.fit(train, DIGITS, test).log_prob(test))
    full = df.baselines.FullGaussian.fit(TABLE.decode(table(400)), TABLE)
    out.put("baselines/gaussian", full.log_prob(TABLE.decode(table(20, 2))))


def claims(out: Record, chosen: Callable[[str], bool]) -> None:
    """The claims and their controls: what each check measured."""
    for claim in df.claims.CLAIMS:
        name = f"claims/{claim.id}"
        if not chosen(name):
            continue
        with out.part(name):
            (result,) = df.claims.run([claim.id])
            checks = {"checks": result.checks, **result.controls}
            for key, some in checks.items():
                out.put(f"{name}/{key}", [[check.measured, check.error] for check in some])


PARTS = (models, hybrid, binomial, learned_posteriors, comparisons, informations, baselines, claims)


# Differences.


# Entries that pass through LAPACK, and how far they may differ, as a part of the entry's largest value: the first that matches.
ROUNDING = {"/plan/(expected|drawn)$": 1e-2, "/plan(/|$)": 1e-6}


def difference(before: dict[str, Any], now: dict[str, Any], rounding: float = 0.0) -> str:
    """What differs between two entries, in words; empty where nothing does, up to `rounding` of the largest value."""
    if "values" not in before or "values" not in now:
        return "" if before == now else f"{_short(before)} → {_short(now)}"
    if before["shape"] != now["shape"]:
        return f"shape {before['shape']} → {now['shape']}"
    kind = "" if before["dtype"] == now["dtype"] else f"{before['dtype']} → {now['dtype']}; "
    if before["sha256"] == now["sha256"]:
        return kind.removesuffix("; ")
    one, other = (np.array(entry["values"], dtype=np.float64) for entry in (before, now))
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    if rounding:
        same |= np.abs(one - other) <= rounding * np.abs(one).max()
    if same.all():
        return kind.removesuffix("; ")
    gap = np.where(same, 0.0, np.abs(other - one))
    # NaN against a number, or infinities of other signs: further off than any number.
    gap = np.where(np.isnan(gap), np.inf, gap)
    worst = int(gap.argmax())
    return (
        f"{kind}{int((~same).sum())} of {len(one)} values; largest deviation {gap[worst]:.3g} "
        f"({float(one[worst])!r} → {float(other[worst])!r})"
    )


def rounding(name: str) -> float:
    """How far the entry of this name may differ."""
    return next((allowed for pattern, allowed in ROUNDING.items() if re.search(pattern, name)), 0.0)


def _short(entry: dict[str, Any]) -> str:
    if "values" in entry:
        return f"values of shape {entry['shape']}"
    return f"raises {entry['error']}" if "error" in entry else repr(entry["text"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--against", type=Path, help="compare with this record; exit status 1 where anything differs")
    parser.add_argument("--only", default="", help="only entries whose name this regular expression matches")
    options = parser.parse_args()
    if options.out is None and options.against is None:
        parser.error("expected --out FILE, --against FILE, or both")
    before = None if options.against is None else json.loads(options.against.read_text())

    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    print(f"diffusional from {Path(str(df.__file__)).parent}", file=sys.stderr)
    out = Record(None if before is None else before["plans"])

    def chosen(name: str) -> bool:
        return re.search(options.only, name) is not None

    start = time.monotonic()
    for part in PARTS:
        began = time.monotonic()
        with out.part(part.__name__):
            part(out, chosen)
        print(f"{part.__name__}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    print(f"{len(out.entries)} entries in {time.monotonic() - start:.0f} s", file=sys.stderr)
    if options.out is not None:
        options.out.write_text(json.dumps({"entries": out.entries, "plans": out.plans}))
    if before is None:
        return 0

    lines, new = [], [name for name in out.entries if name not in before["entries"]]
    # With --only, parts that were left out are not missing.
    gone = [] if options.only else [name for name in before["entries"] if name not in out.entries]
    for name, entry in out.entries.items():
        if name in before["entries"] and (text := difference(before["entries"][name], entry, rounding(name))):
            lines.append(f"{name}: {text}")
    for line in [*lines, *(f"{name}: missing now" for name in gone)]:
        print(line)
    lines += gone
    print(f"{len(out.entries) - len(new)} entries compared, {len(lines)} differ; {len(new)} are new")
    for name in new:
        print(f"  new: {name}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
