"""A labels file: the classes of a data set, and which values or colours of its masks they are.

    {"background": 0, "cyst": 85, "tumour": [170, 255]}
    {"background": "#000000", "road": "#ff0000", "house": ["#00ff00", "#00c800"]}

A class is a grey value from 0 to 255, a colour "#rrggbb", or a list of either. The first class is
the background. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from trainer.config import read_json
from trainer.errors import InputError, joined

COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
ACCEPTED = 'a value from 0 to 255, a colour "#rrggbb", or a list of either'
UNKNOWN = 255
MOST_CLASSES = 250


class MaskClass(BaseModel):
    """One class: the grey values and the colours ("#rrggbb") that mean it in masks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    values: list[int] = []
    colours: list[str] = []

    @property
    def shown(self) -> int | str:
        """What a mask that this program writes holds for the class: its first value or colour."""
        return self.values[0] if self.values else self.colours[0]


def read_labels(path: str | Path) -> list[MaskClass]:
    """The classes that a labels file names, in its order; raises InputError with all faults."""
    where = str(path)
    content = read_json(path, "labels file")
    if not isinstance(content, dict) or not 2 <= len(content) <= MOST_CLASSES:
        accepted = 'like {"background": 0, "lesion": 255}'
        found = f"does not name 2 to {MOST_CLASSES} classes"
        raise InputError(where, found, accepted)
    faults: list[InputError] = []
    classes: list[MaskClass] = []
    owners: dict[int | str, str] = {}
    for name, told in content.items():
        values, colours, fault = _parsed(told)
        if not name.strip() or not name.isprintable():
            fault = "a class has no name that can be printed"
        elif classes and name.lower() == "background":
            fault = "the background is not the first class"
        if fault:
            faults.append(InputError(f"{where}, {name}", fault, ACCEPTED))
            continue
        keys: list[int | str] = [*values, *colours]
        for key in keys:
            if owner := owners.get(key):
                found = f"{key} is {owner} already"
                faults.append(InputError(f"{where}, {name}", found, "each in one class"))
            owners[key] = name
        classes.append(MaskClass(name=name, values=values, colours=colours))
    if {bool(c.values) for c in classes} == {True, False} or any(
        c.values and c.colours for c in classes
    ):
        faults.append(InputError(where, "mixes values and colours", "one of them for all classes"))
    if faults:
        raise joined(faults, where)
    return classes


def _parsed(told: Any) -> tuple[list[int], list[str], str]:
    """The values, the colours, and what is wrong."""
    values: list[int] = []
    colours: list[str] = []
    for item in told if isinstance(told, list) else [told]:
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= 255:
            values.append(item)
        elif isinstance(item, str) and COLOUR.fullmatch(item):
            colours.append(item.lower())
        else:
            return [], [], f"{item!r} is no value and no colour"
    return values, colours, "" if values or colours else "the list is empty"


def class_indices(
    image: Any, classes: Sequence[MaskClass], where: str, ignored: int | None = None
) -> NDArray[np.uint8]:
    """The class (H, W) of each pixel of a PIL mask; raises InputError for what no class names.

    The value `ignored`, which belongs to no class, stays as it is.
    A value is a pixel's grey value (its brightest channel), in an image with a palette its index.
    """
    if classes[0].colours:
        found, indices = _by_colour(image, classes)
    else:
        found, indices = _by_value(image, classes, where)
    nameless = indices == UNKNOWN
    if ignored is not None and not classes[0].colours:
        indices[found == ignored] = ignored
        nameless &= found != ignored
    if nameless.any():
        unknown, counts = np.unique(found[nameless], return_counts=True)
        order = counts.argsort()[::-1][:5]
        shown = [_shown(int(unknown[i]), bool(classes[0].colours)) for i in order]
        told = ", ".join(f"{s} ({counts[i]} pixels)" for s, i in zip(shown, order, strict=True))
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        accepted = ", ".join(f"{c.name}: {_listed(c)}" for c in classes)
        if image.mode == "P" and classes[0].values:
            more += " (an image with a palette: the indices count)"
        raise InputError(where, f"holds what no class names: {told}{more}", accepted)
    return indices


def _by_value(
    image: Any, classes: Sequence[MaskClass], where: str
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    from trainer.data.images import mask_array

    found = np.asarray(image) if image.mode == "P" else mask_array(image)
    if image.mode not in ("1", "L", "LA", "P"):
        rgb = np.asarray(image.convert("RGB"))
        if (rgb != rgb[..., :1]).any():
            found_colours = "has colours, and --labels gives values"
            raise InputError(where, found_colours, 'colours in the labels file, like "#ff0000"')
    table = np.full(256, UNKNOWN, np.uint8)
    for index, one in enumerate(classes):
        table[one.values] = index
    return found, table[found]


def _by_colour(image: Any, classes: Sequence[MaskClass]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    rgb = np.asarray(image.convert("RGB"), np.int32)
    found = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    indices = np.full(found.shape, UNKNOWN, np.uint8)
    for index, one in enumerate(classes):
        for colour in one.colours:
            indices[found == int(colour[1:], 16)] = index
    return found, indices


def _shown(value: int, colour: bool) -> str:
    return f"#{value:06x}" if colour else str(value)


def _listed(one: MaskClass) -> str:
    return " or ".join(map(str, one.values or one.colours))


def written(indices: NDArray[np.uint8], classes: Sequence[MaskClass]) -> Any:
    """Class indices (H, W) as a PIL image with the values or colours of a labels file."""
    if not classes[0].colours:
        return Image.fromarray(np.array([c.shown for c in classes], np.uint8)[indices])
    image = Image.fromarray(indices, mode="P")
    palette = [int(str(c.shown)[at : at + 2], 16) for c in classes for at in (1, 3, 5)]
    image.putpalette(palette)
    return image
