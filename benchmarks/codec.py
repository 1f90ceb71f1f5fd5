"""How long the files of the codec are: the digits' models, beside the bound of the same path and beside other compressors.

    python benchmarks/codec.py [--runs FOLDER] [--items 447] [--train SHARE]

Trains the presets of the digits' diffusion, VAE and hierarchical VAE with a SHARE of their steps (or uses the runs in FOLDER), codes the test
split, decodes it, and compares. Results are saved after every file.
"""

import argparse
import bz2
import dataclasses
import io
import lzma
import math
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from PIL import Image
from provenance import commit, machine, save
from torch import Tensor

import diffusional as df
from diffusional.training import recipes
from diffusional.training.folder import load_run

PRESETS: dict[str, Callable[[], df.Config]] = {
    "vae": recipes.digits_vae,
    "hierarchical_vae": recipes.digits_hierarchical_vae,
    "diffusion": recipes.digits,
}
# The sides of pictures of which the speed is measured, at T = 50.
SIDES = (8, 14, 28)


def trained(name: str, runs: Path, share: float, data: df.data.Dataset) -> df.LatentVariableModel:
    """The run of a preset, trained with a share of its steps if it is not there."""
    folder = runs / name
    if not (folder / "config.json").exists():
        config = PRESETS[name]()
        steps = max(2, round(share * config.steps))
        every = min(config.validate_every, steps)
        df.train(dataclasses.replace(config, steps=steps, validate_every=every, checkpoint_every=steps), folder, data)
    return load_run(folder).model


def coded(model: df.LatentVariableModel, x: Tensor, steps: int | None) -> dict[str, Any]:
    """The file of some items, decoded to the same items, with its parts and times."""
    started = time.perf_counter()
    done = df.codec.compress(model, x, steps=steps, check=False)
    middle = time.perf_counter()
    found = df.codec.restore(model, done.data)
    ended = time.perf_counter()
    assert found.x.equal(x)
    assert np.allclose(found.path_nats, done.path_nats)
    bound = df.evaluate(model if steps is None else model.regrid(steps), x, target_error=0.004)
    nelbo = bound.nelbo.to("bits/dim", model.space.dimensions)
    return {
        "items": len(x),
        "latents": done.latents,
        "bytes": len(done.data),
        "bits_per_dim": done.bits_per_dim,
        "items_bits_per_dim": done.net_bits_per_dim,
        "same_path_bits_per_dim": done.path_bits_per_dim,
        "overhead": done.overhead,
        "bound_bits_per_dim": nelbo.value,
        "bound_error": nelbo.error,
        "path_error": float(done.path_nats.std()) / math.sqrt(len(x)) / math.log(2) / done.dimensions,
        "borrowed_bits": done.borrowed_bits,
        "header_bits": done.header_bits,
        "coded_per_second": len(x) / (middle - started),
        "decoded_per_second": len(x) / (ended - middle),
    }


def others(raw: np.ndarray) -> dict[str, int]:
    """Bytes of the levels of all items by other compressors; pictures are tiled into one."""
    n, side = len(raw), raw.shape[-1]
    columns = math.ceil(math.sqrt(n))
    tiles = np.zeros((columns * columns, side, side), np.uint8)
    tiles[:n] = raw.reshape(n, side, side)
    picture = Image.fromarray(
        tiles.reshape(columns, columns, side, side).swapaxes(1, 2).reshape(columns * side, columns * side)
    )
    data = raw.astype(np.uint8).tobytes()

    def file(kind: str, **options: Any) -> int:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return len(buffer.getvalue())

    return {
        "raw, a byte for each level": len(data),
        "raw, log₂ 17 bits for each level": math.ceil(len(data) * math.log2(17) / 8),
        "PNG": file("PNG", optimize=True),
        "WebP lossless": file("WEBP", lossless=True, quality=100, method=6),
        "zstd": len(zstandard.ZstdCompressor(level=22).compress(data)),
        "zlib": len(zlib.compress(data, 9)),
        "bz2": len(bz2.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }


def speeds(x: Tensor, space: df.Discrete) -> list[dict[str, float]]:
    """Items per second for pictures of several sides, with one network and one T: untrained, since speed does not depend on weights."""
    rows = []
    for side in SIDES:
        larger = df.Discrete((1, side, side), space.levels)
        model = df.DiffusionModel(
            df.GaussianDiffusion(df.schedule.log_snr_linear(-6.0, 6.0, steps=50)),
            df.Denoiser(df.networks.UNet(1, widths=(16, 48)), "noise"),
            df.likelihood.LevelPosterior(larger),
        )
        items = space.decode(x)[:16].float()
        bigger = torch.nn.functional.interpolate(items, (side, side), mode="nearest").long()
        encoded = larger.encode(bigger)
        started = time.perf_counter()
        done = df.codec.compress(model, encoded, check=False)
        middle = time.perf_counter()
        df.codec.decompress(model, done.data)
        rows.append(
            {
                "dimensions": side * side,
                "coded_per_second": 16 / (middle - started),
                "decoded_per_second": 16 / (time.perf_counter() - middle),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/codec"))
    parser.add_argument("--items", type=int, default=447)
    parser.add_argument("--train", type=float, default=1.0, help="the share of the presets' steps")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200])
    parser.add_argument(
        "--auto-items", type=int, default=64, help="items that are coded with the T of the shortest file"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "codec.json")
    options = parser.parse_args()
    data = df.data.load("digits")
    x = data.encode("test")[: options.items]
    assert isinstance(data.space, df.Discrete)
    record: dict[str, Any] = {
        "machine": machine(),
        "commit": commit(),
        "items": len(x),
        "dimensions": data.space.dimensions,
        "others": others(data.space.decode(x).numpy()),
        "files": {},
    }
    for name in ("vae", "hierarchical_vae"):
        record["files"][name] = coded(trained(name, options.runs, options.train, data), x, None)
        save(options.out, record)
    diffusion = trained("diffusion", options.runs, options.train, data)
    for steps in options.steps:
        record["files"][f"diffusion, T = {steps}"] = coded(diffusion, x, steps)
        save(options.out, record)
    few = x[: options.auto_items]
    choice = df.codec.choose_steps(diffusion, few)
    record["auto"] = {
        "items": len(few),
        "steps": choice.steps,
        "estimated_bits": {str(t): bits for t, bits in choice.bits.items()},
    }
    curve = df.codec.rate_distortion(diffusion.regrid(200), x[:100], points=25, show=1)
    record["rate_distortion"] = curve.to_json() | {
        "shown": [[round(v, 1) for v in one.flatten().tolist()] for one in curve.shown[:, 0]],
        "item": data.space.decode(x[:1]).flatten().tolist(),
    }
    save(options.out, record)
    record["speed"] = speeds(x, data.space)
    save(options.out, record)
    record["files"]["diffusion, T = auto"] = coded(diffusion, few, choice.steps)
    save(options.out, record)


if __name__ == "__main__":
    main()
