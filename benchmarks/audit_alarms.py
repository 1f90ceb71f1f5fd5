"""How often does the audit refuse a healthy model? Caveats of `evaluate` over seeds, for models of six kinds.

    python benchmarks/audit_alarms.py [--steps 600] [--seeds 50] [--models WORD …] [--out benchmarks/results/audit_alarms.json]

Six small networks are trained here on scikit-learn's digits: the levels head, an EDM-preconditioned denoiser and a flow-matching velocity
in continuous time, the last two with Bayes' rule over the levels as decoder at σ_1 of half a bin, and predictions of the noise, of v and
of the data at T = 1000. Each is evaluated with every seed, by two visits of each of the first 100 test digits under one plan, which was
learned on the training digits; the audit is on. Nothing is wrong with these models, so that every caveat is a false alarm.

    by_audit    evaluations that the audit refused: below 2 % is wanted
    by_draws    evaluations whose error rests on few draws
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.networks import UNet

ITEMS, VISITS, BATCH = 100, 2, 64
SPACE = df.Discrete((1, 8, 8), levels=17)


class EDM(nn.Module):
    """x̂ = c_skip y + c_out F(c_in y), y = z/α, with Karras et al. 2022's coefficients, MATH (23), for data of variance `variance`."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.net, self.variance = UNet(1, widths=(16, 32), blocks=1), variance

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        square = torch.exp(-log_snr)[:, None, None, None]  # σ² of the variance-exploding process
        y, total = z * (1 + square).sqrt(), square + self.variance
        return self.variance / total * y + (square * self.variance / total).sqrt() * self.net(y / total.sqrt(), log_snr)


class Flow(nn.Module):
    """x̂ = z' − t u with z' = (1 − t) y and t = σ/(α + σ): the velocity of flow matching, MATH (23)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(1, widths=(16, 32), blocks=1)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        ratio = torch.exp(-0.5 * log_snr)[:, None, None, None]
        t, y = ratio / (1 + ratio), z * (1 + ratio.square()).sqrt()
        return (1 - t) * y - t * self.net((1 - t) * y, log_snr)


def models(variance: float) -> dict[str, Callable[[], df.DiffusionModel]]:
    """The models by name, untrained; `variance` is that of the data."""
    half_a_bin = 2 * math.log(SPACE.width / 2)
    continuous = df.GaussianDiffusion(schedule.log_snr_linear(half_a_bin, 9.0))
    posterior = likelihood.LevelPosterior(SPACE)

    def net(outputs: int = 1) -> UNet:
        return UNet(1, outputs=outputs, widths=(16, 32), blocks=1)

    def levels() -> df.DiffusionModel:
        head = df.Denoiser(net(2), "levels", space=SPACE, head="logistic")
        return df.DiffusionModel(
            df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0)), head, likelihood.NetworkLevels(SPACE)
        )

    def discrete(chosen: Any, predicts: Any) -> df.DiffusionModel:
        decoder = likelihood.DiscretizedGaussian(SPACE)
        return df.DiffusionModel(df.GaussianDiffusion(chosen), df.Denoiser(net(), predicts), decoder)

    return {
        "levels head, continuous": levels,
        "EDM, continuous": lambda: df.DiffusionModel(continuous, df.Denoiser(EDM(variance), "data"), posterior),
        "flow, continuous": lambda: df.DiffusionModel(continuous, df.Denoiser(Flow(), "data"), posterior),
        "noise, linear, T = 1000": lambda: discrete(schedule.linear(steps=1000), "noise"),
        "v, cosine, T = 1000": lambda: discrete(schedule.cosine(steps=1000), "v"),
        "data, log-SNR-linear, T = 1000": lambda: discrete(schedule.log_snr_linear(-9.0, 9.0, steps=1000), "data"),
    }


def trained(model: df.DiffusionModel, x: Tensor, steps: int) -> df.DiffusionModel:
    """By the bound, with AdamW."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
    warm = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 50) * 0.5 * (1 + math.cos(math.pi * i / steps))
    )
    for _ in range(steps):
        batch = x[torch.randint(len(x), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        model.loss(batch, generator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm.step()
    return model.eval()


def measure(model: df.DiffusionModel, train: Tensor, test: Tensor, seeds: int) -> dict[str, Any]:
    """Caveats over seeds."""
    plan = df.Plan.fit(model, train)
    results = [df.evaluate(model, test[:ITEMS], visits=VISITS, plan=plan, seed=seed) for seed in range(seeds)]
    by_audit = [[c for c in r.caveats if c.startswith("level")] for r in results]
    values = torch.tensor([r.nelbo.value for r in results], dtype=torch.float64)
    return {
        "seeds": seeds,
        "by_audit": sum(map(bool, by_audit)),
        "by_draws": sum(any("few draws" in c for c in r.caveats) for r in results),
        "bits_per_dim": round(results[0].nelbo.to("bits/dim", SPACE.dimensions).value, 4),
        "error_over_sd": round(sum(r.nelbo.error for r in results) / seeds / float(values.std()), 3),
        "examples": [c for caveats in by_audit for c in caveats][:3],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="training steps of each model")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--models", nargs="+", metavar="WORD", help="only models whose name has one of these words")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "audit_alarms.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = df.data.load("digits")
    train, test = digits.encode("train"), digits.encode("test")
    record: dict[str, Any] = {
        "machine": machine(),
        "training_steps": args.steps,
        "items": ITEMS,
        "visits": VISITS,
        "models": {},
    }
    for name, make in models(float(train.var())).items():
        if args.models and not any(word in name for word in args.models):
            continue
        torch.manual_seed(0)
        start = time.process_time()
        model = trained(make(), train, args.steps)
        record["models"][name] = measure(model, train, test, args.seeds) | {
            "cpu_seconds": round(time.process_time() - start, 1)
        }
        print(name, record["models"][name], flush=True)
        save(args.out, record)
    alarms = sum(row["by_audit"] for row in record["models"].values())
    record["by_audit"] = alarms / max(1, sum(row["seeds"] for row in record["models"].values()))
    save(args.out, record)
    print(f"{100 * record['by_audit']:.1f} % of the evaluations were refused by the audit; written to {args.out}")


if __name__ == "__main__":
    main()
