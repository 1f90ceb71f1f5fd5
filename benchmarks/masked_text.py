"""The bound of a masked diffusion of text, and the variance of its estimators at equal numbers of network evaluations.

    python benchmarks/masked_text.py --run quick.pt --quick --part bound     # then --part variance, --part coverage

RUN is a folder of `diffusional train … --data.name text --model.kind masked`, or a state dict that `--quick` trained (85 s of one core). Estimators of part
`variance`:

    mdlm     one t a sequence, u + i/B over the batch, weight 1/t (Sahoo et al. 2024): a data set is one batch
    llada    n masked positions, systematic over the draws of an item from one uniform number, weight L/n (Nie et al. 2025)
    plan     visits under a plan that the run's own training visits (or a pilot on training text) have learned, with controls or without
    disjoint the same, where an item's masks do not overlap: parts of one permutation of its positions, until that is used up
    replicates  `by_replicates`: two halves of the visits, independent of each other; in each the levels are stratified and the masks disjoint
"""

import argparse
import bz2
import json
import lzma
import math
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffusional as df
from diffusional.data.tokens import alphabet_of, load_text
from diffusional.evaluation import Plan, by_replicates
from diffusional.evaluation.recorded import plan_from_visits
from diffusional.networks import SequenceTransformer
from diffusional.training.checkpoint import restore_progress
from diffusional.training.visit_log import kept_visits

BIT = math.log(2)


def markov(train: np.ndarray, test: np.ndarray, order: int, k: int = 27) -> float:
    """Return the bits per character of a Markov model whose counts are interpolated with those of lower orders (Witten–Bell)."""
    counts = [dict[tuple[int, ...], np.ndarray]() for _ in range(order + 1)]
    for i in range(len(train)):
        for n in range(min(order, i) + 1):
            context = tuple(train[i - n : i])
            counts[n].setdefault(context, np.zeros(k))[train[i]] += 1
    total = 0.0
    for i in range(len(test)):
        p = np.full(k, 1 / k)
        for n in range(min(order, i) + 1):
            found = counts[n].get(tuple(test[i - n : i]))
            if found is not None:
                kinds = (found > 0).sum()
                p = (found + kinds * p) / (found.sum() + kinds)
        total -= math.log2(p[test[i]])
    return total / len(test)


def compressed(train: bytes, test: bytes) -> dict[str, float]:
    """Return bits per character of compressors: of the held-out text after the training text, and by itself."""
    out = {}
    for name, compress in (("bz2", lambda b: bz2.compress(b, 9)), ("xz", lambda b: lzma.compress(b, preset=9))):
        out[name] = 8 * (len(compress(train + test)) - len(compress(train))) / len(test)
        out[f"{name}, by itself"] = 8 * len(compress(test)) / len(test)
    return out


@torch.inference_mode()
def hidden(model: df.MaskedDiffusion, x: Tensor, masks: Tensor) -> Tensor:
    """Return Σ_{i ∈ M} −ln p_i (B,) for masks (B, L)."""
    z = torch.where(masks, float(model.process.mask), x)
    return torch.cat([model.hidden_map(a, b).sum(1) for a, b in zip(x.split(256), z.split(256), strict=True)])


def mdlm(model: df.MaskedDiffusion, x: Tensor, rng: torch.Generator, least: float = 0.0) -> Tensor:
    """Return one estimate (B,) for each item of a batch, nats: t = u + i/B mod 1 in [least, 1], independent masks, weight 1/t."""
    u = (torch.arange(len(x)) / len(x) + torch.rand(1, generator=rng)) % 1
    t = (least + (1 - least) * u[torch.randperm(len(x), generator=rng)]).double()
    masks = torch.rand(x.shape, generator=rng, dtype=torch.float64) < t[:, None]
    return hidden(model, x, masks) / t


def llada(model: df.MaskedDiffusion, x: Tensor, draws: int, rng: torch.Generator) -> Tensor:
    """Return an estimate (B,) from `draws` masks of every item: n = ⌈L (u + j/J)⌉, u the item's own, weight L/n."""
    length, total = x.shape[1], torch.zeros(len(x), dtype=torch.float64)
    u = torch.rand(len(x), generator=rng, dtype=torch.float64)
    for j in range(draws):
        n = (length * ((u + j / draws) % 1)).long() + 1
        place = torch.rand(x.shape, generator=rng).argsort(1).argsort(1)
        total += hidden(model, x, place < n[:, None]) * length / n
    return total / draws


@torch.inference_mode()
def disjoint(model: df.MaskedDiffusion, x: Tensor, plan: Plan, draws: int, rng: torch.Generator) -> Tensor:
    """Return an estimate (B,) from `draws` visits of every item under a plan, of which consecutive ones have disjoint masks. A mask that no
    longer fits begins a new permutation. Each mask is uniform, so that the estimate is unbiased; those of an item are not independent.
    """
    total = plan.base(model, x).sum(1) + model.prior(x)
    order, used = torch.zeros(x.shape), torch.full((len(x),), x.shape[1])
    for _ in range(draws):
        visits = plan.at(torch.rand(len(x), generator=rng, dtype=torch.float64))
        n = torch.where(visits.cell == 0, 1, visits.level + 1)
        fresh = used + n > x.shape[1]
        order = torch.where(fresh[:, None], torch.rand(x.shape, generator=rng).argsort(1).argsort(1), order)
        used = torch.where(fresh, 0, used)
        # The chain masks the positions of the smallest noise.
        noise = ((order - used[:, None]) % x.shape[1]).float()
        used = used + n
        total += visits.weight * plan.residuals(model, x, visits, noise) / draws
    return total


def measured(model: df.MaskedDiffusion, x: Tensor, plans: dict[str, Plan], draws: int, repeats: int) -> dict[str, Any]:
    """Return, for each estimator, the variance of the mean of x at one evaluation an item, the mean over items of the variance of an item's score at
    `draws` evaluations, and the mean, nats; from repetitions.

    Estimates of different items are independent, so that the variance of their mean follows from those of the items. MDLM's are not: the
    variance of its mean is that of 10 times as many repetitions of one batch.
    """
    found: dict[str, list[Tensor]] = {}
    for r in range(repeats):
        rng = torch.Generator().manual_seed(1000 + r)
        found.setdefault("mdlm", []).append(torch.stack([mdlm(model, x, rng) for _ in range(draws)]).mean(0))
        found.setdefault("llada", []).append(llada(model, x, draws, rng))
        found.setdefault("plan, disjoint masks", []).append(disjoint(model, x, plans["plan"], draws, rng))
        for name, plan in plans.items():
            scores = df.evaluate(model, x, visits=draws, plan=plan, audit=False, seed=r).per_item
            found.setdefault(name, []).append(scores["nelbo"])
        halves = by_replicates(model, x, plans["plan"], visits=draws // 2, replicates=2, seed=r)
        found.setdefault("plan, replicates", []).append(halves.per_item["nelbo"])
    batches = torch.stack([mdlm(model, x, torch.Generator().manual_seed(r)).mean() for r in range(10 * repeats)])
    out: dict[str, Any] = {}
    for name, scores in found.items():
        item = torch.stack(scores)
        variance = float(item.var(0).mean())
        out[name] = {
            "variance of the mean at one evaluation an item": float(batches.var())
            if name == "mdlm"
            else variance * draws / len(x),
            "variance of an item": variance,
            "mean": float(item.mean()),
            "error of the mean": float(item.mean(1).std()) / repeats**0.5,
        }
    return out


def covered(model: df.MaskedDiffusion, x: Tensor, plan: Plan, truth: float, repeats: int) -> dict[str, float]:
    """Return how many 95 % intervals of evaluations with 4 visits of every item contain the mean that many more draws gave."""
    inside = 0
    for r in range(repeats):
        found = df.evaluate(model, x, visits=4, plan=plan, audit=False, seed=10_000 + r)
        low, high = found.nelbo.interval(found.freedom)
        inside += low <= truth <= high
    return {"covered": inside / repeats, "error": (inside / repeats * (1 - inside / repeats) / repeats) ** 0.5}


def quick(path: Path, length: int = 64, seconds: float = 85.0) -> None:
    """Train a small model for some seconds of one core, and save its averaged weights."""
    torch.manual_seed(0)
    data = load_text("text", length=length)
    x = data.encode("train")
    model = df.MaskedDiffusion(SequenceTransformer(27, length, 64, 2, 4), data.space)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.99), weight_decay=0.01)
    rng, steps = torch.Generator().manual_seed(1), 1500
    average = {name: value.clone() for name, value in model.state_dict().items()}
    start, order, at, step = time.process_time(), torch.randperm(len(x), generator=rng), 0, 0
    while step < steps and time.process_time() - start < seconds:
        part = max(step / steps, (time.process_time() - start) / seconds)
        rate = 3e-3 * min(1, (step + 1) / 60)
        rate *= 1 if part < 0.4 else 0.5 * (1 + math.cos(math.pi * (part - 0.4) / 0.6))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if at + 32 > len(x):
            order, at = torch.randperm(len(x), generator=rng), 0
        loss = model.loss(x[order[at : at + 32]], rng)
        at += 32
        optimizer.zero_grad()
        (loss / length).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.99, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                average[name].mul_(decay).add_(value, alpha=1 - decay)
        step += 1
    torch.save({"state": average, "steps": step, "cpu_seconds": time.process_time() - start}, path)


def trained_of(run: Path) -> dict[str, Any]:
    """Return how a run was trained: its steps, the seconds that these took, and its options."""
    config = df.training.Config.load(run / "config.json")
    return {
        "steps": config.steps,
        "seconds": round(restore_progress(run / "checkpoints").seconds),
        "width": config.model.hidden,
        "layers": config.model.blocks,
        "heads": config.model.heads,
        "dropout": config.model.dropout,
        "batch": config.batch,
        "learning rate": config.optimizer.lr,
        "average": config.optimizer.ema,
    }


def loaded(path: Path) -> tuple[df.MaskedDiffusion, dict[str, Any]]:
    """Return the model of a run, or of what `quick` saved, and how it was trained."""
    if path.is_dir():
        model = df.load(path)
        assert isinstance(model, df.MaskedDiffusion)
        return model, trained_of(path)
    saved = torch.load(path, weights_only=True)
    length, width = saved["state"]["network.positions"].shape
    model = df.MaskedDiffusion(SequenceTransformer(27, length, width, 2, 4), df.space.Categorical(length, 27, "text8"))
    model.load_state_dict(saved["state"])
    return model, {"steps": saved["steps"], "cpu_seconds": round(saved["cpu_seconds"])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--coverage", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=840.0, help="of training of the autoregressive model")
    parser.add_argument(
        "--truth", type=int, default=600, help="evaluations of an item for the value that intervals should contain"
    )
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/masked-text.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        quick(given.run)
    model, trained = loaded(given.run)
    model = model.requires_grad_(False).eval()
    started = time.process_time()
    record: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    record |= PARTS[given.part](model, trained, given)
    record.setdefault("cpu_seconds", {})[given.part] = round(time.process_time() - started)
    given.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1, ensure_ascii=False))


def causal_bits(network: SequenceTransformer, x: Tensor) -> Tensor:
    """Return −log2 p of blocks x (B, L), per character (B,). The mask stands before the first character."""
    tokens = x.long()
    before = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=27)
    logits = network(before).float()
    return torch.nn.functional.cross_entropy(logits.mT, tokens, reduction="none").mean(1) / BIT


def causal(data: Any, size: dict[str, int], seconds: float, batch: int, rate: float, bf16: bool) -> dict[str, Any]:
    """Train an autoregressive transformer for some seconds of one core, and return its bits per character of the test text.

    AdamW with the schedule of `diffusional train`; the weights are averaged, and those with the best of twelve validations are kept.
    """
    torch.manual_seed(0)
    length = data.space.dimensions
    network = SequenceTransformer(27, length, **size, dropout=0.1, causal=True)
    average = SequenceTransformer(27, length, **size, causal=True).requires_grad_(False).eval()
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.01)
    train, validation, test = (data.encode(split) for split in ("train", "validation", "test"))
    rng, order, at, step = torch.Generator().manual_seed(1), torch.zeros(0, dtype=torch.long), 0, 0
    best, kept, found, start = math.inf, {}, list[dict[str, float]](), time.process_time()
    while (part := (time.process_time() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = (
                rate
                * min(1, (step + 1) / 150)
                * (1 if part < 0.3 else 0.5 * (1 + math.cos(math.pi * (part - 0.3) / 0.7)))
            )
        if at + batch > len(order):
            order, at = torch.randperm(len(train), generator=rng), 0
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = causal_bits(network, train[order[at : at + batch]]).mean() * BIT
        at, step = at + batch, step + 1
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        keep = min(0.998, (1 + step) / (10 + step))
        for mine, live in zip(average.parameters(), network.parameters(), strict=True):
            mine.lerp_(live.detach(), 1 - keep)
        if part > (len(found) + 1) / 13:
            with torch.inference_mode():
                now = float(torch.cat([causal_bits(average, some) for some in validation.split(64)]).mean())
            found.append({"seconds": round(time.process_time() - start), "validation": now})
            print(step, found[-1], flush=True)
            if now < best:
                best, kept = now, {name: value.clone() for name, value in average.state_dict().items()}
    average.load_state_dict(kept)
    with torch.inference_mode():
        bits = torch.cat([causal_bits(average, some) for some in test.split(64)])
    return {
        "bits": float(bits.mean()),
        "over items": float(bits.std()) / len(bits) ** 0.5,
        "weights": sum(p.numel() for p in network.parameters()),
        "steps": step,
        "cpu_seconds": round(time.process_time() - start),
        "validations": found,
    }


def autoregressive(model: df.MaskedDiffusion, trained: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Return the bits per character of an autoregressive transformer of the same size, trained here for `--seconds`."""
    config = df.training.Config.load(given.run / "config.json")
    size = {"width": config.model.hidden, "layers": config.model.blocks, "heads": config.model.heads}
    data = load_text("text", length=model.space.dimensions)
    rate, bf16 = config.optimizer.lr, config.precision == "bf16"
    return {"autoregressive": causal(data, size, given.seconds, config.batch, rate, bf16)}


def plan_of(run: Path, model: df.MaskedDiffusion, train: Tensor) -> Plan:
    """Return the plan from the visits that a run has kept of its training, or from a pilot of 2,000 evaluations."""
    visits = kept_visits(run, model) if run.is_dir() else None
    return Plan.fit(model, train, 2000) if visits is None else plan_from_visits(model, train, visits)


def bound(model: df.MaskedDiffusion, trained: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Return the bound of the test text, beside the chain rule from left to right, Markov models and compressors."""
    length = model.space.dimensions
    data = load_text("text", length=length)
    x, test, train = data.encode("test"), data.tensor("test").numpy(), data.tensor("train").numpy().reshape(-1)
    plan = plan_of(given.run, model, data.encode("train"))
    said = df.evaluate(model, x, visits=16, plan=plan, audit=False).nelbo.to("bits/dim", length)
    order = model.chain_rule(x) / (length * BIT)
    flat, known = test.reshape(-1), alphabet_of("text8")
    return {
        "model": trained | {"length": length, "weights": sum(p.numel() for p in model.parameters())},
        "data": {"train": len(train), "test": test.size},
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "threads": 1},
        "bound": {"bits": said.value, "error": said.error, "over items": said.item_error, "items": said.n},
        "left to right": {"bits": float(order.mean()), "over items": float(order.std()) / len(order) ** 0.5},
        "markov": {str(n): markov(train.tolist(), flat.tolist(), n) for n in range(given.orders + 1)},
        "compressors": compressed(known.decode(train).encode(), known.decode(flat).encode()),
    }


def variance(model: df.MaskedDiffusion, trained: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Return the variances of the estimators, and how many evaluations of an item they take for ± 0.01 bits per character."""
    length = model.space.dimensions
    data, bits = load_text("text", length=length), length * BIT
    x = data.encode("test")[: given.items]
    train = data.encode("train")
    plans = {
        "plan, no control": Plan.fit(model, train, 2000, controls=()),
        "plan, neighbours": Plan.fit(model, train, 2000, controls=("neighbours",)),
        "plan, pilot": Plan.fit(model, train, 2000),
        "plan": plan_of(given.run, model, train),
    }
    found = measured(model, x, plans, given.draws, given.repeats)
    for one in found.values():
        one["K for ± 0.01 bits"] = one["variance of the mean at one evaluation an item"] / (0.01 * bits) ** 2
        one["mean, bits"], one["error, bits"] = one.pop("mean") / bits, one.pop("error of the mean") / bits
    floor = torch.stack([mdlm(model, x, torch.Generator().manual_seed(r), 1e-3) for r in range(given.repeats)]).mean(1)
    error = float(floor.std()) / given.repeats**0.5
    return {
        "estimators": found,
        "items": len(x),
        "draws": given.draws,
        "repeats": given.repeats,
        "mdlm, t on [1e-3, 1]": {"bits": float(floor.mean()) / bits, "error": error / bits},
    }


def coverage(model: df.MaskedDiffusion, trained: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Return how often 95 % intervals contain the value of many more draws."""
    data = load_text("text", length=model.space.dimensions)
    x, plan = data.encode("test")[: given.items], plan_of(given.run, model, data.encode("train"))
    truth = df.evaluate(model, x, visits=given.truth, plan=plan, audit=False, seed=99).nelbo
    found = covered(model, x, plan, truth.value, given.coverage)
    return {
        "plan": plan.provenance["method"],
        "coverage": found | {"repeats": given.coverage, "items": len(x), "error of the truth, nats": truth.error},
    }


def steps(model: df.MaskedDiffusion, trained: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Return the bound of the same network when it samples in T steps, of the first blocks of the test text."""
    length = model.space.dimensions
    data = load_text("text", length=length)
    x, train = data.encode("test")[: given.items], data.encode("train")
    found = {}
    for count in (4, 8, 16, 32, 64, 128, 256, None):
        few = model if count is None else model.regrid(count)
        plan = plan_of(given.run, model, train) if count is None else Plan.fit(few, train, 1000)
        said = df.evaluate(few, x, visits=8, plan=plan, audit=False).nelbo.to("bits/dim", length)
        found["one at a time" if count is None else str(count)] = {"bits": said.value, "error": said.error}
    return {"steps": found, "steps, items": len(x)}


PARTS = {"steps": steps, "bound": bound, "autoregressive": autoregressive, "variance": variance, "coverage": coverage}

if __name__ == "__main__":
    main()
