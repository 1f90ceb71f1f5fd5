"""Run OpenAI's improved-diffusion on a tiny network and write down what it says, for our tests to agree with.

    git clone https://github.com/openai/improved-diffusion /tmp/improved-diffusion
    python tools/peer_fixtures.py --source /tmp/improved-diffusion

None of that code is here: it is imported from `--source`, a clean clone whose commit the fixtures name. Four of its parts
run: `GaussianDiffusion.calc_bpd_loop`, in float32 as its scripts do, its decoder alone, over all levels, in float64, too,
and, for the second fixture, `training_losses` and `LossSecondMomentResampler`.
tests/evaluation/test_improved_diffusion.py reads improved_diffusion.npz:

    images (N, 3, 4, 4) uint8; noise (50, N, 3, 4, 4), noise[i % 50] being that of its index i = 0 … T − 1;
    w1, b, w2: the network's weights; betas/<schedule>;
    <schedule>/<output>/<variance>/vb (N, T), prior and total (N,), bits/dim; vb in the order of its index i;
    decoder/means (M,), variances (V,), float32 and float64 (V, M, 256): ln p of every level, nats;
    source, commit, torch, numpy: where it all came from.

The network, with τ = (i + 1)/T and a gate m = τ where it predicts ε, 1 − τ where it predicts x, so that its errors stay of
the size of a trained one's at both ends: m z + (1 − m) w2 * tanh(w1 * z + τ b), * a 3 × 3 convolution, zero-padded. Where it
predicts z_{t−1}, m = 1 − 1/T.

tests/models/test_improved_diffusion_losses.py reads improved_diffusion_losses.npz: all that `training_losses` says, in float64,
for every ModelMeanType, ModelVarType and LossType, of one batch of M items, each image at each of 8 indices. Its coefficients are
float32 by one cast, in `_extract_into_tensor`, which this script replaces from outside by the same function without it; the
rest of its code follows its inputs' precision.

    images, w1, b, w2 as above; v2, another w2, and `LEVEL` below, an offset: the network's further channels, o = offset + v2 * tanh(…);
    <schedule>/betas, <schedule>/index (M,) int64; image (M,) int64: which one; noise (M, 3, 4, 4) float32;
    <schedule>/<mean>/<variance>/<loss>/<term> (M,), term loss, mse or vb, as far as it has them;
    <schedule>/EPSILON/LEARNED_RANGE/<RESCALED_MSE or KL>/gradient/<weight>: of the mean loss, for every weight;
    resampler/index (N,), resampler/loss (N,), resampler/weights (N + 1, 6): its weights() before and after each update in turn.
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch
from sources import commit
from torch import Tensor
from torch.nn.functional import conv2d

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "https://github.com/openai/improved-diffusion"
SCHEDULES = {"linear": 1000, "cosine": 50}
# What its model outputs, and whether it then clips x̂ to [−1, 1], as its scripts do unless told otherwise.
OUTPUTS = {"epsilon": ("EPSILON", False), "x_start": ("START_X", False), "epsilon, clipped": ("EPSILON", True)}
VARIANCES = ("FIXED_SMALL", "FIXED_LARGE")
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
# Of the losses, the indices: both ends, their neighbours, and some between.
INDICES = {"linear": (0, 1, 2, 10, 100, 500, 998, 999), "cosine": (0, 1, 2, 7, 20, 35, 48, 49)}
GRADIENTS = ("RESCALED_MSE", "KL")
# What the variance's channels start from: o = 0 is halfway between its ends where they are a range, and ln s² = −5 where they are free.
LEVEL = {"LEARNED_RANGE": 0.0, "LEARNED": -5.0}
# Of the decoder alone, x̂ and s²: bins of 1.06 and 0.25 standard deviations.
MEANS, DECODER_VARIANCES = (-1.0, -0.7, 0.1, 0.9), (5.5e-5, 1e-3)


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    """Images, noise and weights. The first image is black and white only: the decoder's outermost bins."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    images[0] = 255 * (images[0] // 128)
    return {
        "images": images,
        "noise": rng.standard_normal((50, *images.shape), dtype=np.float32),
        "w1": rng.standard_normal((4, 3, 3, 3), dtype=np.float32) / 4,
        "b": rng.standard_normal((4, 1, 1), dtype=np.float32),
        "w2": rng.standard_normal((3, 4, 3, 3), dtype=np.float32) / 4,
    }


def loss_inputs(seed: int = 1) -> dict[str, np.ndarray]:
    """The images and weights of `inputs`, those of the variance's channels, and a batch of every image at 8 indices."""
    rng = np.random.default_rng(seed)
    given = inputs()
    images = len(given["images"])
    return {
        **{k: given[k] for k in ("images", "w1", "b", "w2")},
        "v2": rng.standard_normal((3, 4, 3, 3), dtype=np.float32) / 4,
        "image": np.repeat(np.arange(images), 8),
        "noise": rng.standard_normal((8 * images, *given["images"].shape[1:]), dtype=np.float32),
    }


def network(weights: dict[str, Tensor], steps: int, output: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The docstring's network, in the precision of its z; `weights` with a v2 and a level have the variance's channels, too."""

    def run(z: Tensor, index: Tensor) -> Tensor:
        w1, b, w2 = (weights[k].to(z) for k in ("w1", "b", "w2"))
        tau = (index.to(z) + 1)[:, None, None, None] / steps
        gate = {"x_start": 1 - tau, "x_previous": 1 - 1 / steps}.get(output, tau)
        hidden = torch.tanh(conv2d(z, w1, padding=1) + tau * b)
        mean = gate * z + (1 - gate) * conv2d(hidden, w2, padding=1)
        if "v2" not in weights:
            return mean
        return torch.cat([mean, weights["level"] + conv2d(hidden, weights["v2"], padding=1)], 1)

    return run


def tensors(given: dict[str, np.ndarray], *names: str) -> dict[str, Tensor]:
    """Some of what was given."""
    return {k: torch.from_numpy(given[k]) for k in names}


def bounds(peer: ModuleType, given: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Every term of its bound, for every schedule, output and variance."""
    x = (torch.from_numpy(given["images"]).double() / 127.5 - 1).float()
    noise = torch.from_numpy(given["noise"])
    weights = tensors(given, "w1", "b", "w2")
    for schedule, steps in SCHEDULES.items():
        betas = peer.get_named_beta_schedule(schedule, steps)
        yield f"betas/{schedule}", betas
        for output, (mean, clipped) in OUTPUTS.items():
            for variance in VARIANCES:
                diffusion = peer.GaussianDiffusion(
                    betas=betas,
                    model_mean_type=peer.ModelMeanType[mean],
                    model_var_type=peer.ModelVarType[variance],
                    loss_type=peer.LossType.MSE,
                )
                # Its loop draws the noise itself, from the last index to the first.
                drawn = [noise[i % len(noise)] for i in reversed(range(steps))]
                with mock.patch.object(torch, "randn_like", side_effect=drawn):
                    got = diffusion.calc_bpd_loop(network(weights, steps, output), x, clip_denoised=clipped)
                yield f"{schedule}/{output}/{variance}/vb", got["vb"].flip(1).numpy()
                yield f"{schedule}/{output}/{variance}/prior", got["prior_bpd"].numpy()
                yield f"{schedule}/{output}/{variance}/total", got["total_bpd"].numpy()


def decoder(peer: ModuleType) -> Iterator[tuple[str, np.ndarray]]:
    """Its ln p of every level, nats."""
    yield "decoder/means", np.array(MEANS)
    yield "decoder/variances", np.array(DECODER_VARIANCES)
    means, variances = (torch.tensor(some, dtype=torch.float64) for some in (MEANS, DECODER_VARIANCES))
    log_scales, means, x = torch.broadcast_tensors(
        0.5 * variances.log()[:, None, None], means[:, None], torch.arange(256).double() / 127.5 - 1
    )
    for name, dtype in PRECISIONS.items():
        said = peer.discretized_gaussian_log_likelihood(
            x.to(dtype), means=means.to(dtype), log_scales=log_scales.to(dtype)
        )
        yield f"decoder/{name}", said.numpy()


def in_float64(values: np.ndarray, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Its `_extract_into_tensor`, whose last act is a cast to float32, without that: values[index], as a batch of `shape`."""
    return torch.from_numpy(values)[index].reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)


def losses(peer: ModuleType, given: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """All terms of its training losses, in float64, and the gradients of two of them."""
    image, images, noise = (torch.from_numpy(given[k]).double() for k in ("image", "images", "noise"))
    x = (images / 127.5 - 1)[image.long()]
    for schedule, steps in SCHEDULES.items():
        betas = peer.get_named_beta_schedule(schedule, steps)
        index = torch.tensor(INDICES[schedule]).repeat(len(images))
        yield f"{schedule}/betas", betas
        yield f"{schedule}/index", index.numpy()
        for mean, variance, loss in itertools.product(peer.ModelMeanType, peer.ModelVarType, peer.LossType):
            names = ("w1", "b", "w2", "v2") if variance.name in LEVEL else ("w1", "b", "w2")
            weights = {k: w.double().requires_grad_() for k, w in tensors(given, *names).items()}
            level = {"level": torch.tensor(LEVEL[variance.name])} if variance.name in LEVEL else {}
            output = {"PREVIOUS_X": "x_previous", "START_X": "x_start", "EPSILON": "epsilon"}[mean.name]
            diffusion = peer.GaussianDiffusion(
                betas=betas, model_mean_type=mean, model_var_type=variance, loss_type=loss
            )
            with mock.patch.object(peer, "_extract_into_tensor", in_float64):
                said = diffusion.training_losses(network(weights | level, steps, output), x, index, noise=noise)
            setting = f"{schedule}/{mean.name}/{variance.name}/{loss.name}"
            for term, values in said.items():
                yield f"{setting}/{term}", values.detach().numpy()
            if (mean.name, variance.name) == ("EPSILON", "LEARNED_RANGE") and loss.name in GRADIENTS:
                gradients = torch.autograd.grad(said["loss"].mean(), list(weights.values()))
                for name, gradient in zip(weights, gradients, strict=True):
                    yield f"{setting}/gradient/{name}", gradient.numpy()


def resampler(peer: ModuleType, steps: int = 6, updates: int = 150, seed: int = 2) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of its `LossSecondMomentResampler` after every one of some updates; the losses of its indices differ by 100."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, steps, updates)
    loss = rng.exponential(1, updates) * 100 ** (index / (steps - 1))
    with mock.patch.object(np, "int", int, create=True):  # an alias that numpy has dropped since
        learning = peer.LossSecondMomentResampler(SimpleNamespace(num_timesteps=steps))
    weights = [learning.weights()]
    for i, value in zip(index.tolist(), loss.tolist(), strict=True):
        learning.update_with_all_losses([i], [value])
        weights.append(learning.weights())
    yield "resampler/index", index
    yield "resampler/loss", loss
    yield "resampler/weights", np.stack(weights)


def save(path: Path, arrays: dict[str, np.ndarray], origin: dict[str, str]) -> None:
    """Write the arrays with where they came from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays, **{name: np.array(said) for name, said in origin.items()})
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="a clean clone of openai/improved-diffusion")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures", help="the folder of both fixtures")
    options = parser.parse_args()

    source = options.source.resolve()
    origin = {
        "source": SOURCE,
        "commit": commit(source, SOURCE),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(source))
    peer = importlib.import_module("improved_diffusion.gaussian_diffusion")
    resample = importlib.import_module("improved_diffusion.resample")

    given = inputs()
    out = {**given, **dict(bounds(peer, given)), **dict(decoder(peer))}
    for name in out:
        if name.endswith("/total"):
            print(f"{name:42} {out[name]}")
    save(options.out / "improved_diffusion.npz", out, origin)
    given = loss_inputs()
    out = {**given, **dict(losses(peer, given)), **dict(resampler(resample))}
    save(options.out / "improved_diffusion_losses.npz", out, origin)


if __name__ == "__main__":
    main()
