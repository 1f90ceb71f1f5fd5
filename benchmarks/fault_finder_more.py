"""Two faults that grey digits of one copy of the weights cannot have: reversed channels, and weights that are not the moving average.

    python benchmarks/fault_finder_more.py --part channels --data CIFAR.npz
    python benchmarks/fault_finder_more.py --part average

The networks, their kinds and their trials are those of fault_finder.py.

    channels    networks of CIFAR-10's images, averaged to 8 × 8 pixels, are checked on images whose channels are reversed, and on
                right ones ("none": a finding is a false alarm)
    average     networks of the digits are trained with a constant learning rate, and their weights averaged with the rate 0.99. `check_weights`
                compares the two copies on other items and noise in every trial. Which copy is better is known from all test digits and
                ten draws of the noise. "detected" is the better copy named, and "wrong" the other one.

Results of the other part in --out are kept.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_finder import FIRST_NETWORK, FIRST_TRIAL, KINDS, NETWORKS, SHARE, STEPS, Memo, declared, train
from provenance import commit, machine, save
from torch import Tensor

import diffusional as df
from diffusional.interop.averages import Copies, check_weights, keep_copies

RATE = 0.99
COLOUR = df.Discrete((3, 8, 8), levels=256)


def colours(path: str) -> tuple[Tensor, Tensor]:
    """Return CIFAR-10's images, averaged over blocks of 4 × 4 pixels and encoded: for training and for the trials."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    images = [one for one in arrays.values() if one.ndim == 4]
    x_train, x_test = sorted(images, key=len, reverse=True)[:2]
    found = []
    for raw in (x_train, x_test):
        levels = torch.from_numpy(raw.astype(np.float32)).reshape(-1, 3, 8, 4, 8, 4).mean((3, 5)).round().long()
        found.append(COLOUR.encode(levels))
    return found[0], found[1]


def channels(architecture: str, name: str, training: str, x: tuple[Tensor, Tensor], trials: int) -> dict[str, Any]:
    """Return the counts of one cell of the part `channels`."""
    kind = KINDS[name]
    torch.manual_seed(FIRST_NETWORK)
    net = NETWORKS[architecture](kind.unit, 3)
    train(declared(kind, net, space=COLOUR), net, x[0], int(STEPS[architecture] * SHARE[training]), FIRST_NETWORK)
    model = declared(kind, Memo(net.eval()), space=COLOUR)
    counts = {"none": 0, "detected": 0, "named": 0}
    for number in range(FIRST_TRIAL, FIRST_TRIAL + trials):
        chosen = torch.randperm(len(x[1]), generator=torch.Generator().manual_seed(number))[:16]
        items = x[1][chosen]
        right = df.check_denoiser(model, items, seed=number, items=16)
        wrong = df.check_denoiser(model, items.flip(1), seed=number, items=16)
        differences = wrong.declared.differences(wrong.best)
        counts["none"] += bool(right.findings)
        counts["detected"] += bool(wrong.findings)
        counts["named"] += differences.keys() == {"channels"}
    return counts


def average(architecture: str, name: str, training: str, x: tuple[Tensor, Tensor], trials: int) -> dict[str, Any]:
    """Return the counts of one cell of the part `average`."""
    kind = KINDS[name]
    torch.manual_seed(FIRST_NETWORK)
    net = NETWORKS[architecture](kind.unit)
    mean = copy.deepcopy(net)

    def follow() -> None:
        with torch.no_grad():
            for ours, theirs in zip(mean.parameters(), net.parameters(), strict=True):
                ours.lerp_(theirs, 1 - RATE)

    steps = int(STEPS[architecture] * SHARE[training])
    train(declared(kind, net), net, x[0], steps, FIRST_NETWORK, decay=False, after=follow)
    states = {"raw": net.state_dict(), "ema": mean.state_dict()}
    states = {key: {k: v.clone() for k, v in state.items()} for key, state in states.items()}
    keep_copies(net, Copies("raw", {"raw": "raw", "ema": "ema"}, lambda which: states[which]))
    model = declared(kind, net.eval())
    known = [check_weights(model, x[1], items=len(x[1]), seed=seed) for seed in range(10)]
    gaps = torch.tensor([one.difference for one in known if one is not None])
    truth = "ema" if gaps.mean() > 0 else "raw"
    counts = {"detected": 0, "wrong": 0}
    for number in range(FIRST_TRIAL, FIRST_TRIAL + trials):
        chosen = torch.randperm(len(x[1]), generator=torch.Generator().manual_seed(number))[:64]
        found = check_weights(model, x[1][chosen], seed=number)
        assert found is not None
        counts["detected"] += found.better == truth
        counts["wrong"] += found.better not in (None, truth)
    bits = sum(one.bits_per_dim for one in known if one is not None) / len(known)
    return {"better": truth, "difference": float(gaps.mean()), "bits_per_dim": bits} | counts


PARTS = {"channels": channels, "average": average}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--data", default="../shared/data/cifar10-subset.npz", help="CIFAR-10's images, for `channels`")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--models", nargs="*", default=list(KINDS))
    parser.add_argument("--training", nargs="*", default=list(SHARE))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fault_finder_more.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = df.data.load("digits")
    x = colours(options.data) if options.part == "channels" else (digits.encode("train"), digits.encode("test"))
    rows: list[dict[str, Any]] = []
    for architecture in options.networks:
        for name in options.models:
            for training in options.training:
                start = time.process_time()
                found = PARTS[options.part](architecture, name, training, x, options.trials)
                cell = {"network": architecture, "kind": name, "training": training, "trials": options.trials}
                rows.append(cell | found | {"cpu_seconds": round(time.process_time() - start, 1)})
                print(rows[-1], flush=True)
                record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
                record[options.part] = {"rows": rows, "commit": commit(), "machine": machine()}
                save(options.out, record)


if __name__ == "__main__":
    main()
