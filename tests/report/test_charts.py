"""Charts: every finite point in its place, within the drawing."""

import math
import re

import pytest

from linseed.trainer.report import charts
from linseed.trainer.report.reliability import Bin


def points(svg, look):
    (written,) = re.findall(rf'<polyline class="{look}" points="([^"]*)"', svg)
    return [tuple(map(float, pair.split(","))) for pair in written.split()]


def chart(*lines, **options):
    return charts.line_chart(lines, alt="<a>", x_name="epoch", write="{:g}".format, **options)


def test_points_are_in_their_places_and_the_best_one_is_marked():
    svg = chart(charts.Line("loss", "val", [1, 2, 4], [0.0, 10.0, 5.0]), mark=(2, 10.0))
    (x1, y1), (x2, y2), (x4, y4) = points(svg, "val")
    assert x4 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2) and y4 == pytest.approx((y1 + y2) / 2, abs=0.1)
    assert f'cx="{x2}" cy="{y2}"' in svg and "&lt;a&gt;" in svg


@pytest.mark.parametrize("ys", [[0.0], [3.5, 3.5], [-1e-9, 1e9], [1e-30, 2e-30], [0.1] * 3000])
def test_any_finite_numbers_are_drawn_within_the_drawing(ys):
    found = points(chart(charts.Line("loss", "train", list(range(len(ys))), ys)), "train")
    assert 1 <= len(found) <= 402
    assert all(0 <= x <= 340 and 0 <= y <= 230 and math.isfinite(x + y) for x, y in found)


def test_no_points_are_no_chart():
    assert chart(charts.Line("loss", "val", [], [])) == ""


def test_a_reliability_diagram_has_both_lines_and_every_interval():
    bins = [Bin(10, 0.25, 0.5, 0.2, 0.8), Bin(10, 1.0, 1.0, 0.7, 1.0)]
    svg = charts.reliability(bins, bins, alt="x")
    assert points(svg, "val") == points(svg, "train") and svg.count("<circle") == 4
    left, right = points(svg, "even")
    assert points(svg, "val")[1] == right and left[0] < points(svg, "val")[0][0] < right[0]
