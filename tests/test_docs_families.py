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
