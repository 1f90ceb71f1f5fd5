"""The information of a masked chain in worlds that can be enumerated: exact numbers, no draws.

    python benchmarks/masked_information.py                                                # 20 s of one core

For a random world of 4 positions with 3 categories and exact conditionals, or flattened ones:

    curve       I(x; z) along a, of the masked and the uniform process
    budget      information | gap | cost of each level of a chain of 8 steps, by the conditionals of q(z_t | z_{t+1}) from the table
    Markov      I(x; z_t | z_{t-1}) of the chain, and of a variant that draws the masks of every level anew
    steps       the excess of the bound of T steps over H(x), and KL[data ‖ samples], with exact conditionals
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from provenance import machine
from torch import Tensor, nn

import diffusional as df
from diffusional.sequences import SequenceWorld, all_sequences, exact_ledger, exact_probabilities

LENGTH, K, STEPS = 4, 3, 8


class Flattened(nn.Module):
    """Conditionals that are too flat: an imperfect network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return 0.6 * self.network(tokens)


def entropy(p: Tensor) -> float:
    """Return the entropy of probabilities, nats."""
    return float(torch.special.entr(p).sum())


def joint(world: SequenceWorld, process: Any, t: int, z: Tensor) -> Tensor:
    """Return q(x, z_t) (states, latents)."""
    x = world.states
    rows, latents = x.repeat_interleave(len(z), 0), z.repeat(len(x), 1)
    chance = process.marginal(rows, t).log_prob(latents).double().exp().view(len(x), len(z))
    return world.table.flatten()[:, None] * chance


def mutual(p: Tensor) -> float:
    """Return the mutual information of a joint table, nats."""
    return entropy(p.sum(0)) + entropy(p.sum(1)) - entropy(p)


def transition(process: Any, z: Tensor, t: int) -> Tensor:
    """Return q(z_t | z_{t-1}) (latents before, latents after)."""
    rows, after = z.repeat_interleave(len(z), 0), z.repeat(len(z), 1)
    return process.transition(rows, t).log_prob(after).double().exp().view(len(z), len(z))


def curves(world: SequenceWorld) -> dict[str, list[float]]:
    """Return I(x; z) of both processes at 21 signals."""
    signals = [i / 20 for i in range(21)]
    uniform = df.UniformNoise(K, signal=torch.tensor([1 - i / 21 for i in range(1, 21)], dtype=torch.float64))
    x = world.states
    found = [mutual(joint(world, uniform, t, x)) for t in range(1, 21)]
    return {
        "a": signals,
        "masked": [world.information(a) for a in signals],
        "a, uniform": [float(a) for a in uniform.signal],
        "uniform": found,
    }


def budget(world: SequenceWorld, model: df.MaskedDiffusion) -> list[dict[str, float]]:
    """Return information, gap and cost of each term, all three by themselves: from entropies, from conditionals, and from the ledger."""
    process, x = model.process, world.states
    z = all_sequences(LENGTH, K + 1)
    share = world.table.flatten()
    ledger = exact_ledger(model, x, K + 1)
    information = [world.information(float(a)) for a in model.noise_levels()]
    rows = []
    posterior = joint(world, process, 1, z)
    cost = float(share @ ledger.reconstruction)
    hidden = entropy(share) - information[0]
    # H(x | z_1), and the divergence of q(x | z_1) from p(x | z_1).
    given = posterior / posterior.sum(0).clamp(min=1e-300)
    log_p = model.decode(z.repeat_interleave(len(x), 0)).log_prob(x.repeat(len(z), 1)).double().view(len(z), len(x)).T
    gap = float(torch.where(posterior > 0, posterior * (given.clamp(min=1e-300).log() - log_p), 0.0).sum())
    rows.append({"information": hidden, "gap": gap, "cost": cost})
    for t in range(1, STEPS):
        before = joint(world, process, t, z).sum(0)
        pairs = before[:, None] * transition(process, z, t + 1)  # q(z_t, z_{t+1})
        after = pairs.sum(0)
        reached = pairs > 0
        given = (pairs / after.clamp(min=1e-300)).clamp(min=1e-300).log()
        level = torch.full((len(z) ** 2,), t)
        log_p = model.step(z.repeat_interleave(len(z), 0), level).log_prob(z.repeat(len(z), 1)).double()
        gap = float(torch.where(reached, pairs * (given - log_p.view(len(z), len(z)).T), 0.0).sum())
        cost = float(share @ ledger.kl[:, t - 1])
        rows.append({"information": information[t - 1] - information[t], "gap": gap, "cost": cost})
    return rows


def markov(world: SequenceWorld, process: df.Absorbing) -> list[dict[str, float]]:
    """Return I(x; z_t | z_{t-1}) for t = 2 …, of the chain by enumeration, and of masks that are drawn anew at every level."""
    z, rows = all_sequences(LENGTH, K + 1), []
    for t in range(2, STEPS + 1):
        first = joint(world, process, t - 1, z)
        move = transition(process, z, t)
        # I(x; z_t | z_{t-1}) = H(z_t | z_{t-1}) − H(z_t | z_{t-1}, x) by the joint table of all three.
        three = first[:, :, None] * move[None]
        both = three.sum(0)
        chain = entropy(both) - entropy(both.sum(1)) - entropy(three) + entropy(first)
        keep, then = float(process.keeps(t)), float(process.keeps(t - 1))
        anew = world.information(1 - (1 - keep) * (1 - then)) - world.information(then)
        rows.append({"t": t, "chain": chain, "anew": anew})
    return rows


def few_steps(world: SequenceWorld) -> dict[str, dict[str, float]]:
    """Return the excess of the bound over H(x) and the divergence of the samples from the data, by the number of steps."""
    share, out = world.table.flatten(), {}
    chain = df.MaskedDiffusion(world.conditionals(), world.space)
    for steps in (2, 3, 4, 6, 8, 16, None):
        few = chain if steps is None else chain.regrid(steps)
        bound = float(share @ exact_ledger(few, world.states, K + 1).nelbo)
        drawn = exact_probabilities(few, K + 1)
        divergence = float((share * (share.log() - drawn.log())).sum())
        name = "one at a time" if steps is None else str(steps)
        out[name] = {"excess": bound - world.entropy(), "divergence": divergence}
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/masked-information.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    world = SequenceWorld.random(LENGTH, K, 0)
    process = df.Absorbing(K, STEPS)
    exact = df.MaskedDiffusion(world.conditionals(), world.space, process)
    flat = df.MaskedDiffusion(Flattened(world.conditionals()), world.space, process)
    record = {
        "entropy": world.entropy(),
        "uniform guess": LENGTH * math.log(K),
        "curve": curves(world),
        "budget": {"exact": budget(world, exact), "flattened": budget(world, flat)},
        "markov": markov(world, process),
        "steps": few_steps(world),
        "machine": machine(),
    }
    given.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, rows in record["budget"].items():
        total = {key: sum(row[key] for row in rows) for key in rows[0]}
        away = max(abs(row["information"] + row["gap"] - row["cost"]) for row in rows)
        print(name, total, "largest |information + gap − cost|", away)
    print(record["markov"], record["steps"], record["entropy"])


if __name__ == "__main__":
    main()
