"""OpenCV's conversions of colours, on values in [0, 1].

What comes out is what OpenCV gives for 8-bit pixels, divided by 255; hue is thus in half degrees /
255, as in OpenCV, where 8 bits hold 0 to 179 (https://docs.opencv.org, "Color conversions").
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 128 / 255


def channels_of(name: str) -> tuple[int, int]:
    """Channels that the conversion takes and gives."""
    takes, _, gives = name.partition("2")
    return 1 if takes == "GRAY" else 3, 1 if gives == "GRAY" else 3


def converted(x: Tensor, name: str) -> Tensor:
    """Colours (n, C, H, W) by the conversion of this name, one of config.COLOUR_CONVERSIONS."""
    takes, _, gives = name.partition("2")
    if takes == "GRAY":
        return x.expand(-1, 3, -1, -1)
    rgb = x.flip(1) if takes == "BGR" else x
    if gives == "RGB":
        return rgb
    if gives == "BGR":
        return rgb.flip(1)
    if gives == "HSV":
        return _hsv(rgb)
    red, green, blue = rgb.split(1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    if gives == "GRAY":
        return luma
    return torch.cat([luma, (red - luma) * 0.713 + HALF, (blue - luma) * 0.564 + HALF], 1).clamp(
        0, 1
    )


def _hsv(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.split(1, dim=1)
    value, low = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    spread = value - low
    safe = spread.clamp_min(1e-12)
    of_green, of_blue = 2 + (blue - red) / safe, 4 + (red - green) / safe
    sixth = torch.where(value == green, of_green, of_blue)
    sixth = torch.where(value == red, (green - blue) / safe, sixth)
    half_degrees = torch.where(spread > 0, sixth * 30, torch.zeros_like(sixth)) % 180
    saturation = torch.where(value > 0, spread / value.clamp_min(1e-12), torch.zeros_like(value))
    return torch.cat([half_degrees / 255, saturation, value], dim=1)
