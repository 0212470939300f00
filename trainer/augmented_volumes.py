"""A case of prepared volumes as the network sees it: the whole, and its crops in the first epochs.

told = draw_crops(Path("config.json"), case="3", part="training", path=Path("case_3.png"))
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.augmented import read_config
from trainer.config import Config
from trainer.data.volumes.augment import VolumeTransform
from trainer.data.volumes.planes import grey, middle, three_planes
from trainer.data.volumes.volume_file import Case
from trainer.data.volumes.volume_set import VolumeSet
from trainer.errors import InputError
from trainer.parts import open_parts
from trainer.picture import save_picture
from trainer.review_volumes import VolumeReview

EPOCHS = 3
ROW_INCHES, WIDE_INCHES = 2.6, 9.0


def is_of_volumes(path: Path) -> bool:
    """Whether a configuration trains on prepared volumes; raises InputError for what is none."""
    return read_config(path).data.patches is not None


def draw_crops(path: Path, case: str, part: str | None, out: Path) -> str:
    """Writes a PNG with a case and its first crop in each of three epochs; what to tell of it.

    Raises InputError for what a training would refuse, and for a part or case that is not there.
    """
    config = read_config(path)
    parts = open_parts(config)
    sizes = {
        name: [one for one in items if isinstance(one, Case)]
        for name, items in parts.sizes().items()
    }
    part = part or next(iter(sizes))
    if part not in sizes:
        found = f"this configuration has no {part} cases"
        raise InputError(f"--part {part}", found, " or ".join(sizes))
    header = sizes[part][0].header
    assert header and config.data.patches
    index = VolumeReview(sizes[part], header, None, 0.5).find(case)
    chosen = sizes[part][index]
    rows = [(f"{chosen.name}, prepared", _planes(chosen.image()[0], _label(chosen), chosen))]
    if part == "training":
        rows += _crops(config, chosen, index, parts.seed)
    _draw(rows, out, f"{part} case {index} of {len(sizes[part])} (0 is the first)")
    return f"{chosen.name}, {len(rows) - 1} crops as augmented in the first epochs"


def _label(case: Case) -> NDArray[np.uint8] | None:
    return case.label() if case.has_label else None


def _planes(
    image: NDArray[np.float32], label: NDArray[np.uint8] | None, case: Case
) -> NDArray[np.uint8]:
    at = middle(label, image.shape)
    return three_planes(grey(image), label, at, case.grid.spacing_mm)


def _crops(
    config: Config, case: Case, index: int, seed: int
) -> list[tuple[str, NDArray[np.uint8]]]:
    """The case's first crop of each epoch, where it would be in a training of all cases."""
    assert config.data.patches
    samples = VolumeSet([case], config.data.patches)
    transform = VolumeTransform(config.data)
    first = index * config.data.patches.per_case
    rows = []
    for epoch in range(1, EPOCHS + 1):
        samples.begin(seed, epoch, first)
        raw, targets = samples.batch(torch.zeros(1, dtype=torch.long))
        assert targets is not None
        x, y = transform.augmented(raw, targets, torch.tensor([first]), epoch, seed)
        label = y[0, 0].nan_to_num(0).numpy().astype(np.uint8)
        rows.append((f"crop in epoch {epoch}", _planes(x[0, 0].numpy(), label, case)))
    return rows


def _draw(rows: list[tuple[str, NDArray[np.uint8]]], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    high = ROW_INCHES * len(rows) + 0.5
    figure = Figure(figsize=(WIDE_INCHES, high), dpi=110, facecolor="white")
    figure.text(0.02, 1 - 0.1 / high, title, fontsize=11, fontweight="bold", va="top")
    for row, (name, picture) in enumerate(rows):
        bottom = (high - 0.5 - (row + 1) * ROW_INCHES) / high
        axis = figure.add_axes((0.02, bottom, 0.96, (ROW_INCHES - 0.3) / high))
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(name, loc="left", fontsize=9, parse_math=False)
    save_picture(figure, path)
