"""docs/families.md: its family is trained and evaluated as written, and does what the page says."""

import re
from pathlib import Path

import pytest
import torch

import diffusional as df

PAGE = Path(__file__).parents[1] / "docs" / "families.md"


@pytest.fixture(scope="module")
def page() -> dict[str, object]:
    """The names that the page's code defines."""
    names: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_family_of_the_page_learns(page: dict[str, object]) -> None:
    """Its bound lies above the data's entropy under the best Gaussian, and well below an untrained model's."""
    model, x = page["model"], page["x"]
    assert isinstance(model, df.Chain)
    assert isinstance(x, torch.Tensor)
    swept = df.evaluate(model, x, draws=4).nelbo
    covariance = torch.cov(x.double().T)
    best = 0.5 * float(torch.logdet(2 * torch.pi * torch.e * covariance))
    torch.manual_seed(0)
    untrained = df.evaluate(page["LinearChain"](), x, draws=4).nelbo  # type: ignore[operator]
    assert best < swept.value < best + 0.6 < untrained.value
    visited = df.evaluate(model, x, target_error=0.05, unit="nats").nelbo
    assert abs(visited.value - swept.value) < 4 * (visited.error**2 + swept.error**2) ** 0.5


def test_the_process_of_the_page_is_one_joint_distribution(page: dict[str, object]) -> None:
    """q(z_t|x) q(z_{t+1}|z_t) = q(z_{t+1}|x) q(z_t|z_{t+1}, x), with a noise level for each position."""
    process = page["Anisotropic"](torch.tensor([0.5, 2.0]), torch.tensor([0.9, 0.7, 0.4]))  # type: ignore[operator]
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = process.sample_path(x, torch.Generator().manual_seed(1))
    for t in (1, 2):
        z, after, each = path[t - 1], path[t], torch.full((8,), t)
        forth = process.marginal(x, each).log_prob(z) + process.transition(z, t + 1).log_prob(after)
        back = process.marginal(x, t + 1).log_prob(after) + process.posterior(after, x, each).log_prob(z)
        torch.testing.assert_close(forth, back, rtol=1e-9, atol=1e-9)
    deviation = process.marginal(x, torch.full((8,), 3)).std
    torch.testing.assert_close(deviation[:, 1], 4 * deviation[:, 0])


def test_the_forms_that_the_page_compares_agree(page: dict[str, object]) -> None:
    draws = [page["ledger"].nelbo, page["path"].nelbo, -page["weights"], page["losses"]]  # type: ignore[attr-defined, operator]
    means = [(float(d.detach().mean()), float(d.detach().std()) / len(d) ** 0.5) for d in draws]
    for value, error in means[1:]:
        assert abs(value - means[0][0]) < 4.5 * (error**2 + means[0][1] ** 2) ** 0.5


def test_the_identity_of_the_page(page: dict[str, object]) -> None:
    one, other = (page[name]().identity() for name in ("LinearChain", "Tempered"))  # type: ignore[operator]
    assert other[-1] == "exponential"
    assert "exponential" not in one
