"""Line charts: every point where it belongs, on axes with round numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fastgpt.pages.charts import Chart, in_a_row, picture

SVG = "{http://www.w3.org/2000/svg}"


def line_chart(series, *, x_label, y_label, size=(720, 320), **options) -> str:
    """For light paper, without a title."""
    return Chart(series, "", x_label, y_label, **options).svg(size, standalone=True)


def lines(root: ET.Element) -> list[ET.Element]:
    """The lines of the series and of the legend, in this order."""
    return [p for p in root.iter(f"{SVG}path") if p.attrib.get("fill") == "none" and "L" in p.attrib["d"]]


def dots(root: ET.Element) -> list[ET.Element]:
    """What stands at a point; those of the legend say nothing."""
    return [mark for mark in root.iter() if mark.attrib.get("class") == "dot" and mark.find(f"{SVG}title") is not None]


def test_line_chart_draws_every_point_and_level():
    svg = line_chart(
        {"training": [(1, 8.0), (2, 6.0), (3, float("nan")), (4, 5.0)], "a & b": [(1, 7.0)]},
        x_label="step", y_label="loss", levels={"entropy": 6.08},
    )  # fmt: skip
    root = ET.fromstring(svg)
    points = [tuple(map(float, xy.split())) for xy in lines(root)[0].attrib["d"][1:].split("L")]
    assert len(points) == 3
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[0][1] < points[1][1] < points[2][1]  # the loss falls: the line goes down
    assert points[1][0] - points[0][0] == pytest.approx((points[2][0] - points[1][0]) / 2, abs=0.2)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"training", "a & b", "entropy (6.08)", "step", "loss"} <= set(texts)
    with pytest.raises(ValueError, match="no finite point"):
        line_chart({"a": [(1, float("inf"))]}, x_label="", y_label="")
    ET.fromstring(line_chart({"one": [(3, 3.0)]}, x_label="", y_label=""))


def test_logarithmic_axes_have_equal_steps_for_equal_factors():
    points = [(256, 1e9), (1024, 4e9), (4096, 16e9)]
    root = ET.fromstring(
        line_chart({"a": points, "b": points[:2]}, x_label="T", y_label="bytes", log_x=True, log_y=True, bold="a")
    )
    drawn = lines(root)
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, xy.split())) for xy in drawn[0].attrib["d"][1:].split("L"))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1
    assert float(drawn[0].attrib["stroke-width"]) > float(drawn[1].attrib["stroke-width"])
    assert len(dots(root)) == 5
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"256", "1024", "4096", "1G", "10G"} <= set(texts)  # few sizes are named themselves


def test_a_chart_draws_what_its_axes_can_show():
    """No number, none above 0 on a logarithmic axis, no level and no bar that is none: left out, the rest stands."""
    infinite = float("inf")
    chart = Chart(
        {"a": [(0, 5.0), (1, 0.0), (2, -3.0), (4, 1.0), (8, 2.0), (infinite, 1.0)], "none": [(1, float("nan"))]},
        "T", "x", "y", {"nothing": infinite}, log_x=True, log_y=True,
        spans={"a": [(4, 0.5, 2.0), (8, 0.0, 3.0)], "unknown": [(1, 1.0, 1e9)]},
    )  # fmt: skip
    root = ET.fromstring(chart.svg())
    assert [dot[0].text for dot in dots(root)] == ["a\nx: 4\ny: 1", "a\nx: 8\ny: 2"]
    assert len([p for p in root.iter(f"{SVG}path") if "V" in p.attrib["d"]]) == 1  # bars
    assert "1G" not in [t.text for t in root.iter(f"{SVG}text")]
    with pytest.raises(ValueError, match="above 0"):
        Chart({"a": [(0, 5.0), (1, 0.0)]}, "", "", "", log_x=True, log_y=True)


@pytest.mark.parametrize(
    ("points", "log"),
    [
        ([(3, 3.0)], False), ([(3, 3.0)], True), ([(1, 5.0), (2, 5.0)], False), ([(1, 5.0), (2, 5.0)], True),
        ([(0, 0.0), (0, 1e-9)], False), ([(7, -1e300), (7, 1e300)], False),
    ],
)  # fmt: skip
def test_points_are_inside_the_axes_where_a_range_is_zero(points, log):
    root = ET.fromstring(Chart({"": points}, "", "", "", log_x=log, log_y=log).svg((720, 320)))
    for dot in dots(root):
        assert 20 < float(dot.attrib["cx"]) < 720
        assert 0 < float(dot.attrib["cy"]) < 320


def test_lines_are_told_apart_without_their_colours():
    """By the shape of their points, or as a broken line without any: a fit was measured nowhere."""
    many = [(x, float(x)) for x in range(1, 500)]
    chart = Chart({"a": many, "b": [(x, 2 * y) for x, y in many], "fit": many[::100]}, "", "", "", dashed=("fit",))
    root = ET.fromstring(chart.svg())
    by_name = {}
    for dot in dots(root):
        shape = (dot.tag, dot.attrib.get("d", "").partition("m")[2])
        by_name.setdefault(dot[0].text.partition("\n")[0], []).append(shape)
    assert by_name.keys() == {"a", "b"}
    assert len(set(by_name["a"])) == len(set(by_name["b"])) == 1
    assert by_name["a"][0] != by_name["b"][0]
    assert len(by_name["a"]) < 10
    dashes = [line.attrib.get("stroke-dasharray") for line in lines(root)]
    assert dashes[:2] == [None, None]
    assert dashes[2]


def test_a_picture_for_elsewhere_has_colours_of_its_own():
    chart = Chart({"a": [(1, 2.0)]}, "Loss", "step", "loss")
    assert "var(" not in chart.svg(standalone=True)
    assert "var(--s0)" in chart.svg()
    assert 'fill="#fff"' in chart.svg(standalone=True)


LONG = "a name that is rather long, of run number"


@pytest.mark.parametrize("width", [720, 360])
@pytest.mark.parametrize("log", [False, True])
def test_no_text_lies_on_another_or_outside(opened, tmp_path, width, log):
    """With long names, titles and labels, many lines, large and small numbers: measured in a browser."""
    charts = [
        Chart(
            {f"{LONG} {n}": [(1, 3e-9 + n), (k, 123456.789)] for n in range(9)},
            f"{LONG} " * 3, f"steps, {LONG} " * 2, f"loss, {LONG} " * 2, {"level": 3.0}, log_x=log, log_y=log,
        )
        for k in (7, 43_210, 1_234_567_890_123)
    ]  # fmt: skip
    charts += [Chart({"x": [(1, 2.0)], "W" * 200: [(1e9, 1e9 + 1), (1e9 + 1, 1e9 + 2)]}, "W" * 100, "x", "y")]
    page = tmp_path / "charts.html"
    page.write_text("<style>svg{display:block}</style>" + "".join(c.svg((width, 300)) for c in charts))
    found = opened(page).evaluate("""[...document.querySelectorAll('svg')].map(svg => {
        const [frame, ...boxes] = [svg, ...svg.querySelectorAll('text')].map(one => one.getBoundingClientRect());
        const cuts = boxes.filter(b => b.left < frame.left || b.right > frame.right || b.top < frame.top
            || b.bottom > frame.bottom).length;
        let meet = 0;
        boxes.forEach((a, n) => boxes.slice(n + 1).forEach(b => {
            meet += a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
        }));
        const small = [...svg.querySelectorAll('text')].filter(t => parseFloat(getComputedStyle(t).fontSize) < 11);
        return [boxes.length > 15, cuts, meet, small.length];
    })""")
    assert found == [[True, 0, 0, 0]] * len(charts)


def test_charts_in_a_row_are_one_svg():
    chart = line_chart({"a": [(1, 2.0), (2, 3.0)]}, x_label="", y_label="", size=(400, 200))
    root = ET.fromstring(in_a_row([chart, picture(b"png", 100, 300)], title="a <b> & c"))
    assert (root.attrib["width"], root.attrib["height"]) == ("500", "330")
    assert [g.attrib["transform"] for g in root.findall(f"{SVG}g")] == ["translate(0 30)", "translate(400 30)"]
    assert "a <b> & c" in [t.text for t in root.iter(f"{SVG}text")]
    assert next(root.iter(f"{SVG}image")).attrib["href"] == "data:image/png;base64,cG5n"


def test_a_fit_has_the_colour_of_its_points():
    points = [(1, 2.0), (2, 4.0)]
    chart = Chart({"a": points, "b": points, "fit": points}, "", "x", "y", dashed=["fit"], like={"fit": "b"})
    a, b, fit = lines(ET.fromstring(chart.svg(standalone=True)))[:3]
    assert fit.attrib["stroke"] == b.attrib["stroke"] != a.attrib["stroke"]
    assert "stroke-dasharray" in fit.attrib
