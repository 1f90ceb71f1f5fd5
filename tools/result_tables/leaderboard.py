"""Tables of docs/leaderboard.md: our numbers from benchmarks/results, and published ones from benchmarks/published.json."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from result_tables.common import ROOT, markdown, over_seeds, record, with_error


class Row(NamedTuple):
    """A number of a model."""

    value: float
    text: str
    model: str
    kind: str
    source: str


_NAMES = {
    "diffusion": "diffusion, continuous time",
    "vae": "VAE",
    "hierarchical_vae": "hierarchical VAE",
    "vae_diffusion_prior": "VAE with a diffusion prior",
}
BOUND = "upper bound"


def _over_seeds(found: list[dict[str, float]]) -> tuple[float, str]:
    """Return the mean over seeds and its text with the standard error."""
    mean, error = over_seeds(found)
    return mean, f"{with_error(mean, error)} ({len(found)} seeds)"


def _published(data: str) -> Iterator[Row]:
    numbers = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))["numbers"]
    for one in numbers:
        if one["data"] == data:
            version = f"{one['kind']}; {one['version']}"
            seen = f"; read in: {one['checked']}" if one["checked"] else "; **not checked**"
            yield Row(one["value"], f"{one['value']:g}", f"{one['model']}, published", version, one["source"] + seen)


def _table(rows: list[Row], unit: str) -> str:
    ordered = sorted(rows, key=lambda row: row.value)
    return markdown([unit, "model", "kind of number", "source"], [[row.text, *row[2:]] for row in ordered])


def leaderboard_digits() -> str:
    """Models of the digits."""
    data, rows = record("side_by_side.json"), []
    page = "[digits](results/digits.md)"
    for key, name in _NAMES.items():
        found = [seed[key]["nelbo"] for seed in data["seeds"].values() if key in seed]
        rows.append(Row(*_over_seeds(found), f"**{name}**", BOUND, f"{page}: `python benchmarks/side_by_side.py`"))
    for name, one in data["yardsticks"].items():
        rows.append(Row(one["value"], f"{one['value']:.3f}", f"**{name}**", "exact", page))
    for name, one in record("essay_chain.json")["systems"].items():
        value, error = one["nelbo"]["value"], one["nelbo"]["error"]
        source = "[essay chain](results/essay-chain.md): `python benchmarks/essay_chain.py`"
        rows.append(Row(value, with_error(value, error), f"**chain of five latents, `{name}`**", BOUND, source))
    names = {"gaussian": "diffusion, preset `digits`", "masked": "masked diffusion of 17 categories"}
    for key, name in names.items():
        one = record("masked-digits.json")["models"][key]
        source = "[masked digits](results/masked-digits.md): `python benchmarks/masked_digits.py --runs RUNS`"
        text = f"**{name}**, {one['steps']:,} steps"
        rows.append(Row(one["bits"], with_error(one["bits"], one["error"]), text, BOUND, source))
    return _table(rows, "bits/dim")


def leaderboard_mnist() -> str:
    """Models of 8-bit MNIST."""
    rows = list(_published("MNIST"))
    found = record("laptop.json")["evaluation"]["nelbo"]
    source = "[laptop](results/laptop.md): `diffusional train RUN --preset laptop --data MNIST`"
    text = with_error(found["value"], found["error"])
    rows.append(Row(found["value"], text, "**`laptop`, ten minutes on two cores**", BOUND, source))
    for name, system in record("order.json")["systems"].items():
        value, error = system["bits_per_dim"], system["error_by_seeds"]
        source = "[systems](results/systems.md): `python benchmarks/order.py`"
        rows.append(Row(value, f"{with_error(value, error)} (3 seeds)", f"**{name}**, 1,200 steps", BOUND, source))
    return _table(rows, "bits/dim")


def leaderboard_binary_mnist() -> str:
    """Models of binary MNIST."""
    rows = list(_published("binary MNIST"))
    source = "[binary MNIST](results/binary-mnist.md): `python benchmarks/binary_mnist.py`"
    for name, system in record("binary_mnist.json")["systems"].items():
        value, error = system["nats"], system["error_by_seeds"]
        rows.append(Row(value, f"{with_error(value, error)} (2 seeds)", f"**{name}**", BOUND, source))
    return _table(rows, "nats")


def leaderboard_cifar10() -> str:
    """Models of CIFAR-10: published ones on all test images, and ours on a subset."""
    found, rows = record("cifar10_subset.json"), list(_published("CIFAR-10"))
    nelbo, page = found["evaluation"]["nelbo"], "[CIFAR-10, subset](results/cifar10-subset.md)"
    text, subset = with_error(nelbo["value"], nelbo["error"]), "1,000 test images, 4,500 for training"
    command = f"{page}: `python benchmarks/cifar10_subset.py --data FILE --run RUN --train`"
    rows.append(Row(nelbo["value"], text, "**half an hour on one core**", f"{BOUND}; {subset}", command))
    for name, value in (*found["baselines"].items(), ("PNG", found["png"])):
        rows.append(Row(value, f"{value:.3f}", f"**{name}**", f"exact; {subset}", page))
    return _table(rows, "bits/dim")
