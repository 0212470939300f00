"""One case of a configuration as its network sees it: on disk, prepared, augmented.

    python -m trainer.review --data config.json --case 0

The augmented versions are those of the first epochs of a training on a CPU: order, batches and
random numbers are the trainer's own. Nothing is trained and no network is built.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import Config, Transform, load_config
from trainer.data.cache import ImageSet
from trainer.data.folders import Pair
from trainer.data.images import prepared
from trainer.data.masks import read_masks
from trainer.data.order import epoch_order
from trainer.data.samples import Item
from trainer.data.slice_files import CHANNELS, Slice, names_of
from trainer.data.transforms import RANDOM, SIZING, BatchTransform
from trainer.data.volumes.planes import grey
from trainer.errors import InputError, nearest
from trainer.overlay import colour_of
from trainer.parts import Parts
from trainer.review_slices import open_slice_arrays
from trainer.usage import Usage, open_run

PARTS = ("training", "validation", "test")
VERSIONS = 6
COLUMNS = 4
PATHS = ("input_path", "target_path", "test_input_path", "test_target_path", "split")

PANEL, TITLE, MARGIN, LINE = 2.9, 0.5, 0.15, 0.2
"""Inches: width of a panel, its title, around the page and between panels, a line of the header."""

LETTERS_OF_AN_INCH = 13


class View(NamedTuple):
    """One panel: `image` (H, W, 3) in [0, 1], `truth` (H, W) classes or None without masks."""

    title: str
    told: str
    image: NDArray[np.float32]
    truth: NDArray[np.uint8] | None


class Shown(NamedTuple):
    """A case and what is said of it; `classes` are their names, the background first."""

    name: str
    lines: list[str]
    views: list[View]
    classes: list[str]


def read_config(path: Path) -> Config:
    """The configuration at `path`, from wherever it is typed.

    A path in it that is not there from the working directory is taken from the configuration's own
    folder (that of a trial names its layers.json so), or from the one above (best_model/ does).
    """
    config = load_config(path)
    own = path.absolute().parent

    def found(text: str | None) -> str | None:
        if text is None or Path(text).exists():
            return text
        return next((str(at / text) for at in (own, own.parent) if (at / text).exists()), text)

    data = {name: found(getattr(config.data, name)) for name in PATHS}
    load = {"load": found(config.checkpoints.load)}
    update: dict[str, Any] = {
        "data": config.data.model_copy(update=data),
        "checkpoints": config.checkpoints.model_copy(update=load),
    }
    if isinstance(config.layers, str):
        update["layers"] = found(config.layers)
    return config.model_copy(update=update)


def find_case(pairs: Sequence[Item], case: str, part: str) -> int:
    """The index of a case: `case` is a name, its stem, or the index (from 0) itself.

    Raises InputError that tells how many there are, or the nearest name.
    """
    names = [pair.name for pair in pairs]
    if case in names:
        return names.index(case)
    number = case.removeprefix("-")
    if number.isdecimal():
        if number == case and int(case) < len(pairs):
            return int(case)
        noun = "slices" if isinstance(pairs[0], Slice) else "images"
        raise InputError(f"--case {case}", f"there are {len(pairs)} {part} {noun}", _range(pairs))
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    if case in stems:
        return stems.index(case)
    hint = nearest(case, names) if len(names) < 10_000 else ""
    accepted = f"a name, or an index: {_range(pairs)}"
    raise InputError(f"--case {case}", f"no {part} image is called so{hint}", accepted)


def _range(pairs: Sequence[Item]) -> str:
    return f"0 to {len(pairs) - 1}"


def show_case(config_path: Path, case: str, part: str | None) -> Shown:
    """All that is drawn of a case. Raises InputError for what a training would refuse, and for a
    part or a case that is not there."""
    config = read_config(config_path)
    parts, usage = open_run(config)
    sizes = parts.sizes()
    part = part or next(iter(sizes))
    if part not in sizes:
        found = f"this configuration has no {part} images"
        raise InputError(f"--part {part}", found, " or ".join(sizes))
    index = find_case(sizes[part], case, part)
    pair = sizes[part][index]
    if isinstance(pair, Slice):
        return _show_slice(pair, f"{part} slice {index} of {len(sizes[part])}", usage)
    transform, images = usage.transform(), usage.open([pair])
    if (
        not isinstance(pair, Pair)
        or not isinstance(images, ImageSet)
        or not isinstance(transform, BatchTransform)
    ):
        raise InputError(str(config_path), "its data are arrays", "one of images or slices")
    raw, raw_targets = images.batch(torch.zeros(1, dtype=torch.long))
    x, targets = transform.evaluated(raw, raw_targets, torch.tensor([index]))
    channels = "1 channel" if usage.network.in_channels == 1 else "3 channels"
    told = f"{x.shape[3]}x{x.shape[2]}, {channels}, {_values(x)}"
    views = [
        _on_disk(pair, images, usage),
        _view("as the network gets it", told, x, targets, transform),
    ]
    lines = [
        f"{part} image {index} of {len(sizes[part])} (0 is the first)",
        f"always: {_listed(usage, random=False) or 'nothing'}; values are pixel / 255 before",
    ]
    random = _listed(usage, random=True)
    if part != "training":
        lines.append(f"in training alone: {random or 'nothing'}; {part} images are not augmented")
    elif not random:
        lines.append("no random transform: the network sees the same in every epoch")
    elif raw_targets is not None:
        lines.append(f"drawn anew in every epoch: {random}")
        views += _versions(raw, raw_targets, index, config, parts, transform)
    return Shown(pair.name, lines, views, usage.masks.names if usage.masks else ["", "foreground"])


def _show_slice(item: Slice, told: str, usage: Usage) -> Shown:
    """A slice, which no transform changes: a view of each channel that the network gets."""
    samples = usage.open([item])
    raw, targets = samples.batch(torch.zeros(1, dtype=torch.long))
    truth = None if targets is None else np.asarray(targets[0, 0].numpy() > 0, np.uint8)
    names = names_of(item.files.inputs, "channels", CHANNELS)
    views = []
    for channel, values in zip(item.files.channels, raw[0].numpy(), strict=True):
        shown = np.asarray(grey(values)[..., None].repeat(3, axis=2) / 255, np.float32)
        size = f"{values.shape[1]}x{values.shape[0]}, {_values(torch.from_numpy(values))}"
        name = names[channel] if channel < len(names) else str(channel)
        views.append(View(f"channel {name}", size, shown, truth))
    lines = [
        f"{told} (0 is the first), row {item.row} of {item.files.inputs.name}",
        "the network sees the same in every epoch: arrays of slices are not augmented",
        "drawn from black (lowest half percent of the values) to white (highest)",
    ]
    return Shown(open_slice_arrays(item.files).name(item.row), lines, views, ["", "target"])


def _versions(
    raw: Tensor,
    raw_targets: Tensor,
    index: int,
    config: Config,
    parts: Parts,
    transform: BatchTransform,
) -> list[View]:
    """The case in the first epochs."""
    views = []
    for epoch in range(1, VERSIONS + 1):
        order = epoch_order(parts.seed, epoch, len(parts.training))
        batch = int((order == index).nonzero()[0, 0]) // config.data.batch_size + 1
        x, y = transform.augmented(raw, raw_targets, torch.tensor([index]), epoch, parts.seed)
        views.append(_view(f"epoch {epoch}", f"batch {batch}, {_values(x)}", x, y, transform))
    return views


def _on_disk(pair: Pair, images: ImageSet, usage: Usage) -> View:
    opened = images.opened(pair)
    image = np.asarray(prepared(opened, 3, (), pair.name).transpose(1, 2, 0) / 255, np.float32)
    deep = isinstance(opened, np.ndarray)
    told = f"{image.shape[1]}x{image.shape[0]}, "
    told += "16 bit" if deep else "grey" if opened.mode == "L" else opened.mode
    if pair.label is not None:
        return View("on disk", f"{told}, class {usage.aim.names[pair.label]}", image, None)
    if not pair.masks or usage.aim.task == "channels":
        return View("on disk", told + ("" if pair.masks else ", no mask"), image, None)
    truth = read_masks(pair.masks, usage.masks)
    if usage.network.classes == 1:
        truth = np.asarray(truth > 127, np.uint8)
    told += f", {len(pair.masks)} masks united" if len(pair.masks) > 1 else ""
    told += "" if truth.any() else ", the mask is empty"
    return View("on disk", told, image, truth)


def _view(title: str, told: str, x: Tensor, y: Tensor | None, transform: BatchTransform) -> View:
    """A batch of one, as the network takes it; drawn without its normalisation."""
    image = transform.plain(x)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    truth = None
    if y is not None and transform.task in ("foreground", "classes"):
        target = transform.plain_targets(y)[0, 0]
        target = (target > 0.5) if transform.task == "foreground" else target.round()
        truth = target.numpy().astype(np.uint8)
    return View(title, told, np.repeat(image, 3 // image.shape[2], axis=2), truth)


def _values(x: Tensor) -> str:
    return f"values {float(x.min()):.2f} to {float(x.max()):.2f}"


def _listed(usage: Usage, random: bool) -> str:
    """The transforms that act always, or the random ones, with their settings."""
    sides = (("transforms", ""), ("input_transforms", " (image)"), ("target_transforms", " (mask)"))
    told = [
        f"{transform.name} {_setting(transform)}{side}"
        for name, side in sides
        for transform in getattr(usage.data, name)
        if (transform.name in RANDOM) == random
    ]
    return ", ".join(told)


def _setting(transform: Transform) -> str:
    if transform.name in SIZING:
        return f"{transform.value[0]}x{transform.value[1]}"
    if transform.name == "normalize":
        return " ".join(f"{key} {value:g}" for key, value in transform.value.items())
    if transform.name == "random_patches":
        return f"{transform.value.number} of {transform.value.size}x{transform.value.size}"
    return f"{transform.value}" if isinstance(transform.value, str) else f"{transform.value:g}"


def draw(figure: Any, shown: Shown) -> None:
    """Draws a case on an empty matplotlib figure, whose size it sets."""
    from matplotlib.patches import Patch

    columns = min(COLUMNS, len(shown.views))
    rows = -(-len(shown.views) // columns)
    tallest = max(view.image.shape[0] / view.image.shape[1] for view in shown.views)
    wide = max(columns * (PANEL + MARGIN) + MARGIN, 9.0)
    letters = int(wide * LETTERS_OF_AN_INCH)
    lines = [one for line in shown.lines for one in textwrap.wrap(line, letters)]
    panel_high = PANEL * min(max(tallest, 0.4), 1.6)
    present = sorted(
        {int(n) for v in shown.views if v.truth is not None for n in np.unique(v.truth)}
    )
    named = [number for number in present if number > 0]
    header = 0.5 + LINE * len(lines) + (0.32 if named else 0.05)
    high = header + rows * (TITLE + panel_high + MARGIN)
    figure.set_size_inches(wide, high)
    for place, view in enumerate(shown.views):
        row, column = divmod(place, columns)
        left = MARGIN + column * (PANEL + MARGIN)
        bottom = high - header - (row + 1) * (TITLE + panel_high) - row * MARGIN
        axis = figure.add_axes((left / wide, bottom / high, PANEL / wide, panel_high / high))
        _draw_view(axis, view)
    style: dict[str, Any] = {"va": "top", "parse_math": False}
    left = MARGIN / wide
    figure.text(left, 1 - 0.12 / high, shown.name, fontsize=13, fontweight="bold", **style)
    for number, line in enumerate(lines):
        top = 1 - (0.42 + LINE * number) / high
        figure.text(left, top, line, fontsize=9, color="#444444", **style)
    if named:
        patches = [
            Patch(color=tuple(colour_of(number) / 255), label=shown.classes[number])
            for number in named
        ]
        corner = (left, 1 - (0.44 + LINE * len(lines)) / high)
        place_it: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": corner}
        figure.legend(
            handles=patches,
            ncols=8,
            frameon=False,
            fontsize=9,
            borderpad=0,
            borderaxespad=0,
            **place_it,
        )


def _draw_view(axis: Any, view: View) -> None:
    axis.imshow(view.image, interpolation="nearest")
    axis.set_anchor("N")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if view.truth is not None:
        for number in np.unique(view.truth[view.truth > 0]):
            region = (view.truth == number).astype(np.float32)
            colour = colour_of(int(number)) / 255
            fill = np.zeros((*region.shape, 4), np.float32)
            fill[region > 0] = (*colour, 0.18)
            axis.imshow(fill, interpolation="nearest")
            # Beyond the image there is nothing: a region at the border is closed there.
            height, width = region.shape
            across, down = np.arange(-1, width + 1), np.arange(-1, height + 1)
            axis.contour(
                across, down, np.pad(region, 1), levels=[0.5], colors=[colour], linewidths=1.6
            )
        height, width = view.truth.shape
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axis.text(
        0, 1.01, view.told, transform=axis.transAxes, fontsize=8.5, color="#444444", va="bottom"
    )
    axis.set_title(view.title, loc="left", fontsize=10, fontweight="bold", pad=16)
