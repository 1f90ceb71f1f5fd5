"""The README's Python blocks run as they stand (training cut short)."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=["your array", "your network"])
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shorter = block.replace("Config(steps=200)", "Config(steps=2, batch=8)")
    assert shorter != block or "Config" not in block
    shorter = shorter.replace("target_error=0.05", "target_error=2.0")
    exec(compile(shorter, str(README), "exec"), {"__name__": "readme"})


def test_every_public_name_loads() -> None:
    import diffusional as df

    for name in dir(df):
        assert getattr(df, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = df.nothing  # type: ignore[attr-defined]
