"""Charts as SVG: their coordinates are those of the numbers."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from diffusional.report.charts import (
    WIDTH,
    Axes,
    Bar,
    Chart,
    Dot,
    Series,
    curves,
    dots,
    histogram,
    shortened,
    ticks,
    waterfall,
)
from diffusional.report.pictures import MOST, heat, pixels_of, sheet
from diffusional.report.tabular import pit, pit_shares


def marks(chart: Chart, style: str) -> list[ET.Element]:
    root = ET.fromstring(f"<svg>{chart.body}</svg>")
    return [one for one in root.iter() if style in one.get("class", "").split()]


def test_bars_of_a_waterfall_follow_each_other() -> None:
    chart = waterfall("w", [Bar("a", 1.0, 0.0), Bar("b", 3.0, 0.1), Bar("c", -1.0, 0.0)], Bar("sum", 3.0, 0.1), "nats")
    spans = [
        (float(one.get("x", "")), float(one.get("x", "")) + float(one.get("width", ""))) for one in marks(chart, "bar")
    ]
    assert spans[0][1] == pytest.approx(spans[1][0], abs=0.2)
    assert spans[1][1] == pytest.approx(spans[2][1], abs=0.2)  # a negative cost goes back
    assert spans[2][0] == pytest.approx(spans[3][1], abs=0.2)
    assert spans[1][1] - spans[1][0] == pytest.approx(3 * (spans[0][1] - spans[0][0]), abs=0.3)


def test_the_gap_is_the_end_of_its_bar() -> None:
    chart = waterfall("w", [Bar("a", 4.0, 0.0, information=3.0)], Bar("sum", 4.0, 0.0), "nats")
    (gap,), bar = marks(chart, "gap"), marks(chart, "bar")[0]
    width = float(bar.get("width", ""))
    assert float(gap.get("width", "")) == pytest.approx(width / 4, abs=0.2)
    assert float(gap.get("x", "")) == pytest.approx(float(bar.get("x", "")) + 0.75 * width, abs=0.2)


def test_curves_pass_through_their_points_and_stay_within_the_limits() -> None:
    one = Series("a", np.array([0.0, 1.0, 2.0]), np.array([0.0, 50.0, 1.0]), np.array([0.0, 1.0, 0.1]))
    chart = curves("c", [one], Axes("x", "y", low=0.0, high=2.0), "", height=200)
    (line,) = marks(chart, "line")
    points = [tuple(map(float, point.split())) for point in line.get("d", "")[1:].split("L")]
    assert points[0][0] < points[1][0] < points[2][0]
    assert all(20 <= y <= 160.1 for _, y in points)
    marked = curves("c", [one], Axes("x", "y", low=0.0, high=2.0, marks=[(1.0, "in"), (-1.0, "out")]), "", height=200)
    assert len(marks(marked, "zero")) == 1
    reverse = curves("c", [one], Axes("x", "y", reverse=True), "")
    xs = [float(point.split()[0]) for point in marks(reverse, "line")[0].get("d", "")[1:].split("L")]
    assert xs == sorted(xs, reverse=True)


def test_whiskers_are_two_errors_and_cut_at_the_edge() -> None:
    chart = dots("d", [Dot("a", 0.0, 1.0), Dot("b", 10.0, 0.5, 2.0)], "nats")
    spans = [re.match(r"M([\d.]+) [\d.]+H([\d.]+)", one.get("d", "")) for one in marks(chart, "whisker")]
    widths = [float(span[2]) - float(span[1]) for span in spans if span]
    assert widths[0] == pytest.approx(2 * widths[2], abs=0.3)  # errors 1.0 and 0.5
    assert widths[1] == pytest.approx(4 * widths[2], abs=0.6)  # error over items 2.0


def test_lines_of_dots_leave_out_the_labels() -> None:
    chart = dots("d", [Dot("a", -1.0, 0.1), Dot("b", 1.0, 0.1)], "nats", "0: equal")
    (zero,) = marks(chart, "zero")
    spans = [(float(low), float(high)) for low, high in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", zero.get("d", ""))]
    # The baselines of labels are at 13 and 47; letters reach from 11 above to 3 below.
    assert spans == [(18.0, 34.0), (52.0, 68.0)]


def test_histograms_are_shares() -> None:
    chart = histogram(
        "h", [("a", np.array([0.5, 0.6, 1.5])), ("b", np.array([1.5]))], np.array([0.0, 1.0, 2.0]), "x", ""
    )
    assert [float(row[2]) for row in chart.rows] == pytest.approx([2 / 3, 1 / 3, 0, 1], abs=1e-4)
    assert list(chart.legend) == ["a", "b"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-9.21, 10.12), (1e-9, 3e-9), (0.0, 12345.0), (5.0, 5.0)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 1 <= len(found) <= 5
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


def test_names_keep_both_ends() -> None:
    assert len(shortened("x" * 200, 20)) == 20
    assert shortened("runs/first/model", 9)[:4] == "runs"


def test_pictures() -> None:
    grey, colour = np.zeros((2, 1, 4, 4)), np.ones((2, 3, 4, 4))
    assert sheet(grey, 2).shape == (6, 11)
    assert sheet(colour, 1).shape == (11, 6, 3)
    assert pixels_of(colour[0]).min() == 255
    assert max(pixels_of(np.zeros((1, 5 * MOST, 300))).shape) <= MOST
    assert (heat(np.array([[0.0, 1.0]]), 0.0, 1.0)[0, 0] != heat(np.array([[0.0, 1.0]]), 0.0, 1.0)[0, 1]).any()


def test_labels_of_ticks_stay_within_the_drawing() -> None:
    """Those at the ends of an axis of a difference of 0: −0.04 and 0.04."""
    body = dots("Differences", [Dot("a − b", 0.0, 0.0)], "bits/dim", "0: equal").body
    found = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([^<]*)<', body)
    assert (found[0][1], found[-1][1]) == ("−0.04", "0.04")
    for x, text in found:
        assert 3 * len(text) <= float(x) <= WIDTH - 3 * len(text)


def test_pit_values_of_the_right_distribution_are_uniform() -> None:
    rng = np.random.default_rng(0)
    right = pit(rng.normal(size=4000), rng.normal(size=4000))
    shares, error = pit_shares(right, 4000)
    assert np.abs(shares - 0.1).max() < 4 * error
    wide, _ = pit_shares(pit(rng.normal(size=4000), 2 * rng.normal(size=4000)), 4000)
    assert wide[4:6].min() > 0.1 + 8 * error  # a hill: samples are spread too widely
    assert wide[0] < 0.1 - 8 * error


def test_pit_values_of_integers_are_uniform_too() -> None:
    rng = np.random.default_rng(0)
    data, drawn = rng.integers(0, 3, 6000), rng.integers(0, 3, 6000)
    assert pit(data.astype(float), drawn.astype(float)).mean() == pytest.approx(0.5, abs=0.01)
    edges, _ = pit_shares(np.full(10, 0.5), 1000, 2)
    assert edges.tolist() == [0.5, 0.5]
