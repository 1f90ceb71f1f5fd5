"""The record of an evaluation: it keeps every number to the last bit, refuses damaged ones, and shows what it holds."""

import copy
import html
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from bits import Network
from diffusional import (
    Comparison,
    Continuous,
    DiffusionModel,
    Estimate,
    Evaluation,
    GaussianDiffusion,
    Ledger,
    exact,
    likelihood,
    schedule,
)
from diffusional.errors import DiffusionalError
from diffusional.evaluation.records import FORMAT
from diffusional.files import load_tensors
from diffusional.models.base import LatentVariableModel
from diffusional.report import figures, tables

F64 = torch.float64
WORLD = exact.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
X = WORLD.sample(12, torch.Generator().manual_seed(0))


def gaussian(steps: int | None = 9) -> DiffusionModel:
    process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=steps))
    return DiffusionModel(process, WORLD.denoiser(), likelihood.GaussianLikelihood(Continuous((2,))))


class Halves(nn.Module):
    """An affine map whose weights are no parameters of interest."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, outputs, dtype=F64)
        nn.init.constant_(self.map.weight, 0.1)
        nn.init.constant_(self.map.bias, -0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


def vae(prior: DiffusionModel | None = None) -> df.VAE:
    decoder = likelihood.GaussianLikelihood(Continuous((2,)), 0.5)
    return df.VAE(Halves(2, 2), Halves(1, 2), decoder, latents=1, prior=prior)


def line() -> DiffusionModel:
    """A diffusion over one latent."""
    world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    process = GaussianDiffusion(schedule.log_snr_linear(-4.0, 4.0, steps=5))
    return DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))


# γ at the edges of levels.


@pytest.mark.parametrize("steps", [9, None])
@pytest.mark.parametrize("how", [{"draws": 2}, {"visits": 4}])
def test_gamma_is_that_of_the_schedule_at_the_edges(steps: int | None, how: dict[str, int]) -> None:
    cells = {"cells": 5} if steps is None and "draws" in how else {}
    result = df.evaluate(gaussian(steps), X, **how, **cells)
    u = result.level_edges.double() if steps is None else (result.level_edges.double() - 1) / 8
    assert result.gamma_edges is not None
    assert result.gamma_edges.dtype is F64
    torch.testing.assert_close(result.gamma_edges, -5.0 + 10.0 * u)
    assert (float(result.gamma_edges[0]), float(result.gamma_edges[-1])) == (-5.0, 5.0)
    assert result.blocks == {"kl": len(result.levels_kl)}


def test_gamma_of_a_prior_and_of_bits() -> None:
    result = df.evaluate(vae(line()), X, visits=3)
    assert result.gamma_edges is not None
    assert result.gamma_edges.tolist() == [-4.0, -2.0, 0.0, 2.0, 4.0]
    process = df.BinomialDiffusion.constant(6)
    bits = df.BinomialDiffusionModel(process, Network(3), df.space.binary((3,)))
    found = df.evaluate(bits, torch.ones(8, 3, dtype=F64), draws=1)
    assert found.gamma_edges is not None
    assert found.gamma_edges.equal(process.gamma(torch.arange(1, 7)))


def test_a_vae_has_no_gamma() -> None:
    result = df.evaluate(vae(), X, visits=3)
    assert result.gamma_edges is None
    assert result.blocks == {"kl": 0}


# Records of earlier versions, written by `diffusional evaluate --json` before records had a format.

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"


@pytest.mark.parametrize("name", ["plan", "sweep", "continuous", "vae", "table"])
def test_records_of_earlier_versions_load(name: str) -> None:
    written = json.loads((RECORDS / f"{name}.json").read_text())
    result = Evaluation.load(RECORDS / f"{name}.json")
    assert (result.kind, result.of, result.gamma_edges, dict(result.per_item)) == ("bound", "NELBO, MATH (8)", None, {})
    again = result.to_json()
    interval, old_interval = again.pop("interval"), written.pop("interval")
    assert {key: again[key] for key in written} == written
    # The degrees of freedom are those that make the interval.
    for unit in ("nats", "bits/dim"):
        assert interval[unit] == pytest.approx(old_interval[unit], rel=1e-9)
    assert math.isfinite(result.freedom)
    assert result.about["split"] == "test"
    assert "importance_weighted" in result.about if name == "vae" else "importance_weighted" not in result.about


def test_a_comparison_of_an_earlier_version_loads() -> None:
    written = json.loads((RECORDS / "comparison.json").read_text())
    both = Comparison.load(RECORDS / "comparison.json")
    assert both.names == ("run", "vae")
    assert both.difference.value == written["difference_nats"]["value"]
    assert both.b.nelbo.to_dict() == written["b"]["nelbo_nats"]
    assert list(both.interval()) == pytest.approx(written["interval"]["nats"], rel=1e-9)
    assert both.to_json()["a"]["levels_kl"] == written["a"]["levels_kl"]


def test_entries_of_the_earlier_demonstration_load() -> None:
    part = {"value": 70.0, "error": 0.0, "item_error": None, "unit": "nats"}
    bits = part | {"value": 70.0 / (64 * math.log(2)), "unit": "bits/dim"}
    entry = {"nelbo": bits, "nelbo_nats": part, "terms": {}, "items": 1, "dimensions": 64, "levels": 17}
    result = Evaluation.from_json(entry | {"network_evaluations": 0})
    assert (result.nelbo.value, result.items_visited, len(result.levels_kl)) == (70.0, 1, 0)


# Saving and loading.


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a.double().nan_to_num(-7.0), b.double().nan_to_num(-7.0))


def assert_equal(a: Evaluation, b: Evaluation) -> None:
    for name in (
        "dimensions",
        "freedom",
        "reached",
        "caveats",
        "kind",
        "of",
        "visited",
        "about",
        "blocks",
        "provenance",
    ):
        assert getattr(a, name) == getattr(b, name), name
    for one, other in ((a.nelbo, b.nelbo), *((a.terms[name], b.terms[name]) for name in a.terms)):
        # NaN is not equal to itself.
        assert str(vars(one)) == str(vars(other))
    assert list(a.terms) == list(b.terms)
    for name in ("levels_kl", "levels_error", "level_edges", "gamma_edges"):
        assert same(getattr(a, name), getattr(b, name)), name
    assert a.per_item.keys() == b.per_item.keys()
    for name, column in a.per_item.items():
        assert (column.dtype, column.equal(b.per_item[name])) == (b.per_item[name].dtype, True)


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return df.evaluate(gaussian(), X, visits=4)


@pytest.mark.parametrize("how", ["plan", "sweep", "continuous", "vae"])
def test_what_is_saved_is_loaded_to_the_last_bit(how: str, result: Evaluation, tmp_path: Path) -> None:
    found = {
        "plan": lambda: replace(result, about={"split": "test", "data": "Ziffern — 数字 \udcff"}),
        "sweep": lambda: df.evaluate(gaussian(), X[:1], draws=2),
        "continuous": lambda: df.evaluate(gaussian(None), X, draws=1, cells=3),
        "vae": lambda: df.evaluate(vae(), X, visits=3),
    }[how]()
    found.save(tmp_path / "a.json")
    assert_equal(Evaluation.load(tmp_path / "a.json"), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.scores.safetensors"]
    # Saved again, the bytes are the same.
    Evaluation.load(tmp_path / "a.json").save(tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["format"], record["kind"]) == (FORMAT, "bound")
    assert Evaluation.from_json(record).per_item == {}


def odd() -> Evaluation:
    """Numbers that JSON has no words for, and types that are not float64."""
    kl, unknown = torch.tensor([0.1, 1 / 3], dtype=torch.float64), torch.tensor([math.nan, 0.5], dtype=torch.float64)
    scores = {
        "item": torch.tensor([3, 0]),
        "nelbo": torch.tensor([0.1 + 0.2, 5e-324], dtype=torch.float64),
        "kl": torch.tensor([1e300, -0.0], dtype=torch.float64),
        "error": torch.tensor([math.nan, math.inf], dtype=torch.float64),
        "draws": torch.tensor([2, 300], dtype=torch.int16),
    }
    return Evaluation(
        Estimate(1 / 3, math.inf, math.nan, n=4, network_evaluations=7),
        {"κλ.kl": Estimate(-1e-300, math.nan, math.inf, n=4, network_evaluations=7)},
        scores,
        kl,
        unknown,
        torch.tensor([1, 5, 6]),
        dimensions=3,
        provenance={"levels": None, "doubts": ["a doubt"]},
        gamma_edges=torch.tensor([-13.3, 0.1, 5.0], dtype=torch.float64),
        kind="estimate",
        of="importance-weighted, K = 8",
        caveats=("<script>alert(1)</script>\n\x1b[31m",),
        reached=False,
    )


def test_odd_numbers_are_kept(tmp_path: Path) -> None:
    found = odd()
    assert found.caveats[1] == "a doubt"
    found.save(tmp_path / "a.json")
    loaded = Evaluation.load(tmp_path / "a.json")
    assert math.isinf(loaded.freedom)
    assert (loaded.visited, loaded.per_item["draws"].dtype) == (2, torch.int16)
    for name in ("error", "nelbo", "kl"):
        assert same(loaded.per_item[name], found.per_item[name])
    assert math.copysign(1, float(loaded.per_item["kl"][1])) == -1
    bare = replace(found, per_item={}, visited=2)
    bare.save(tmp_path / "b.json")
    assert_equal(Evaluation.load(tmp_path / "b.json"), bare)
    assert not (tmp_path / "b.scores.safetensors").exists()
    # JSON as the standard has it: without NaN and Infinity.
    json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_a_comparison_is_loaded_as_it_was_saved(result: Evaluation, tmp_path: Path) -> None:
    both = df.compare(vae(), vae(line()), X, 5.0, "nats")
    both = replace(both, about={"runs": ["one", "other"]}, caveats=("a caveat",))
    both.save(tmp_path / "a.json")
    loaded = Comparison.load(tmp_path / "a.json")
    assert (loaded.difference, loaded.freedom, loaded.caveats) == (both.difference, both.freedom, both.caveats)
    assert (loaded.about, loaded.reached) == (both.about, both.reached)
    assert_equal(loaded.a, both.a)
    assert_equal(loaded.b, both.b)
    assert loaded.to_json() == both.to_json()
    assert list(loaded.per_item) == ["item", "difference", "error"]
    assert all(loaded.per_item[name].equal(values) for name, values in both.per_item.items())
    # Of other items than each other's.
    record = both.to_json() | {"b": result.to_json() | {"items": 11}}
    with pytest.raises(DiffusionalError, match="items"):
        Comparison.from_json(record)
    with pytest.raises(DiffusionalError, match=r"a\.json has no entry"):
        Evaluation.load(tmp_path / "a.json")
    with pytest.raises(DiffusionalError, match="difference"):
        Comparison.from_json(result.to_json())


def test_scores_belong_to_their_record(result: Evaluation, tmp_path: Path) -> None:
    result.save(tmp_path / "a.json")
    replace(result, per_item=dict(result.per_item) | {"nelbo": result.per_item["nelbo"] + 1}).save(tmp_path / "b.json")
    shutil.copy(tmp_path / "b.scores.safetensors", tmp_path / "a.scores.safetensors")
    with pytest.raises(DiffusionalError, match=r"a\.scores\.safetensors"):
        Evaluation.load(tmp_path / "a.json")
    (tmp_path / "a.scores.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"a\.scores\.safetensors"):
        assert Evaluation.load(tmp_path / "a.json").per_item == {}
    # Renamed together, they still belong together.
    for suffix in ("json", "scores.safetensors"):
        (tmp_path / f"b.{suffix}").rename(tmp_path / f"c.{suffix}")
    assert len(Evaluation.load(tmp_path / "c.json").per_item["nelbo"]) == 12


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("item", torch.tensor([0, 0])),
        ("item", torch.tensor([0, 4])),
        ("item", torch.tensor([-1, 0])),
        ("item", torch.tensor([0.0, 1.0])),
        ("nelbo", torch.tensor([0.0, math.nan])),
        ("kl", torch.tensor([0.0, math.inf])),
        ("draws", torch.tensor([1, 2, 3])),
        ("error", torch.zeros(2, 1)),
    ],
)
def test_scores_that_make_no_sense_are_refused(column: str, values: Tensor, tmp_path: Path) -> None:
    from diffusional.evaluation import records

    found = odd()
    records.save(tmp_path / "a.json", found.to_json(), dict(found.per_item) | {column: values})
    with pytest.raises(DiffusionalError, match=column):
        Evaluation.load(tmp_path / "a.json")


def test_a_save_that_fails_changes_nothing(result: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result.save(tmp_path / "a.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for about in ({"path": Path("a")}, {"loss": math.nan}, {"tensor": torch.ones(1)}):
        with pytest.raises(DiffusionalError, match="JSON"):
            replace(result, about=about).save(tmp_path / "a.json")
    with pytest.raises(DiffusionalError, match=r"a\.txt"):
        result.save(tmp_path / "a.txt")
    with pytest.raises(DiffusionalError, match="does not exist"):
        result.save(tmp_path / "missing" / "a.json")
    with pytest.raises(DiffusionalError, match=r"b\.json does not exist"):
        Evaluation.load(tmp_path / "b.json")

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("diffusional.evaluation.records.write_tensors", full)
    with pytest.raises(DiffusionalError, match="disk full"):
        replace(result, caveats=("new",)).save(tmp_path / "a.json")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("text", ['{"steps": 2000}', "{", "some notes"])
def test_other_files_are_not_replaced(text: str, result: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DiffusionalError, match=r"config\.json exists"):
        result.save(tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == text


# Records that are damaged or of other versions.


@pytest.mark.parametrize("number", [FORMAT + 1, 1000])
def test_later_formats_are_refused(number: int, result: Evaluation) -> None:
    with pytest.raises(DiffusionalError, match=f"format {number}.*update"):
        Evaluation.from_json(result.to_json() | {"format": number})


def test_every_entry_is_needed(result: Evaluation) -> None:
    # These can be computed from others.
    optional = {"format", "interval", "levels", "data_levels", "gamma_edges", "blocks"}
    for key in result.to_json().keys() - optional:
        record = result.to_json()
        del record[key]
        with pytest.raises(DiffusionalError, match=f"'{key}'"):
            Evaluation.from_json(record)


WRONG = [
    ("format", "1"),
    ("format", True),
    ("format", -1),
    ("kind", "guess"),
    ("kind", None),
    ("of", 8),
    ("nelbo_nats", None),
    ("nelbo_nats.value", None),
    ("nelbo_nats.value", math.nan),
    ("nelbo_nats.value", math.inf),
    ("nelbo_nats.value", "3"),
    ("nelbo_nats.value", True),
    ("nelbo_nats.value", 10**400),
    ("nelbo_nats.value", 3.0),  # another number than "nelbo"
    ("nelbo_nats.error", -0.1),
    ("nelbo_nats.unit", "bits/dim"),
    ("nelbo.value", 1e9),
    ("terms", []),
    ("terms.kl", 3.0),
    ("terms.kl.error", math.inf),
    ("terms.kl.unit", "bits/dim"),
    ("freedom", -1),
    ("freedom", math.nan),
    ("freedom", "inf"),
    ("levels_kl", None),
    ("levels_kl", [1.0]),
    ("levels_kl.0", math.nan),
    ("levels_kl.0", None),
    ("levels_kl_error.0", "x"),
    ("level_edges.0", math.inf),
    ("level_edges", [1, 2]),
    ("gamma_edges", [0.0]),
    ("gamma_edges.0", None),
    ("blocks", {"kl": 1}),
    ("blocks.kl", 2.0),
    ("blocks.kl", -8),
    ("items", 0),
    ("items", 12.0),
    ("items_visited", 13),
    ("items_visited", 0),
    ("dimensions", 0),
    ("network_evaluations", -1),
    ("reached", "yes"),
    ("caveats", "a caveat"),
    ("caveats", [1]),
    ("provenance", []),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_damaged_entries_are_named(path: str, value: object, result: Evaluation, tmp_path: Path) -> None:
    record = copy.deepcopy(result.to_json())
    *outer, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = record
    for part in outer:
        at = at[part]
    at[last] = value
    (tmp_path / "a.json").write_text(json.dumps(record))  # NaN and Infinity as Python writes them
    named = path.split(".")[0].removesuffix("_nats")
    with pytest.raises(DiffusionalError, match=named) as caught:
        Evaluation.load(tmp_path / "a.json")
    assert "a.json" in str(caught.value) or "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"format": 1}', "\udcff"])
def test_files_that_are_no_records(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for kind in (Evaluation, Comparison):
        with pytest.raises(DiffusionalError, match=r"a\.json"):
            kind.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "bound", "about": {"nelbo": 1}}, "about .*nelbo"),
        ({"about": {"scores_sha256": "x"}}, "about"),
        ({"nelbo": Estimate(math.nan, 0.0, 0.0, 12, 0)}, "nelbo"),
        ({"nelbo": Estimate(1.0, 0.0, 0.0, 12, 0, "bits/dim")}, "nats"),
        ({"terms": {"error": Estimate(1.0, 0.0, 0.0, 12, 0)}}, "'error'"),
        ({"levels_kl": torch.full((8,), math.nan)}, "levels_kl"),
        ({"levels_error": torch.zeros(1)}, "levels_error"),
        ({"level_edges": torch.arange(3)}, "level_edges"),
        ({"gamma_edges": torch.zeros(2)}, "gamma_edges"),
        ({"blocks": {"a.kl": 4, "b.kl": 4}}, "blocks"),
        ({"per_item": {"item": torch.arange(12)}}, "nelbo"),
        ({"per_item": {"item": torch.arange(12), "nelbo": torch.zeros(11)}}, "nelbo"),
        ({"freedom": math.nan}, "freedom"),
        ({"dimensions": 0}, "dimensions"),
        ({"visited": 13, "per_item": {}}, "13"),
    ],
)
def test_inconsistent_results_are_refused(fields: dict[str, Any], named: str, result: Evaluation) -> None:
    with pytest.raises(DiffusionalError, match=named):
        replace(result, **fields)


# What is printed.


def test_the_summary_has_every_number() -> None:
    terms = {"reconstruction": Estimate(3.25, 0.05, 0.11, 9, 1000), "kl": Estimate(76.875, 0.2, 1.5, 9, 1000)}
    none, about = (
        torch.zeros(0),
        {"levels": 17, "model": "DiffusionModel", "latents": 40, "seed": 3, "data_sha256": "ab" * 32},
    )
    one = Evaluation(
        Estimate(80.125, 0.21, 1.6, 9, 1000),
        terms,
        {},
        none,
        none,
        none,
        64,
        about,
        10.0,
        False,
        ("few draws",),
        visited=7,
    )
    text = " ".join(str(one).split())
    # 80.125/(64 ln 2) = 1.80619, and ± 2.228 · 0.0047338 around it.
    for said in (
        "NELBO, MATH (8) (upper bound on −ln p(x)): 1.8062 ± 0.0047 bits/dim (items ± 0.036); 80.12 ± 0.21 nats (items ± 1.6)",
        "kl 76.88 0.20 1.5 1.7329 0.0045 0.034",
        "NELBO 80.12 0.21 1.6 1.8062 0.0047 0.036",
        "95 % Monte Carlo interval 1.7956 to 1.8167 bits/dim, 10 degrees of freedom",
        "9 items (7 visited), 64 dimensions, 17 levels, DiffusionModel, T = 40",
        "1,000 network evaluations (111.1 per item)",
        "seed: 3, data abababababab",
        "not reached",
        "caveat: few draws",
    ):
        assert said in text
    assert repr(one) == "<Evaluation: upper bound on −ln p(x), 1.8062 ± 0.0047 bits/dim (items ± 0.036), 9 items>"
    both = Comparison(
        Estimate(-1.0, 0.25, 0.5, 9, 2000), one, one, math.inf, False, ("A: few draws",), {}, {"runs": ["a", "b"]}
    )
    text = " ".join(str(both).split())
    for said in ("A − B, paired -1.00 0.25 0.50 -0.0225 0.0056 0.011", "caveat: A: few draws", "not reached", "2,000"):
        assert said in text


def test_the_summary_of_odd_numbers() -> None:
    text = str(odd())
    assert "estimate, not a bound" in text
    assert "no Monte Carlo interval" in text
    # One line per caveat, and no control characters.
    assert "caveat: <script>alert(1)</script>\\n\\x1b[31m" in text
    assert "no Monte Carlo error" in str(Evaluation.from_scores(torch.ones(1), 2))
    assert "± nan" not in text
    one = str(Evaluation.from_scores(torch.ones(1), 2))
    assert "(items ± unknown)" in one
    assert "1 item (all visited)" in one
    assert "nan" not in one


def test_html_is_escaped() -> None:
    bad = '<img src=x onerror="alert(1)">'
    one = odd()
    shown = replace(
        one,
        terms={bad: one.nelbo},
        of=bad,
        caveats=(bad,),
        provenance={"model": bad, "levels": bad, "method": bad, "data_sha256": bad, "latents": bad},
    )
    both = Comparison(shown.nelbo, shown, shown, math.inf, False, (bad,), {}, {"runs": [bad, "b"]})
    for page in (shown._repr_html_(), both._repr_html_()):
        assert bad not in page
        assert html.escape(bad) in page
        assert set(re.findall(r"<(\w+)", page)) <= {
            *["div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"]
        }
    assert "<td" in shown._repr_html_()


# Exact scores.


@pytest.mark.parametrize("n", [1, 5])
def test_exact_scores(n: int) -> None:
    nats = torch.arange(n, dtype=torch.float64) + 0.5
    one = Evaluation.from_scores(nats, dimensions=4, provenance={"levels": 3})
    assert (one.kind, one.nelbo.value, one.nelbo.error, one.nelbo.network_evaluations) == (
        "exact",
        float(nats.mean()),
        0,
        0,
    )
    assert math.isnan(one.nelbo.item_error) if n == 1 else one.nelbo.item_error == pytest.approx(math.sqrt(2.5 / 5))
    assert one.per_item["nelbo"].equal(nats)
    assert one.to_json()["levels"] == 3
    with pytest.raises(DiffusionalError, match="scores"):
        Evaluation.from_scores(torch.zeros(0), 4)
    with pytest.raises(DiffusionalError, match="nelbo"):
        Evaluation.from_scores(torch.tensor([math.nan]), 4)


# A composite model.


class Pair(LatentVariableModel):
    """Each of the two numbers of an item by a VAE of its own, with a diffusion over its latent."""

    def __init__(self) -> None:
        super().__init__()
        part = likelihood.GaussianLikelihood(Continuous((1,)), 0.5)
        models = (df.VAE(Halves(1, 2), Halves(1, 1), part, latents=1, prior=prior) for prior in (line(), line()))
        self.first, self.second = models

    @property
    def space(self) -> Continuous:
        return Continuous((2,))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (2, *self.first.noise_shape)

    def terms(self, x: Tensor, noise: Tensor, condition: Any = None) -> Ledger:
        stages = {
            "first": self.first.terms(x[:, :1], noise[:, 0], condition),
            "second": self.second.terms(x[:, 1:], noise[:, 1], condition),
        }
        return Ledger.join(stages, self.space.dimensions)

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Any = None) -> Ledger:
        raise NotImplementedError

    def draw(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def costs(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def sample(self, *_: Any, **__: Any) -> Tensor:
        raise NotImplementedError


def test_a_composite_model_from_evaluation_to_figure(tmp_path: Path) -> None:
    found = df.evaluate(Pair(), X, visits=8)
    assert {"first.kl", "second.kl", "first.reconstruction", "second.prior", "first.latent_reconstruction"} <= set(
        found.terms
    )
    assert sum(term.value for term in found.terms.values()) == pytest.approx(found.nelbo.value)
    assert found.blocks == {"first.kl": 4, "second.kl": 4}
    assert found.level_edges.tolist() == [1, 2, 3, 4, 5] * 2
    assert found.gamma_edges is None
    for name, block in found.level_blocks().items():
        assert float(block.kl.sum()) == pytest.approx(found.terms[name].value)
        assert block.edges.tolist() == [1, 2, 3, 4, 5]
    found.save(tmp_path / "a.json")
    loaded = Evaluation.load(tmp_path / "a.json")
    assert_equal(loaded, found)
    assert load_tensors(tmp_path / "a.scores.safetensors")["second.kl"].equal(found.per_item["second.kl"])
    assert "second.latent_reconstruction" in str(loaded)
    assert tables.ledger_table(loaded, "a").row_count == len(found.terms) + 1
    figures.level_costs(tmp_path / "a.png", loaded, "a pair")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_density_is_reported_in_nats_first() -> None:
    scores = torch.tensor([3.0, 5.0])
    for levels, first, second in ((None, "nats", "bits/dim"), (17, "bits/dim", "nats")):
        one = Evaluation.from_scores(scores, dimensions=2, provenance={"levels": levels})
        assert one.units == (first, second)
        assert one.nelbo.to(first, 2).unit in repr(one)
        assert str(one.nelbo.to(first, 2)) in one.headline
        assert str(one).splitlines()[0].index(f" {first}") < str(one).splitlines()[0].index(f" {second}")
