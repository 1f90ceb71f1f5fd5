"""Records for tests of reports: a run of images with everything a report can show, a composite, a density, and a comparison."""

import math

import numpy as np
import torch

from diffusional.evaluation import Comparison, Evaluation
from diffusional.ledger import Estimate
from diffusional.report.subject import ItemScores, ListedItem, Samples, Subject

DATA = {"data_sha256": "d" * 64, "levels": 17, "seed": 3, "method": "plan", "model": "DiffusionModel"}
FURTHER = {
    "weights_sha256": "w" * 64,
    "versions": {"torch": "2.6"},
    "command": "/usr/bin/diffusional evaluate runs/a --seed 3",
}


def nats(value: float, error: float = 0.0, items: float = 0.5) -> Estimate:
    return Estimate(value, error, items, n=9, network_evaluations=1000)


def images(total: float = 80.0, **about: object) -> Evaluation:
    """Of 9 images 1×8×8: reconstruction 4, four levels, prior 1, in sum `total` nats."""
    kl = torch.tensor([10.0, 40.0, 20.0, total - 75.0], dtype=torch.float64)
    terms = {"reconstruction": nats(4.0, 0.05), "kl": nats(total - 5.0, 0.2), "prior": nats(1.0)}
    return Evaluation(
        nats(total, 0.2),
        terms,
        {},
        kl,
        torch.full((4,), 0.1, dtype=torch.float64),
        torch.tensor([1, 2, 3, 4, 5]),
        64,
        DATA | FURTHER,
        gamma_edges=torch.tensor([-8.0, -4.0, 0.0, 4.0, 8.0], dtype=torch.float64),
        about={"data": "digits", "split": "test"} | about,
    )


def composite() -> Evaluation:
    """Of the same images, in two stages of two levels each."""
    terms = {
        "base.reconstruction": nats(2.0),
        "base.kl": nats(30.0, 0.1),
        "base.prior": nats(0.5),
        "upsampler.kl": nats(50.0, 0.1),
        "upsampler.prior": nats(0.5),
    }
    edges = [1, 2, 3, 1, 2, 3]
    return Evaluation(
        nats(83.0, 0.15),
        terms,
        {},
        torch.tensor([10.0, 20.0, 20.0, 30.0], dtype=torch.float64),
        torch.full((4,), 0.05, dtype=torch.float64),
        torch.tensor(edges),
        64,
        DATA,
        gamma_edges=torch.tensor([-6.0, 0.0, 6.0, -6.0, 0.0, 6.0], dtype=torch.float64),
        blocks={"base.kl": 2, "upsampler.kl": 2},
    )


def density() -> Evaluation:
    """Of 9 rows of three real columns, −2.5 nats."""
    none = torch.zeros(0, dtype=torch.float64)
    return Evaluation(nats(-2.5, 0.01, 0.1), {}, {}, none, none, none, 3, {"data_sha256": "e" * 64, "levels": None})


def comparison(difference: float = -4.0) -> Comparison:
    a, b = images(80.0), images(80.0 - difference)
    names = {"runs": ["runs/a", "runs/b"]}
    return Comparison(nats(difference, 0.1, 0.3), a, b, math.inf, True, (), about=names)


def listed(name: str, value: float) -> ListedItem:
    rng = np.random.default_rng(0)
    return ListedItem(name, value, 0.5, 42.0, rng.random((1, 8, 8)), rng.normal(size=(8, 8)))


def full(name: str = "runs/a", total: float = 80.0) -> Subject:
    """Return a subject that has every part of a report."""
    rng = np.random.default_rng(0)
    metrics = [{"step": step, "loss": 3.0 - step / 100} for step in range(10, 100, 10)]
    metrics += [{"step": 50, "validation": 2.5}, {"step": 90, "validation": 2.25}]
    samples = Samples(
        "3 samples, seed 0.", rng.random((3, 1, 8, 8)), rng.random((2, 4, 1, 8, 8)), ["−8.0", "−2.0", "5.0", "x"]
    )
    items = ItemScores(
        rng.normal(80, 9, 40),
        np.full(40, 2.0),
        60,
        [listed("easy.png", 50.0)],
        [listed("hard.png", 120.0)],
        "By 8 draws.",
    )
    baseline = Evaluation.from_scores(torch.tensor([100.0, 104.0]), 64, provenance=DATA)
    return Subject(
        name,
        images(total),
        metrics,
        {"seed": 7},
        {"sha256": {"train": "t" * 64}},
        {"independent positions": baseline},
        items,
        samples,
    )


def masked() -> Evaluation:
    """Of 9 blocks of five tokens, by number of masked positions: 1 costs 1 nat, 2 cost 2, 3 and 4 together 7, and 5 cost 5."""
    kl, error = torch.tensor([2.0, 7.0, 5.0], dtype=torch.float64), torch.tensor([0.0, 0.3, 0.4], dtype=torch.float64)
    bits = {f"bits_per_{unit}": [value, 0.01] for unit, value in (("token", 3.0), ("character", 1.5), ("byte", 1.25))}
    text = {"tokens": 43, "characters": 86, "bytes": 100, "perplexity": 8.0} | bits
    return Evaluation(
        nats(15.0, 0.51),
        {"reconstruction": nats(1.0, 0.1), "kl": nats(14.0, 0.5), "prior": nats(0.0, 0.0, 0.0)},
        {},
        kl,
        error,
        torch.tensor([1, 2, 4, 5]),
        5,
        DATA | {"levels": 27, "levels_are": "masked positions"},
        about={"data": "a.txt", "text": text},
    )


def texts() -> Subject:
    """Return a subject of a model of texts, with samples and items."""
    easy, hard = (
        ListedItem(f"a.txt, row {i}", 2.0 * i, 0.1, text=text) for i, text in ((3, "the\n the"), (8, "<b>&x"))
    )
    items = ItemScores(np.arange(9.0), np.full(9, 0.1), 9, [easy], [hard], "By 8 draws.")
    return Subject("hf:a/b", masked(), items=items, samples=Samples("Two.", texts=["to <i>be</i>", "or not"]))


def continuations(weights: str = "w") -> Evaluation:
    """Of 4 rows of 1, 2, 3 and 4 scored tokens, filled up to 20 tokens: 1, 2, 9 and 8 nats, so that the whole is 2 nats per token."""
    none = torch.zeros(0, dtype=torch.float64)
    bits = {f"bits_per_{unit}": [2.0 / math.log(2), 0.01] for unit in ("token", "character", "byte")}
    text = {"tokens": 10, "characters": 30, "bytes": 31, "perplexity": math.exp(2.0)} | bits
    return Evaluation(
        Estimate(5.0, 0.05, 3.0, n=4, network_evaluations=64),
        {},
        {},
        none,
        none,
        torch.ones(1, dtype=torch.long),
        20,
        {"data_sha256": "q" * 64, "levels": 100, "latents": 20, "weights_sha256": weights * 64},
        of="NELBO given the prompts",
        about={"data": "qa.jsonl", "prompts": {"tokens": 7, "longest": 3, "item_error": 0.25}, "text": text},
    )


def prompted(name: str = "hf:a/b", weights: str = "w") -> Subject:
    """Return a subject with these continuations, and their scores per token."""
    free, nats = np.array([1, 2, 3, 4]), np.array([1.0, 2.0, 9.0, 8.0])
    rows = [
        ListedItem(f"qa.jsonl, row {i}", nats[i] / free[i], 0.0, text="<b>", prompt="What & why?") for i in range(4)
    ]
    items = ItemScores(nats / free, np.array([0.0, 0.0, 0.03, 0.05]), 4, rows[:1], rows[2:3], "Rows.", tokens=free)
    return Subject(name, continuations(weights), items=items)


def table() -> Subject:
    """Return a subject of a table with samples."""
    rng = np.random.default_rng(0)
    columns = ("height", "width", "a<b")
    return Subject(
        "runs/table",
        density(),
        samples=Samples("Rows.", None, None, (), columns, rng.normal(size=(50, 3)), rng.normal(size=(40, 3))),
    )
