"""Line charts: every point where it belongs, on axes with round numbers."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from fastgpt.pages.charts import in_a_row, line_chart, log_ticks, picture, ticks

SVG = "{http://www.w3.org/2000/svg}"


def test_line_chart_draws_every_point_and_level():
    svg = line_chart(
        {"training": [(1, 8.0), (2, 6.0), (3, float("nan")), (4, 5.0)], "a & b": [(1, 7.0)]},
        x_label="step", y_label="loss", levels={"entropy": 6.08},
    )  # fmt: skip
    root = ET.fromstring(svg)
    paths = [p.attrib["d"] for p in root.iter(f"{SVG}path") if p.attrib.get("fill") == "none"]
    points = [tuple(map(float, xy.split())) for xy in paths[0][1:].split("L")]
    assert len(points) == 3
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[0][1] < points[1][1] < points[2][1]  # the loss falls: the line goes down
    assert points[1][0] - points[0][0] == pytest.approx((points[2][0] - points[1][0]) / 2, abs=0.2)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"training", "a & b", "entropy (6.080)", "step", "loss"} <= set(texts)
    with pytest.raises(ValueError, match="no finite point"):
        line_chart({"a": [(1, float("inf"))]}, x_label="", y_label="")
    ET.fromstring(line_chart({"one": [(3, 3.0)]}, x_label="", y_label=""))


def test_logarithmic_axes_have_equal_steps_for_equal_factors():
    points = [(256, 1e9), (1024, 4e9), (4096, 16e9)]
    root = ET.fromstring(
        line_chart({"a": points, "b": points[:2]}, x_label="T", y_label="bytes", log_x=True, log_y=True, bold="a")
    )
    drawn = [p for p in root.iter(f"{SVG}path") if p.attrib.get("fill") == "none"]
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, xy.split())) for xy in drawn[0].attrib["d"][1:].split("L"))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1
    assert float(drawn[0].attrib["stroke-width"]) > float(drawn[1].attrib["stroke-width"])
    assert len(list(root.iter(f"{SVG}circle"))) == 5
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"500", "1000", "2000", "1G", "10G"} <= set(texts)


def test_charts_in_a_row_are_one_svg():
    chart = line_chart({"a": [(1, 2.0), (2, 3.0)]}, x_label="", y_label="", size=(400, 200))
    root = ET.fromstring(in_a_row([chart, picture(b"png", 100, 300)], title="a <b> & c"))
    assert (root.attrib["width"], root.attrib["height"]) == ("500", "330")
    assert [g.attrib["transform"] for g in root.findall(f"{SVG}g")] == ["translate(0 30)", "translate(400 30)"]
    assert "a <b> & c" in [t.text for t in root.iter(f"{SVG}text")]
    assert next(root.iter(f"{SVG}image")).attrib["href"] == "data:image/png;base64,cG5n"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (4.7, 8.4), (1, 1000), (-3, 3), (0.001, 0.0017)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low <= t <= high for t in found)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1
    assert re.match(r"[125]", f"{steps.pop():e}")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e3, 1e7, [1e3, 1e4, 1e5, 1e6, 1e7]),
        (256, 4096, [500, 1000, 2000]),
        (90, 110, [100]),
    ],
)
def test_logarithmic_ticks(low, high, expected):
    assert log_ticks(low, high) == expected
