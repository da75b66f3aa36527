"""The palette: equal steps, rising lightness; scales from 0 to 1."""

from __future__ import annotations

import numpy as np
import pytest

from fastgpt.study.palette import LOG_FLOOR, PALETTE, SCALES, TICKS, shade


def lab(colours: list[str]) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB colours, (n, 3)."""
    rgb = np.array([[int(c[n : n + 2], 16) / 255 for n in (1, 3, 5)] for c in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def test_equal_steps_of_rising_lightness():
    assert len(PALETTE) == 256
    lightness = lab(PALETTE[::15])[:, 0]
    steps = np.diff(lightness)
    assert steps.min() > 0.7 * steps.mean()
    assert steps.max() < 1.3 * steps.mean()
    assert lightness[0] > 10  # neither of the papers, of which one is nearly black
    assert lightness[-1] < 95


def test_it_is_matplotlibs_viridis():
    colormaps = pytest.importorskip("matplotlib").colormaps
    theirs = (np.array(colormaps["viridis"].colors) * 255).round().astype(int)
    assert ["#{:02x}{:02x}{:02x}".format(*colour) for colour in theirs] == PALETTE


@pytest.mark.parametrize("scale", SCALES)
def test_scales_rise_from_0_to_1(scale):
    weights = np.linspace(0, 1, 101)
    shades = shade(weights, scale)
    assert (shades[0], shades[-1]) == (0, 1)
    assert (np.diff(shades[2:]) > 0).all()
    assert list(TICKS[scale]) == sorted(TICKS[scale])
    assert shade(TICKS[scale][0], scale) == 0


def test_scales_are_what_they_are_called():
    assert shade(0.25, "linear") == 0.25
    assert shade(0.25, "sqrt") == 0.5
    assert shade([LOG_FLOOR / 2, LOG_FLOOR, 1e-2, 1.0], "log") == pytest.approx([0, 0, 0.5, 1], abs=1e-12)
