"""docs/audit: every fault has a page, a size that is derived twice, and a test that exists; and the reimplemented faults themselves."""

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusional as df

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "audit"
MODULES = ("chain", "densities", "essay", "flow", "latents", "masked", "record", "trained")
RECORD = json.loads((ROOT / "benchmarks" / "results" / "audit.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def audit() -> Iterator[ModuleType]:
    """Return a function that imports a module of benchmarks/audit."""
    sys.path.insert(0, str(FOLDER))
    yield lambda name: __import__(name)  # type: ignore[misc]
    sys.path.remove(str(FOLDER))
    for name in MODULES:  # so that they do not hide modules of other folders
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def faults() -> Iterator[dict[str, Any]]:
    """Return the faults of the tables."""
    sys.path.insert(0, str(ROOT / "tools"))
    from result_tables.audit import FAULTS

    yield FAULTS
    sys.path.remove(str(ROOT / "tools"))


def test_every_fault_has_a_page_with_its_tables(faults: dict[str, Any]) -> None:
    pages = {page.stem for page in (ROOT / "docs" / "audit").glob("*.md")} - {"index"}
    assert pages == set(faults)
    for name, fault in faults.items():
        text = (ROOT / "docs" / "audit" / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {fault.name}\n")
        assert "**Right.**" in text, f"{name}: expected a paragraph that states what is right"
        tables = set(re.findall(r"<!-- table: (\w+) -->", text))
        kinds = ("sources", "tests") if fault.case is None else ("sizes", "sources", "tests")
        assert tables == {f"{kind}_{name.replace('-', '_')}" for kind in kinds}


def test_named_tests_exist(faults: dict[str, Any]) -> None:
    for fault in faults.values():
        assert fault.tests
        for test in fault.tests:
            path, _, function = test.partition("::")
            assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_sources_name_a_commit_or_an_issue(faults: dict[str, Any]) -> None:
    links = [source.link() for fault in faults.values() for source in fault.sources]
    shape = r"\[[^]]+\]\(https://github\.com/[\w-]+/[\w.-]+/(blob/[0-9a-f]{40}/\S+|issues/\d+)\)"
    assert len(links) > 25
    assert [link for link in links if not re.fullmatch(shape, link)] == []


def test_the_index_names_no_repository_that_does_not_have_the_fault(faults: dict[str, Any]) -> None:
    index = (ROOT / "docs" / "audit" / "index.md").read_text(encoding="utf-8")
    named = {
        row.split("](")[1].split(".md")[0]: row.rsplit("|", 2)[1] for row in index.splitlines() if row.startswith("| [")
    }
    for name, fault in faults.items():
        faulty = {source.repository for source in fault.sources if source.faulty}
        assert faulty == set(named[name].strip().split(", ")), name
        right = [source for source in fault.sources if re.search("(^|: )right", source.what)]
        assert [source for source in right if source.faulty] == [], name
    assert "google-research/vdm" not in named["bin-widths"]


def test_every_size_is_derived_twice_and_agrees(faults: dict[str, Any]) -> None:
    cases = RECORD["cases"]
    assert [(one["fault"], one["data"], one["case"]) for one in cases if not one["agree"]] == []
    measured = {name for name, fault in faults.items() if fault.case is not None}
    for data in ("digits", "MNIST"):
        assert {one["fault"] for one in cases if one["data"] == data} == measured | {"truth"}


def test_two_sizes_that_differ_do_not_agree(audit: Any) -> None:
    record = audit("record")
    value = record.Value
    assert record.case("f", "digits", "", value(1.0, 0.1), value(1.2, 0.1), "")["agree"]
    assert not record.case("f", "digits", "", value(1.0, 0.1), value(1.5, 0.1), "")["agree"]
    assert not record.case("f", "digits", "", value(1.0), value(1.01), "")["agree"]
    assert record.case("f", "digits", "", value(1.0), value(1.01), "", relative=0.02)["agree"]


@pytest.fixture
def masses(audit: Any) -> Any:
    """Return the sum over 17 levels of the masses of a decoder at many x̂, as a function of its options."""
    chain = audit("chain")
    made = chain.Chain(nn.Identity(), 17, torch.full((1000,), 0.02, dtype=torch.float64))
    levels, data = torch.linspace(-1, 1, 17), torch.linspace(-1.3, 1.3, 27, dtype=torch.float64)
    x, mean = levels.repeat(27, 1), data[:, None].expand(27, 17)
    return lambda **options: torch.exp(-made.decoder(x, mean, **options)).sum(1)


def test_bins_of_another_width_lose_mass(masses: Any) -> None:
    torch.testing.assert_close(masses(), torch.ones(27, dtype=torch.float64))
    assert float(masses(width=2 / 17)[13]) == pytest.approx(16 / 17, abs=1e-4)
    assert float(masses(width=2 / 15)[13]) == pytest.approx(16 / 15, abs=1e-4)


def test_a_closed_edge_loses_mass(masses: Any) -> None:
    assert masses(low_open=False)[0] < 0.1  # x̂ = −1.3
    torch.testing.assert_close(masses(low_open=False)[-1], torch.tensor(1.0, dtype=torch.float64))


def test_open_bins_for_latents_are_no_distribution(audit: Any) -> None:
    """Bins 2/255 wide that cover −2 … 2 have masses that add up to 1 for any ẑ, and to more if all beyond ±0.999 are open."""
    latents = audit("latents")
    z = (torch.arange(-255, 256, dtype=torch.float64) * 2 / 255)[:, None]
    guess = torch.tensor([[-1.5, 0.0, 0.7, 1.5]], dtype=torch.float64)
    closed = torch.exp(-latents.in_bins(z, guess.expand(len(z), 4), ends=False)).sum(0)
    torch.testing.assert_close(closed, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)
    opened = torch.exp(-latents.in_bins(z, guess.expand(len(z), 4))).sum(0)
    torch.testing.assert_close(opened[1:3], torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (opened[[0, 3]] > 50).all()


def test_the_decoder_is_the_library_s(audit: Any) -> None:
    chain, trained = audit("chain"), audit("trained")
    space = df.Discrete((1, 4, 4), 256)
    model = trained.build("digits", space, nn.Identity())
    made = chain.Chain(nn.Identity(), 256, chain.betas())
    x = space.encode(torch.randint(0, 256, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0)))
    data = x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    gamma = model.end_gammas()[0].expand(3)
    from diffusional.models.parameterization import Prediction

    library = -model.likelihood.log_prob(x, Prediction(0 * x, gamma, data, "data"))
    torch.testing.assert_close(made.decoder(x, data.double()).flatten(1).sum(1), library, rtol=1e-5, atol=1e-5)


def test_noise_in_half_of_a_bin_beats_the_entropy(audit: Any) -> None:
    densities = audit("densities")
    apart = {width: float(np.subtract(*densities.dequantised("digits", "", width)).mean()) for width in (0.5, 1.0)}
    assert apart[0.5] == pytest.approx(-1.0, abs=1e-3)  # one bit below the exact cost of the same distribution
    assert apart[1.0] == pytest.approx(0.0, abs=2e-3)


def test_the_integral_over_all_t_is_the_likelihood(audit: Any) -> None:
    masked, rng = audit("masked"), np.random.default_rng(0)
    chain = masked.Markov(rng.integers(0, 3, (50, 5)), 3)
    x = rng.integers(0, 3, 5)
    node, weight = np.polynomial.legendre.leggauss(8)
    exact = chain.nats(x[None])[0]
    assert masked.integrand(chain, x, (node + 1) / 2) @ weight / 2 == pytest.approx(exact, abs=1e-12)
    part = masked.integrand(chain, x, 0.4 + 0.3 * (node + 1)) @ weight / 2
    assert abs(part - exact) > 1e-3
    assert masked.sampled(chain, x, 40_000, 0.4, rng) == pytest.approx(part, abs=0.02)


class _Linear(nn.Module):
    """ε̂ of x ~ N(0, S): σ (α² S + σ²)⁻¹ z."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        self.covariance = covariance

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        a2, s2 = torch.sigmoid(log_snr.double()[0]), torch.sigmoid(-log_snr.double()[0])
        inverse = torch.linalg.inv(a2 * self.covariance + s2 * torch.eye(len(self.covariance), dtype=torch.float64))
        return (s2.sqrt() * z.double().flatten(1) @ inverse).reshape(z.shape)


@pytest.fixture
def gaussian(audit: Any) -> tuple[Any, Tensor]:
    """Return the flow of a Gaussian world of three dimensions and its covariance."""
    covariance = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.8, 0.3], [0.2, 0.3, 0.5]], dtype=torch.float64)
    model = audit("trained").build("digits", df.Discrete((1, 1, 3), 17), _Linear(covariance))
    return audit("flow").Flow(model), covariance


def test_the_flow_of_a_gaussian_world_gives_its_density(audit: Any, gaussian: tuple[Any, Tensor]) -> None:
    flow, covariance = gaussian
    z = 0.5 * torch.randn(2, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    # Over all eight probes of ±1 the estimate of the trace is exact.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).reshape(8, 1, 1, 1, 3)
    found = torch.stack([flow.solved(z, probe.expand_as(z), 1e-7)[0] for probe in signs]).mean(0)
    a2, s2 = (torch.sigmoid(sign * flow.ends[0]) for sign in (-1, 1))
    marginal = a2 * covariance + s2 * torch.eye(3, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), marginal)
    torch.testing.assert_close(found, -exact.log_prob(z.double().flatten(1)), atol=1e-3, rtol=0)


def test_the_variance_of_one_probe(audit: Any, gaussian: tuple[Any, Tensor]) -> None:
    flow, _ = gaussian
    x = torch.zeros(1, 1, 1, 3)
    found = audit("flow").one_probe("digits", flow, x, 64, 1)
    assert found["agree"]
    assert found["second"]["value"] > 0.05
    # From the closed form of the Jacobian: its integral is ½ ln of the ratio of both marginals, S at γ_1 and I at γ_T.
    values, vectors = torch.linalg.eigh(gaussian[1])
    a2, s2 = (torch.sigmoid(sign * flow.ends) for sign in (-1, 1))
    integral = -0.5 * ((a2[0] * values + s2[0]) / (a2[1] * values + s2[1])).log()
    jacobian = vectors @ torch.diag(integral) @ vectors.T
    exact = (2 * (jacobian - torch.diag(jacobian.diag())).square().sum()).sqrt() / (3 * math.log(2))
    assert found["second"]["value"] == pytest.approx(float(exact), rel=1e-3)


def test_the_chain_of_the_essay_is_the_library_s(audit: Any) -> None:
    essay = audit("essay")
    torch.manual_seed(0)
    model = essay.Chain(4)
    x = torch.randn(64, 4)
    with torch.no_grad():
        ours = torch.stack([model.cost(model.path(x)) for _ in range(20)]).mean()
        library = torch.stack([model.elbo(x).nelbo for _ in range(20)]).mean()
        own = torch.stack([model.cost(model.path(x), own_level=True) for _ in range(20)]).mean()
    assert float(ours) == pytest.approx(float(library), abs=0.15)
    assert float(own - ours) > 1.0
