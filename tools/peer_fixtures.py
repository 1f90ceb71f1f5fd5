"""Run OpenAI's improved-diffusion on a tiny network and write down what it says, for our tests to agree with.

    git clone https://github.com/openai/improved-diffusion /tmp/improved-diffusion
    python tools/peer_fixtures.py --source /tmp/improved-diffusion

None of that code is here: it is imported from `--source`, a clean clone whose commit the fixture names. Two of its functions
run: `GaussianDiffusion.calc_bpd_loop`, in float32 as its scripts do, and its decoder alone, over all levels, in float64, too.
tests/evaluation/test_improved_diffusion.py reads

    images (N, 3, 4, 4) uint8; noise (50, N, 3, 4, 4), noise[i % 50] being that of its index i = 0 … T − 1;
    w1, b, w2: the network's weights; betas/<schedule>;
    <schedule>/<output>/<variance>/vb (N, T), prior and total (N,), bits/dim; vb in the order of its index i;
    decoder/means (M,), variances (V,), float32 and float64 (V, M, 256): ln p of every level, nats;
    source, commit, torch, numpy: where it all came from.

The network, with τ = (i + 1)/T and a gate m = τ where it predicts ε, 1 − τ where it predicts x, so that its errors stay of
the size of a trained one's at both ends: m z + (1 − m) w2 * tanh(w1 * z + τ b), * a 3 × 3 convolution, zero-padded.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "https://github.com/openai/improved-diffusion"
SCHEDULES = {"linear": 1000, "cosine": 50}
# What its model outputs, and whether it then clips x̂ to [−1, 1], as its scripts do unless told otherwise.
OUTPUTS = {"epsilon": ("EPSILON", False), "x_start": ("START_X", False), "epsilon, clipped": ("EPSILON", True)}
VARIANCES = ("FIXED_SMALL", "FIXED_LARGE")
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
# Of the decoder alone, x̂ and s²: bins of 1.06 and 0.25 standard deviations.
MEANS, DECODER_VARIANCES = (-1.0, -0.7, 0.1, 0.9), (5.5e-5, 1e-3)


def commit(source: Path) -> str:
    """The commit of a clean clone; anything else is refused."""

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", source, *command], capture_output=True, text=True).stdout.strip()

    if Path(git("rev-parse", "--show-toplevel")) != source or git("status", "--porcelain", "-uno"):
        raise SystemExit(f"{source} is no clean clone: git clone {SOURCE} {source}")
    return git("rev-parse", "HEAD")


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


def network(given: dict[str, np.ndarray], steps: int, output: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The docstring's network, in the precision of its z."""

    def run(z: Tensor, index: Tensor) -> Tensor:
        w1, b, w2 = (torch.from_numpy(given[k]).to(z) for k in ("w1", "b", "w2"))
        tau = (index.to(z) + 1)[:, None, None, None] / steps
        gate = 1 - tau if output == "x_start" else tau
        return gate * z + (1 - gate) * conv2d(torch.tanh(conv2d(z, w1, padding=1) + tau * b), w2, padding=1)

    return run


def bounds(peer: ModuleType, given: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Every term of its bound, for every schedule, output and variance."""
    x = (torch.from_numpy(given["images"]).double() / 127.5 - 1).float()
    noise = torch.from_numpy(given["noise"])
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
                    got = diffusion.calc_bpd_loop(network(given, steps, output), x, clip_denoised=clipped)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="a clean clone of openai/improved-diffusion")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/improved_diffusion.npz")
    options = parser.parse_args()

    source = options.source.resolve()
    origin = {"source": SOURCE, "commit": commit(source), "torch": torch.__version__, "numpy": np.__version__}
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(source))
    peer = importlib.import_module("improved_diffusion.gaussian_diffusion")

    given = inputs()
    out = {**given, **dict(bounds(peer, given)), **dict(decoder(peer))}
    out.update({name: np.array(str(said)) for name, said in origin.items()})
    for name in out:
        if name.endswith("/total"):
            print(f"{name:42} {out[name]}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, allow_pickle=False, **out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
