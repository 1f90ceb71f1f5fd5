"""The bound and the samples of guided chains against the guidance weight w, and two estimates of I(x; c).

    python benchmarks/guidance.py --set digits --run runs/digits-classes [--train] [--out FILE]
    python benchmarks/guidance.py --set mnist --run runs/mnist14 --data ../shared/data/mnist [--train]

A label-conditional model is trained with condition dropout of 0.1 (--train; two to four minutes each).
For every weight its guided chain has a bound, all from the same draws (`df.guidance_table`), and samples, `--samples` for each class, by
the chain with T = `--steps`. A multilayer perceptron of scikit-learn, trained on the labelled images, says how many samples look like
their class. The diversity of the samples is their mean variance within a class, relative to that of the test images.

For optimal denoisers in continuous time NELBO(w) = NELBO(1) + (w − 1)² I(x; c): the record has I(x; c) by this curvature, directly as
NELBO(0) − NELBO(1), and the bounded form, which the information in a label cannot exceed.

Results of the other set in --out are kept.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from labelled import accuracy_of, add_options, network_classifier, opened
from provenance import machine, save
from torch import Tensor

import diffusional as df
from diffusional.information import bounded

WEIGHTS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)


def diversity(images: Tensor, labels: Tensor) -> float:
    """Return the mean over classes and pixels of the variance (N, …) within a class."""
    flat = images.flatten(1).double()
    return float(torch.stack([flat[labels == k].var(0).mean() for k in labels.unique()]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, items=500)
    parser.add_argument("--samples", type=int, default=20, help="samples for each class and weight")
    parser.add_argument("--steps", type=int, default=40, help="T of the chain that is sampled")
    parser.add_argument("--visits", type=int, default=32, help="draws for each item of the table")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "guidance.json")
    options = parser.parse_args()
    model, data, x, c = opened(options)
    began = time.perf_counter()
    table = df.guidance_table(model, x, WEIGHTS, condition=c, visits=options.visits)
    print(table, flush=True)
    form = bounded(model, x, c)
    print(form, flush=True)
    classifier = network_classifier(data)
    labels = torch.arange(len(model.classes)).repeat_interleave(options.samples)
    rows: list[dict[str, Any]] = []
    short = model.regrid(options.steps)
    for w, nelbo, rise in zip(table.weights, table.nelbo, table.rise, strict=True):
        images = short.guided(w).sample(len(labels), torch.Generator().manual_seed(0), condition=labels)
        rows.append(
            {
                "weight": w,
                "nelbo": nelbo.to("bits/dim", table.dimensions).to_dict(),
                "rise_nats": rise.to_dict(),
                "accuracy": accuracy_of(classifier, images, labels),
                "diversity": diversity(images, labels) / diversity(x, c),
            }
        )
        print(w, rows[-1]["accuracy"], rows[-1]["diversity"], flush=True)
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"sets": {}}
    found["sets"][options.set] = {
        "items": len(x),
        "shape": list(data.space.shape),
        "visits": options.visits,
        "steps": options.steps,
        "samples": len(labels),
        "weights": rows,
        "curvature_nats": table.curvature.to_dict(),
        "direct_nats": table.direct.to_dict(),
        "bounded_nats": {"least": form.least.to_dict(), "most": form.most.to_dict(), "limit": form.limit},
        "classifier_on_test": accuracy_of(classifier, x, c),
        "config": df.load_run(options.run).config.to_dict(),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
    }
    save(options.out, found)


if __name__ == "__main__":
    main()
