"""Made-up pictures that look like breast ultrasound, with the masks of their lesions.

A picture starts as a map of echo levels in decibels: layers of tissue, fibres, lobules, lesions and
what they do to the beam below them. Speckle, the scanner's gain and log compression make it grey.
Lengths are shares of the depth (the image's height), so that shapes do not depend on its size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Bytes = NDArray[np.uint8]

GREY_PER_DECIBEL = 255 / 62
"""A dynamic range of 62 dB is shown as 0 to 255."""


class Grid(NamedTuple):
    """Where each pixel is: `x` and `y` (H, W), in shares of the depth; `y` grows downwards."""

    x: Floats
    y: Floats

    @property
    def aspect(self) -> float:
        """Width over height."""
        return float(self.x.shape[1] / self.x.shape[0])


def draw(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> tuple[Bytes, Bytes]:
    """An image and its mask, both (H, W), of a kind: benign, malignant or normal."""
    height = int(rng.integers(size[0], max(size[0], round(0.85 * size[1])) + 1))
    width = int(np.clip(height * rng.uniform(0.95, 1.5), *size))
    rows, columns = np.mgrid[0:height, 0:width]
    grid = Grid((columns + 0.5) / height, (rows + 0.5) / height)
    echo = _tissue(rng, grid)
    for _ in range(rng.integers(1, 5)):
        echo += _lobule(rng, grid)
    for _ in range(rng.integers(0, 3)):
        echo += _shadow_streak(rng, grid)
    mask = np.zeros((height, width), bool)
    two = kind == "benign" and rng.random() < 0.2
    for _ in range(0 if kind == "normal" else 1 + two):
        echo, inside = _lesion(rng, grid, echo, kind, mask)
        mask |= inside
    return _scanned(rng, grid, echo), np.where(mask, np.uint8(255), np.uint8(0))


# ------------------------------------------------------------------------------- random shapes


def _noise(rng: np.random.Generator, grid: Grid, wide: float, high: float) -> Complexes:
    """Smooth complex noise (H, W); its grain is `wide` by `high`. Both its parts are independent.

    It is drawn as a spectrum, which saves one of two Fourier transforms.
    """
    height, width = grid.x.shape
    fy, fx = np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width)[None] * height
    spectrum = rng.standard_normal((height, width)) + 1j * rng.standard_normal((height, width))
    spectrum *= np.exp(-2 * np.pi**2 * (fx * wide) ** 2) * np.exp(-2 * np.pi**2 * (fy * high) ** 2)
    spectrum[0, 0] = 0
    noise = np.fft.ifft2(spectrum)
    return np.asarray(noise * (np.sqrt(2 / np.mean(np.abs(noise) ** 2))))


def _field(rng: np.random.Generator, grid: Grid, wide: float, high: float) -> Floats:
    """Smooth noise (H, W) of mean 0 and variance about 1; its grain is `wide` by `high`."""
    return np.asarray(_noise(rng, grid, wide, high).real)


def _curve(rng: np.random.Generator, grid: Grid, depth: float, sway: float) -> Floats:
    """The depth (1, W) of a border between layers: a tilted, gently waving line."""
    x = grid.x[:1] / grid.aspect - 0.5
    curve = depth + rng.normal(0, sway) * x
    for waves in (0.5, 1.0, 2.0, 4.0):
        curve = curve + rng.normal(0, 0.35 * sway / waves) * np.sin(
            2 * np.pi * waves * x + rng.uniform(0, 2 * np.pi)
        )
    return np.asarray(curve)


def _step(distance: Floats, softness: float) -> Floats:
    """0 far below distance 0, 1 far above it, over about `softness`."""
    return np.asarray(0.5 * (1 + np.tanh(distance / softness)))


def _blob(
    rng: np.random.Generator,
    grid: Grid,
    centre: tuple[float, float],
    radii: tuple[float, float],
    rough: float,
    spikes: float = 0.0,
) -> Floats:
    """Distance (H, W) to an irregular star-shaped contour: above 0 inside, below 0 outside.

    `radii` are half of its width and height, `rough` is the relative size of its bumps, `spikes`
    that of its spicules.
    """
    angle = rng.normal(0, 0.2)
    dx, dy = grid.x - centre[0], grid.y - centre[1]
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radii[0]
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / radii[1]
    turn = np.arctan2(v, u)
    radius = np.ones_like(turn)
    for k in range(2, 9):
        wave = np.cos(k * turn + rng.uniform(0, 2 * np.pi))
        radius += rough * rng.normal(0, 1) / k**0.8 * wave
    if spikes:
        wave = np.cos(rng.integers(5, 9) * turn + 2.5 * np.cos(turn + rng.uniform(0, 6)))
        where = np.maximum(np.cos(turn + rng.uniform(0, 6)) + 0.4, 0)
        radius += spikes * where * np.maximum(wave, 0) ** 2
    return np.asarray((np.maximum(radius, 0.35) - np.hypot(u, v)) * min(radii))


# -------------------------------------------------------------------------------------- tissue


def _tissue(rng: np.random.Generator, grid: Grid) -> Floats:
    """Echo levels (H, W) in dB of a breast without lesion: skin, fat, gland, muscle, chest wall."""
    skin = _curve(rng, grid, rng.uniform(0.03, 0.06), 0.005)
    fat = _curve(rng, grid, rng.uniform(0.1, 0.3), 0.07)
    gland = _curve(rng, grid, rng.uniform(0.5, 0.72), 0.07)
    muscle = gland + _curve(rng, grid, rng.uniform(0.12, 0.22), 0.05)
    bend = 0.05 * _field(rng, grid, 0.3, 0.25)
    ragged = 0.02 * _field(rng, grid, 0.06, 0.03)
    softness = (0.008, 0.015, 0.04, 0.03)
    borders = (skin, fat + ragged, gland + 2 * ragged, muscle + ragged)
    below = [_step(grid.y - b, soft) for b, soft in zip(borders, softness, strict=True)]
    levels = (5.0, rng.normal(-6, 2.5), rng.normal(2, 2), rng.normal(-4, 3), rng.normal(-12, 5))
    echo = np.full_like(grid.y, levels[0])
    for share, before, after in zip(below, levels[:-1], levels[1:], strict=True):
        echo += (after - before) * share
    in_fat, in_gland = below[0] * (1 - below[1]), below[1] * (1 - below[2])
    in_muscle = below[2] * (1 - below[3])
    echo += _fibres(rng, grid, bend, 0.14, 0.014) * (10 * in_gland + 11 * in_muscle + 3)
    echo += _fibres(rng, grid, bend, 0.2, 0.03) * (13 * in_fat + 9 * in_gland + 6 * in_muscle)
    patches = _bent(_field(rng, grid, *rng.uniform((0.03, 0.01), (0.09, 0.022))), bend)
    echo += in_gland * rng.uniform(2, 6) * np.minimum(patches, 0.5)
    echo += 3 * _field(rng, grid, 0.14, 0.07) + 1.8 * _bent(_field(rng, grid, 0.03, 0.007), bend)
    for border, height in ((skin * 0.35, -9), (skin, 8), (muscle, rng.uniform(0, 14))):
        echo += height * np.exp(-(((grid.y - border) / 0.009) ** 2))
    return np.asarray(echo)


def _bent(field: Floats, bend: Floats) -> Floats:
    """`field` (H, W) moved up or down by `bend` (shares of the depth), so that fibres wave."""
    height, width = field.shape
    row = np.clip(np.arange(height)[:, None] + bend * height, 0, height - 1.001)
    low, columns = row.astype(int), np.arange(width)
    share = row - low
    return np.asarray(field[low, columns] * (1 - share) + field[low + 1, columns] * share)


def _fibres(rng: np.random.Generator, grid: Grid, bend: Floats, wide: float, high: float) -> Floats:
    """Bright thin wavy lines (H, W), 0 to about 1: where smooth flat noise crosses zero."""
    lines = np.exp(-((_bent(_field(rng, grid, wide, high), bend) / 0.17) ** 2))
    return np.asarray(lines * _step(_field(rng, grid, 0.1, 0.04) - 0.1, 0.7))


def _lobule(rng: np.random.Generator, grid: Grid) -> Floats:
    """What a fat lobule or a vessel adds in dB: darker and flat, with a bright wall; no lesion."""
    centre = (rng.uniform(0, grid.aspect), rng.uniform(0.1, 0.75))
    vessel = rng.random() < 0.3
    wide = rng.uniform(0.02, 0.04) if vessel else rng.uniform(0.06, 0.16)
    shape = _blob(rng, grid, centre, (wide, wide * rng.uniform(0.25, 0.5)), 0.08)
    depth = rng.uniform(8, 16) if vessel else rng.uniform(3, 8)
    wall = rng.uniform(1, 5) * np.exp(-((shape / 0.008) ** 2))
    return np.asarray(wall - depth * _step(shape, 0.01))


def _shadow_streak(rng: np.random.Generator, grid: Grid) -> Floats:
    """What a ligament or poor contact takes away in dB: a dark column below some depth."""
    middle, wide = rng.uniform(0, grid.aspect), rng.uniform(0.02, 0.07)
    column = np.exp(-(((grid.x - middle - rng.normal(0, 0.1) * grid.y) / wide) ** 2))
    return np.asarray(-rng.uniform(3, 9) * column * _step(grid.y - rng.uniform(0, 0.5), 0.08))


def _lesion(
    rng: np.random.Generator, grid: Grid, echo: Floats, kind: str, taken: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """The echo levels with one more lesion, and where it is (H, W); it keeps clear of `taken`."""
    malignant = kind == "malignant"
    radius = rng.uniform(0.09, 0.19) if malignant else rng.uniform(0.06, 0.16)
    flat = rng.uniform(0.75, 1.2) if malignant else rng.uniform(0.5, 0.85)
    rough, spikes = (0.13, rng.uniform(0, 0.2)) if malignant else (rng.uniform(0.02, 0.1), 0.0)
    for _ in range(20):
        centre = rng.uniform(0.15, 0.85) * grid.aspect, rng.uniform(0.22, 0.6)
        radii = (radius / flat**0.5, radius * flat**0.5)
        shape = _blob(rng, grid, centre, radii, rough, spikes)
        if not (taken & (shape > -0.05)).any():
            break
    shape = shape + (0.011 if malignant else 0.006) * _field(rng, grid, 0.025, 0.015)
    soft = rng.uniform(0.015, 0.04) if malignant else rng.uniform(0.008, 0.02)
    inside = _step(shape, soft)
    # Inside, the texture of the tissue gives way to the lesion's own level.
    level = float(echo[shape > 0].mean()) - rng.uniform(10, 21)
    texture = rng.uniform(1, 3.5) * _field(rng, grid, 0.035, 0.02)
    echo = echo + inside * (0.85 * (level - echo) + texture) + _below(rng, grid, shape, malignant)
    rim = rng.uniform(1, 5), (0.03 if malignant else 0.01)
    echo += rim[0] * np.exp(-(((shape + rim[1]) / rim[1]) ** 2))
    return echo, shape > 0


def _below(rng: np.random.Generator, grid: Grid, shape: Floats, malignant: bool) -> Floats:
    """What a lesion does to the beam below it, in dB (H, W): shadow, or enhancement."""
    drift = 0.03 * _field(rng, grid, 0.05, 0.3)
    path = np.cumsum(_step(shape + drift, 0.05), axis=0) / len(shape)
    beyond = path * (1 - _step(shape, 0.01))
    shadows = rng.random() < (0.7 if malignant else 0.15)
    strength = rng.uniform(-70, -20) if shadows else rng.uniform(0, 35)
    fade = 1 if shadows else np.exp(-np.maximum(-shape, 0) / 0.15)
    return np.asarray(np.clip(strength * beyond, -18, 8) * fade)


# ------------------------------------------------------------------------------------- scanner


def _speckle(rng: np.random.Generator, grid: Grid) -> Floats:
    """Amplitudes (H, W) around 1: complex noise through a beam that widens with depth."""
    amplitude = np.zeros_like(grid.y)
    for _ in range(3):  # looks, averaged as a scanner compounds
        near, far = (np.abs(_noise(rng, grid, wide, 0.0035)) for wide in (0.005, 0.011))
        amplitude += near + (far - near) * np.clip(grid.y, 0, 1)
    return np.asarray(amplitude / amplitude.mean())


def _scanned(rng: np.random.Generator, grid: Grid, echo: Floats) -> Bytes:
    """Echo levels in dB (H, W) as the grey picture of a scanner."""
    focus = rng.uniform(0.25, 0.5)
    loss = rng.uniform(2, 16) * np.maximum(grid.y - focus, 0) + rng.uniform(0, 5) * (grid.y < 0)
    bands = 0.4 * rng.standard_normal((1, grid.x.shape[1]))
    decibels = echo - loss + bands + 20 * np.log10(_speckle(rng, grid) + 0.03)
    grey = rng.normal(95, 16) + rng.uniform(0.8, 1.15) * GREY_PER_DECIBEL * decibels
    grey = grey + rng.normal(0, 3, grey.shape)
    grey = np.where(grey < 40, 40 * np.exp((np.minimum(grey, 40) - 40) / 40), grey)
    return np.asarray(np.clip(np.rint(grey), 0, 255), np.uint8)
