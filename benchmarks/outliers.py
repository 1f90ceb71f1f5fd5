"""Does the likelihood find outliers? AUROC by NELBO, typicality and profile, beside a Gaussian and a Gaussian mixture.

    python benchmarks/outliers.py --set digits [--data digits] [--part train scores baselines] [--runs FOLDER]
    python benchmarks/outliers.py --set mnist --data ../shared/data/mnist
    python benchmarks/outliers.py --set cifar10 --data ../shared/data/cifar10-subset.npz

Each set has ordinary items, from the test split; outliers; and reference items, from the validation split. Outliers made of images are
made of other items than the ordinary ones (of the test split, or of validation where it is small), so that the two samples of an AUROC are
independent.

    digits    against letters (printed) and printed digits in the same fonts, and against rotated and inverted digits
    mnist     against images rotated by 90°, with noise of ± 32 levels, inverted, printed letters and printed digits
    cifar10   against its grey version: all three channels are the luminance

Printed characters are drawn with the fonts of matplotlib with random strokes, sizes, shifts and angles, and then cropped, scaled and
centred as the handwritten digits were: at 28 × 28 within 20 pixels around the centre of mass, at 8 × 8 counted in blocks of 4 × 4 from a
binary 32 × 32 image. The letters I, l, O and o, which look like 1 and 0, are left out.

All models are fitted to the same training split. The diffusion model is trained here. The Gaussian (shrunk by Ledoit and Wolf) and the
mixture (of those tried, the best on validation) are scikit-learn's, densities of levels plus uniform noise. Parts of a set run one after
the other, and the results of each are added to --out.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import machine, save
from safetensors.torch import load_file, save_file
from torch import Tensor

import diffusional as df
from diffusional.evaluation.score import BY, auroc, plan_of_scores
from diffusional.training import recipes
from diffusional.training.config import Config

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz"
BITS = math.log(2.0)
# Candidates of the mixture: components and the kind of their covariance, in 64, 784 and 3,072 dimensions.
MIXTURES = {
    "digits": ((5, "full"), (10, "full"), (10, "tied"), (30, "diag")),
    "mnist": ((10, "tied"), (50, "diag")),
    "cifar10": ((50, "diag"),),
}
# The most training items that the mixture is fitted to.
FITTED = 5_000


def printed(characters: str, n: int, side: int, levels: int, seed: int) -> Tensor:
    """Return images (n, 1, side, side) of random characters, raw levels, normalised like the handwritten digits of the same size."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    rng, folder = np.random.default_rng(seed), Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    out = np.zeros((n, 1, side, side), np.int64)
    for i in range(n):
        font = ImageFont.truetype(str(folder / rng.choice(FONTS)), 96)
        big = Image.new("L", (192, 192))
        character, stroke = str(rng.choice(list(characters))), int(rng.integers(0, 5))
        ImageDraw.Draw(big).text((96, 96), character, 255, font, anchor="mm", stroke_width=stroke)
        big = big.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR)
        glyph = big.crop(big.getbbox())
        if side == 8:
            # The whole height of 32 binary pixels, counted in blocks of 4 × 4; a narrow character stays narrow.
            width = min(32, max(8, round(32 * glyph.width / glyph.height * rng.uniform(0.85, 1.1))))
            canvas = Image.new("L", (32, 32))
            canvas.paste(glyph.resize((width, 32), Image.Resampling.BILINEAR), ((32 - width) // 2, 0))
            out[i, 0] = (np.asarray(canvas).reshape(8, 4, 8, 4) > 127).sum((1, 3))
        else:
            # The longer side takes about 20 of 28 pixels, and the centre of mass is the image's centre, up to a pixel.
            scale = rng.uniform(18, 21) / max(glyph.size)
            size = max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))
            small = np.asarray(glyph.resize(size, Image.Resampling.LANCZOS), float)
            centre = [(small.sum(1 - axis) * np.arange(small.shape[axis])).sum() / small.sum() for axis in (0, 1)]
            corner = [int(np.rint(side / 2 - c - 0.5 + rng.integers(-1, 2))) for c in centre]
            corner = [min(max(0, c), side - s) for c, s in zip(corner, small.shape, strict=True)]
            out[i, 0, corner[0] : corner[0] + small.shape[0], corner[1] : corner[1] + small.shape[1]] = np.rint(small)
    return torch.from_numpy(out.clip(0, levels - 1))


def outliers(name: str, raw: Tensor, n: int, levels: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the outliers by name, each (N, *dims) raw levels: n printed characters, and those made of images `raw` (N, C, H, W)."""
    side = raw.shape[-1]
    if name == "cifar10":
        weights = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
        return {"grey": (raw * weights).sum(1, keepdim=True).round().long().expand(-1, 3, -1, -1).contiguous()}
    noise = torch.randint(-32, 33, raw.shape, generator=torch.Generator().manual_seed(seed))
    made = {
        "letters": printed(LETTERS, n, side, levels, seed),
        "printed digits": printed("0123456789", n, side, levels, seed + 1),
        "rotated": raw.rot90(1, (2, 3)).contiguous(),
        "inverted": levels - 1 - raw,
    }
    return made | ({"noised": (raw + noise).clamp(0, levels - 1)} if name == "mnist" else {})


def config(name: str, data: str, seconds: float) -> Config:
    """Return the config of a set's diffusion model: the preset of the digits, or the one for a laptop."""
    if name == "digits":
        return recipes.digits()
    plain = recipes.laptop()
    return dataclasses.replace(
        plain,
        data=dataclasses.replace(plain.data, name=data),
        steps=2000 if name == "mnist" else 1000,
        batch=32 if name == "mnist" else 16,
        validate_every=1000,
        checkpoint_every=100,
        max_seconds=seconds,
    )


def parts(dataset: df.data.Dataset, items: int) -> dict[str, Tensor]:
    """Return raw levels of ordinary items, of the items that outliers are made of, and of reference items, `items` of each or fewer."""
    test, generator = dataset.items("test"), torch.Generator().manual_seed(1)
    if len(test) < 2 * items:
        # The digits are few: all test items are ordinary ones, and validation provides the others.
        order = torch.randperm(len(dataset.items("validation")), generator=generator)
        half = len(order) // 2
        validation = dataset.items("validation")
        return {
            "ordinary": test[:items].long(),
            "others": validation[order[half:]].long(),
            "reference": validation[order[:half]].long(),
        }
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    validation = dataset.items("validation")
    chosen = torch.randperm(len(validation), generator=generator)[:items]
    return {
        "ordinary": test[order[:items]].long(),
        "others": test[order[items : 2 * items]].long(),
        "reference": validation[chosen].long(),
    }


def by_diffusion(
    run: Path, dataset: df.data.Dataset, found: dict[str, Tensor], every: dict[str, Tensor], visits: int, bands: int
) -> dict[str, Any]:
    """Return the scores of the diffusion model. Those of each group are kept in the run's folder, so that a later call continues."""
    model, encode, d = df.load(run), dataset.space.encode, dataset.space.dimensions
    kept = run / f"scores-{visits}-{bands}"
    kept.mkdir(exist_ok=True)
    # As `df.score(model, ordinary, reference)` learns it.
    path = kept / "plan.json"
    if not path.exists():
        plan = plan_of_scores(model, encode(found["reference"]))
        assert plan is not None
        plan.save(path)
    plan = df.Plan.load(path, model)

    def scored(name: str, raw: Tensor) -> dict[str, Tensor]:
        place = kept / f"{name.replace(' ', '-')}-{len(raw)}.safetensors"
        if not place.exists():
            started = time.monotonic()
            scores = df.score(model, encode(raw), visits=visits, bands=bands, plan=plan)
            assert scores.profile is not None
            tensors = {"nelbo": scores.nelbo, "error": scores.error, "profile": scores.profile}
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}
                | {"seconds": torch.tensor(time.monotonic() - started)},
                place,
            )
            print("scored", name, round(time.monotonic() - started, 1), flush=True)
        return load_file(place)

    reference, ordinary = scored("reference", found["reference"]), scored("ordinary", found["ordinary"])
    mean, center, width = reference["nelbo"].mean(), reference["profile"].mean(0), reference["profile"].std(0)

    def by(name: str, one: dict[str, Tensor]) -> Tensor:
        if name == "profile":
            return ((one["profile"] - center) / width).square().sum(1)
        return one["nelbo"] if name == "nelbo" else (one["nelbo"] - mean).abs()

    rows: dict[str, Any] = {"bits": float(ordinary["nelbo"].mean()) / d / BITS, "outliers": {}}
    for name, raw in every.items():
        theirs = scored(name, raw)
        areas = {key: auroc(by(key, theirs), by(key, ordinary)) for key in BY}
        rows["outliers"][name] = {
            "bits": float(theirs["nelbo"].mean()) / d / BITS,
            "item_error_bits": float(theirs["error"].median()) / d / BITS,
            "auroc": {key: {"value": area.value, "error": area.error} for key, area in areas.items()},
        }
        print("diffusion", name, json.dumps(rows["outliers"][name]), flush=True)
    return rows | {
        "item_error_bits": float(ordinary["error"].median()) / d / BITS,
        "visits": visits,
        "bands": bands,
        "evaluations_per_item": visits + 2 * bands,
        "pilot": int(plan.provenance["evaluations"]),
    }


def by_densities(
    name: str, train: Tensor, found: dict[str, Tensor], every: dict[str, Tensor], seed: int = 0
) -> dict[str, Any]:
    """Return the AUROC of the Gaussian and the mixture: −ln density of levels plus uniform noise, and its typicality."""
    from sklearn.covariance import LedoitWolf
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)

    def real(raw: Tensor) -> np.ndarray:
        flat = raw.flatten(1).numpy().astype(np.float64)
        return flat + rng.random(flat.shape)

    x, reference, ordinary = real(train), real(found["reference"]), real(found["ordinary"])
    others = {key: real(raw) for key, raw in every.items()}
    d = x.shape[1]
    covariance = LedoitWolf().fit(x)
    started, tried, best = time.monotonic(), {}, None
    for components, kind in MIXTURES[name]:
        # The covariance gets the variance of one level, so that a component without variance at a position remains a density.
        one = GaussianMixture(components, covariance_type=kind, reg_covar=1.0, max_iter=15, random_state=seed)
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one.fit(x[:FITTED])
        tried[f"{components}, {kind}"] = float(-one.score(reference)) / d / BITS
        print(
            "mixture", components, kind, tried[f"{components}, {kind}"], round(time.monotonic() - started), flush=True
        )
        if best is None or one.score(reference) > best.score(reference):
            best = one
    assert best is not None
    log_det = np.linalg.slogdet(covariance.covariance_)[1]

    def gaussian(values: np.ndarray) -> np.ndarray:
        return 0.5 * (covariance.mahalanobis(values) + log_det + d * math.log(2 * math.pi))

    out: dict[str, Any] = {}
    for model, cost in (("gaussian", gaussian), ("mixture", lambda values: -best.score_samples(values))):
        middle, own = float(cost(reference).mean()), torch.from_numpy(cost(ordinary))
        rows: dict[str, Any] = {"bits": float(own.mean()) / d / BITS, "outliers": {}}
        for key, values in others.items():
            theirs = torch.from_numpy(cost(values))
            areas = {"nelbo": auroc(theirs, own), "typicality": auroc((theirs - middle).abs(), (own - middle).abs())}
            rows["outliers"][key] = {
                "bits": float(theirs.mean()) / d / BITS,
                "auroc": {by: {"value": area.value, "error": area.error} for by, area in areas.items()},
            }
        print(model, json.dumps(rows), flush=True)
        out[model] = rows
    chosen = min(tried, key=lambda key: tried[key])
    out["mixture"] |= {"components": chosen, "validation_bits": tried, "fitted_items": min(len(x), FITTED)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(MIXTURES), required=True, dest="name")
    parser.add_argument("--data", default="digits", help="as for diffusional train --data")
    parser.add_argument("--part", nargs="+", choices=["train", "scores", "baselines"], default=None)
    parser.add_argument(
        "--items", type=int, default=450, help="ordinary items, outliers of each kind, and reference items"
    )
    parser.add_argument("--visits", type=int, default=12)
    parser.add_argument("--bands", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=420, help="of training in this call; a later call continues")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "outliers.json")
    options = parser.parse_args()
    chosen = options.part or ["train", "scores", "baselines"]
    run = options.runs / f"outliers-{options.name}"
    settings = config(options.name, options.data, options.seconds)
    dataset = df.data.load("digits") if options.name == "digits" else df.data.load(options.data, levels=256)
    record = json.loads(options.out.read_text()) if options.out.exists() else {"sets": {}}
    mine = record["sets"].setdefault(options.name, {"models": {}})
    if "train" in chosen:
        started = time.monotonic()
        df.train(settings, run, resume=run.exists())
        mine["training_seconds"] = round(mine.get("training_seconds", 0) + time.monotonic() - started)
        mine["training_steps"] = json.loads((run / "config.json").read_text()).get("steps")
    levels = dataset.space.levels
    assert levels is not None
    found = parts(dataset, options.items)
    every = outliers(options.name, found["others"], len(found["ordinary"]), levels)
    mine |= {
        "items": {"ordinary": len(found["ordinary"]), "reference": len(found["reference"])}
        | {name: len(raw) for name, raw in every.items()},
        "fingerprints": {split: dataset.fingerprint(split) for split in ("train", "validation", "test")},
        "dimensions": dataset.space.dimensions,
        "levels": levels,
    }
    if "scores" in chosen:
        scores = by_diffusion(run, dataset, found, every, options.visits, options.bands)
        mine["models"]["diffusion"] = scores | {"machine": machine()}
    if "baselines" in chosen:
        rows = by_densities(options.name, dataset.items("train")[:].long(), found, every)
        mine["models"] |= {name: row | {"machine": machine()} for name, row in rows.items()}
    save(options.out, record)


if __name__ == "__main__":
    main()
