"""Linear probes by noise level: what can be read from z_t, and what from the features of a network that denoises it.

    python benchmarks/probes.py --set digits|mnist [--data FOLDER] [--quick] [--out FILE]

A small U-Net is trained for v on all noise levels, without labels. At every log SNR, logistic regression (standardised inputs) is fitted to
noisy images of the training split, and scored on noisy images of the test split, from

    z_t             the pixels of z_t
    features        the output of the network's lowest resolution, averaged over quarters of the map
    untrained       the same of the network before it was trained

and from the latents of a VAE of equal training time, means and draws of q(z|x). Every measurement is repeated with other noise, in training
and in test: its errors are over the test items, with the repeats of an item taken together, and over the repeats.

What is possible: with the empirical law of the training images as p(x), the posterior p(class|z_t) is known. The accuracy of the classifier
that knows it, on noisy training images, is the highest that any function of z_t has in that world; I(x; z_t) and the information of z_t
about the class, with Fano's bound on the accuracy, stand beside it. The same classifier on test images is a kernel classifier.

Results of the other set in --out are kept.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from provenance import commit, machine, save
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d
from velocity import noisy, train

import diffusional as df
from diffusional.evaluation.noise import stream
from diffusional.networks import ResidualMLP, UNet

ENDS = (-10.0, 8.0)
# For each set: widths of the U-Net, seconds of training, most items to fit the probe and to score it.
RECIPES = {"digits": ((16, 48), 60, 1000, 447), "mnist": ((16, 48), 120, 3000, 1000)}
LOG_SNRS = (-8, -6, -5, -4, -3, -2, 0, 2, 4, 6, 8, 10)


def opened(name: str, folder: str) -> tuple[dict[str, Tensor], dict[str, Tensor], df.Discrete]:
    """Return images (N, 1, H, W) and labels (N,) by split, and the space: the digits, or MNIST averaged to 14 × 14 pixels."""
    if name == "digits":
        data = df.data.load("digits", condition="label")
        images = {split: data.encode(split).float() for split in ("train", "test")}
        space = data.space
    else:
        data, space = df.data.load(folder, levels=256, condition="label"), df.Discrete((1, 14, 14), 256)
        images = {
            split: space.encode(avg_pool2d(data.tensor(split).float(), 2).round().long()).float()
            for split in ("train", "test")
        }
    labels = {split: data.condition_of(split) for split in images}
    return images, labels, space


class Reached(Exception):
    """The features are there: the rest of the network is not needed."""


@torch.no_grad()
def features(network: UNet, z: Tensor, log_snr: float) -> Tensor:
    """Return the output of the lowest resolution, averaged over quarters (N, 4 C)."""
    found = list[Tensor]()

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        found.append(adaptive_avg_pool2d(output, 2).flatten(1))
        raise Reached

    hook = network.middle[-1].register_forward_hook(keep)
    try:
        for part in z.split(250):
            try:
                network(part, torch.full((len(part),), log_snr))
            except Reached:
                continue
    finally:
        hook.remove()
    return torch.cat(found)


def noise(like: Tensor, *key: Any) -> Tensor:
    """Return normal numbers of a key."""
    seed = int(stream(repr(key).encode(), 0).integers(2**62))
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def probed(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Tensor:
    """Return which test rows (N,) a linear probe classifies rightly."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, tol=1e-3))
    probe.fit(train_x.flatten(1).numpy(), train_y.numpy())
    return torch.from_numpy(probe.predict(test_x.flatten(1).numpy()) == test_y.numpy())


def accuracy(right: Tensor) -> dict[str, float]:
    """Return the accuracy of hits (R, N) in R repeats, with its errors over items and over repeats."""
    hits = right.double()
    over = hits.mean(1).std() / math.sqrt(len(hits)) if len(hits) > 1 else torch.zeros(())
    return {
        "value": float(hits.mean()),
        "items": float(hits.mean(0).std()) / math.sqrt(hits.shape[1]),
        "noise": float(over),
    }


def posterior(points: Tensor, labels: Tensor, z: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return p(class|z) (N, 10) and ln p(z) (N,) without its constant, for x uniform over `points`."""
    g = torch.tensor(gamma, dtype=torch.float64)
    a, variance = torch.sigmoid(-g).sqrt(), torch.sigmoid(g)
    out, logs = [], []
    for part in z.flatten(1).double().split(250):
        distance = torch.cdist(part, a * points.flatten(1).double()).square()
        log = -0.5 * distance / variance - math.log(len(points))
        whole = torch.logsumexp(log, 1)
        share = (log - whole[:, None]).exp()
        out.append(torch.zeros(len(part), 10, dtype=torch.float64).index_add_(1, labels, share))
        logs.append(whole)
    return torch.cat(out), torch.cat(logs)


def fano(conditional: float, classes: int = 10) -> float:
    """Return the highest accuracy that a remaining entropy H(c|z) in nats allows, by Fano's inequality.

    >>> fano(0.0), round(fano(math.log(10)), 6)
    (1.0, 0.1)
    """

    def entropy(error: float) -> float:
        return -error * math.log(error) - (1 - error) * math.log(1 - error) + error * math.log(classes - 1)

    most = 1 - 1 / classes
    if conditional <= 1e-9:
        return 1.0
    return 1 - (most if conditional >= entropy(most) else brentq(lambda e: entropy(e) - conditional, 1e-12, most))


def possible(
    points: Tensor, labels: Tensor, test: Tensor, test_y: Tensor, log_snr: float, repeats: int
) -> dict[str, Any]:
    """Return what the empirical law of the training images allows at a noise level."""
    gamma = torch.tensor(-float(log_snr))
    own, other, left, information = [], [], [], []
    some = torch.randperm(len(points), generator=torch.Generator().manual_seed(5))[: len(test)]
    for r in range(repeats):
        e = noise(points[some], "world", log_snr, r)
        p, log = posterior(points, labels, noisy(points[some], gamma, e), -log_snr)
        # The mean of the best guess's own probability has less noise than that of its hits, and the same expectation.
        own.append(p.max(1).values)
        left.append(-(p * p.clamp(min=1e-300).log()).sum(1))
        information.append(-0.5 * e.flatten(1).double().square().sum(1) - log)
        p, _ = posterior(points, labels, noisy(test, gamma, noise(test, "kernel", log_snr, r)), -log_snr)
        other.append(p.argmax(1) == test_y)

    def mean(values: list[Tensor]) -> dict[str, float]:
        rows = torch.stack(values)
        return {"value": float(rows.mean()), "error": float(rows.mean(0).std()) / math.sqrt(rows.shape[1])}

    entropy = mean(left)
    return {
        "bayes": mean(own),
        "class_entropy_left": entropy,
        "fano": fano(entropy["value"]),
        "information": mean(information),
        "kernel": accuracy(torch.stack(other)),
    }


def vae(
    whole: Tensor,
    images: dict[str, Tensor],
    labels: dict[str, Tensor],
    space: df.Discrete,
    seconds: float,
    repeats: int,
) -> dict[str, Any]:
    """Return the accuracies of probes of a VAE's latents."""
    torch.manual_seed(0)
    latents, shape = 16, space.shape
    encoder = ResidualMLP(shape, 2 * latents, hidden=256, dropout=0.1)
    decoder = nn.Sequential(
        ResidualMLP((latents,), 2 * math.prod(shape), hidden=256, dropout=0.1), nn.Unflatten(1, (2, *shape[1:]))
    )
    model = df.VAE(encoder, decoder, df.likelihood.NetworkLevels(space), latents=latents)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    begun, generator, step = time.process_time(), torch.Generator().manual_seed(1), 0
    while (used := time.process_time() - begun) < seconds:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - used / seconds) + 1e-5
        loss = model.loss(whole[torch.randint(len(whole), (128,), generator=generator)], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        step += 1
    model.eval()
    with torch.no_grad():
        code = {split: model.posterior(images[split]) for split in images}
    means = [probed(code["train"].mean, labels["train"], code["test"].mean, labels["test"])]
    draws = []
    for r in range(repeats):
        drawn = {k: q.mean + (0.5 * q.log_variance).exp() * noise(q.mean, "vae", k, r) for k, q in code.items()}
        draws.append(probed(drawn["train"], labels["train"], drawn["test"], labels["test"]))
    with torch.no_grad():
        ledger = model.elbo(images["test"], torch.Generator().manual_seed(0))
    return {
        "latents": latents,
        "steps": step,
        "bits_per_dim": float(ledger.nelbo.mean()) / math.prod(shape) / math.log(2),
        "kl_nats": float(ledger.prior.mean()),
        "mean": accuracy(torch.stack(means)),
        "draw": accuracy(torch.stack(draws)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=tuple(RECIPES), required=True)
    parser.add_argument("--data", default="../shared/data/mnist", help="the folder of MNIST's files")
    parser.add_argument("--repeats", type=int, default=3, help="measurements with other noise")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probes.json")
    options = parser.parse_args()
    began = time.process_time()
    widths, seconds, most, score = RECIPES[options.set]
    if options.quick:
        seconds, most, score = 1, 200, 50
    images, labels, space = opened(options.set, options.data)
    whole = images["train"]
    for split, n in (("train", most), ("test", score)):
        some = torch.randperm(len(images[split]), generator=torch.Generator().manual_seed(0))[:n]
        images[split], labels[split] = images[split][some].float(), labels[split][some]
    torch.manual_seed(0)
    network = UNet(1, widths=widths, blocks=2)
    # Before training, the last layers are zero in every block: they are drawn, as the others are.
    torch.manual_seed(0)
    plain = UNet(1, widths=widths, blocks=2).eval().requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d) and not bool(module.weight.any()):
            module.reset_parameters()
    trained = train(network, whole, seconds, ENDS, batch=128)
    print(trained, flush=True)
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"sets": {}}
    record: dict[str, Any] = {
        "shape": list(space.shape),
        "train": len(images["train"]),
        "test": len(images["test"]),
        "repeats": options.repeats,
        "network": trained | {"widths": list(widths), "features": 4 * widths[-1]},
        "levels": [],
    }

    def keep() -> None:
        record["cpu_seconds"] = round(time.process_time() - began, 1)
        record["machine"], record["commit"] = machine(), commit()
        found["sets"][options.set] = record
        save(options.out, found)

    for log_snr in LOG_SNRS[::5] if options.quick else LOG_SNRS:
        hits: dict[str, list[Tensor]] = {"z": [], "features": [], "untrained": []}
        gamma = torch.tensor(-float(log_snr))
        for r in range(options.repeats):
            z = {k: noisy(x, gamma, noise(x, k, log_snr, r)) for k, x in images.items()}
            inputs = {
                "z": z,
                "features": {k: features(network, v, float(log_snr)) for k, v in z.items()},
                "untrained": {k: features(plain, v, float(log_snr)) for k, v in z.items()},
            }
            for name, own in inputs.items():
                hits[name].append(probed(own["train"], labels["train"], own["test"], labels["test"]))
        row: dict[str, Any] = {"log_snr": log_snr}
        row |= {name: accuracy(torch.stack(each)) for name, each in hits.items()}
        # The same noise for all of them: a paired difference.
        apart = torch.stack(hits["features"]).double() - torch.stack(hits["z"]).double()
        row["features_less_z"] = accuracy(apart)
        row |= possible(images["train"], labels["train"], images["test"], labels["test"], log_snr, options.repeats)
        record["levels"].append(row)
        print(json.dumps(row), flush=True)
        keep()
    record["vae"] = vae(whole, images, labels, space, seconds, options.repeats)
    print(record["vae"], flush=True)
    keep()


if __name__ == "__main__":
    main()
