"""The bar passes its steps on, speaks to terminals only, and only when it takes long."""

import io
import sys

import pytest

from diffusional.data import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "patience", "speaks"), [(Terminal, 0.0, True), (Terminal, 99.0, False), (io.StringIO, 0.0, False)]
)
def test_steps_pass_through(monkeypatch: pytest.MonkeyPatch, stream, patience: float, speaks: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(progress, "_PATIENCE", patience)
    assert list(progress.watched(iter(range(5)), 5, "decoding")) == [0, 1, 2, 3, 4]
    assert ("decoding" in sys.stderr.getvalue()) == speaks
