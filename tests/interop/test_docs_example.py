"""The example of docs/checkpoints.md runs, with fewer steps of training."""

import math
import re
from pathlib import Path

import pytest


def test_the_flow_from_its_training_to_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- example: flow -->\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert code.count("range(3000)") == 1
    names: dict[str, object] = {}
    exec(code.replace("range(3000)", "range(60)").replace("target_error=0.05", "visits=2"), names)
    out = capsys.readouterr().out
    assert "network evaluations" in out
    start = names["start"]
    assert isinstance(start, float)
    assert -20 <= start < 0
    assert re.search(rf"γ_1 = {start:g} ", out)
    assert math.isfinite(names["model"].elbo(names["test"][:2]).nelbo.sum().item())  # type: ignore[attr-defined, index]
