"""The style of figures: colours that differ for colour-blind readers, reproducible files, labels that do not overlap."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from diffusional.errors import DiffusionalError
from diffusional.report import style

# Machado, Oliveira and Fernandes (2009), severity 1: what readers without one of the three kinds of cones see, in linear RGB.
_KINDS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _lab(colour: str, kind: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(_KINDS[kind]) @ linear, 0, 1)
    f = np.cbrt(_TO_XYZ @ seen / (_TO_XYZ @ np.ones(3)))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", _KINDS)
def test_colours_differ_for_every_reader(kind: str) -> None:
    """Any two colours of series are at least 10 apart in CIELAB, where 2 is just noticeable; red and green, which fail, are not."""
    seen = {colour: _lab(colour, kind) for colour in style.COLOURS}
    apart = {(one, two): float(np.linalg.norm(seen[one] - seen[two])) for one, two in combinations(seen, 2)}
    assert min(apart.values()) > 10, min(apart, key=lambda pair: apart[pair])
    assert np.linalg.norm(_lab("#3f8f00", "deuteranopia") - _lab("#b06000", "deuteranopia")) < 20


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_figure_has_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    for n in range(2):
        with style.styled():
            figure = style.figure(3.0, 2.0)
            axes = figure.subplots()
            axes.fill_between([0, 1], [0, 1], [1, 2], hatch="/")
            axes.set_title("$a")
        style.save(figure, tmp_path / f"{n}.{suffix}", "title", "text", "identifier")
    first, second = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in range(2))
    assert first == second
    assert b"matplotlib.org" not in first.lower()
    assert not re.search(rb"20\d\d-\d\d-\d\d", first)


def test_metadata_of_an_svg(tmp_path: Path) -> None:
    style.save(style.figure(1.0, 1.0), tmp_path / "a.svg", "a <title>", "what it shows", "sha256:1")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for part in ("a &lt;title&gt;", "what it shows", "<dc:identifier>sha256:1</dc:identifier>"):
        assert part in text


@pytest.mark.parametrize("name", ["a.jpg", "a", "png"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"\.png, \.svg or \.pdf"):
        style.save(style.figure(1.0, 1.0), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_labels_at_the_ends_of_curves_do_not_overlap() -> None:
    axes = style.figure(4.0, 3.0).subplots()
    axes.set_ylim(0, 10)
    ends = [9.0, 1.0, 1.1, 1.2, 5.0, 5.9]
    style.end_labels(axes, [(end, str(end), style.BLUE) for end in ends], gap=0.1)
    places = {float(text.get_text()): text.get_position()[1] for text in axes.texts}
    assert [end for end, _ in sorted(places.items(), key=lambda pair: pair[1])] == sorted(ends)
    heights = sorted(places.values())
    assert min(np.diff(heights)) == pytest.approx(0.1)
    assert places[9.0] == pytest.approx(0.9)
    # A group is centred on its curves.
    assert np.mean([places[1.0], places[1.1], places[1.2]]) == pytest.approx(0.11)
    assert np.mean([places[5.0], places[5.9]]) == pytest.approx(0.545)
