"""Pictures of volumes: three planes of each case, prediction filled, truth outlined.

    with open_volume_review(Path("predictions/output_1.h5")) as source:
        draw_volumes(source, None, most=12, path=Path("output_1.png"), title="output_1.h5")
        animate(source, 0, Path("case_0.gif"))

Reads predictions (output_<epoch>.h5) with the prepared volumes that they are of, or prepared
volumes alone. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.volumes.planes import grey, middle, three_planes
from trainer.data.volumes.volume_file import SCHEMA, Case, Header, is_volume_file, open_volumes
from trainer.errors import InputError, nearest
from trainer.metrics import dice
from trainer.overlay import COLOURS
from trainer.picture import OURS, save_picture

FRAME_SECONDS = 0.1
ROW_INCHES, WIDE_INCHES, HEADER_INCHES = 2.6, 9.0, 0.8


def of_volumes(path: Path) -> bool:
    """Whether a file is of prepared volumes, or of predictions for such."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("schema") == SCHEMA:
                return True
            first = next(iter(file.values()), None)
            return isinstance(first, h5py.Dataset) and first.ndim == 4
    except OSError:
        return False


@dataclass(frozen=True)
class VolumeReview:
    """Cases, and the open file with their predictions (None: there are none)."""

    cases: list[Case]
    header: Header
    file: Any
    threshold: float

    def find(self, name: str) -> int:
        """The index of a case, by that index (from 0) or its name; raises InputError."""
        names = [case.name for case in self.cases]
        if name in names:
            return names.index(name)
        if name.removeprefix("-").isdecimal() and int(name) in range(len(names)):
            return int(name)
        accepted = f"a name, or an index: 0 to {len(names) - 1}"
        raise InputError(f"--case {name}", f"there is no such case{nearest(name, names)}", accepted)

    def predicted(self, case: Case) -> NDArray[np.uint8] | None:
        """The class of each voxel (D, H, W) on the prepared grid; None without predictions."""
        if self.file is None:
            return None
        output = self.file[case.name][()]
        if output.shape[1:] != case.grid.shape:
            found = f"its prediction has the shape {output.shape[1:]}, its volume {case.grid.shape}"
            raise InputError(case.where, found, "predictions of these volumes")
        if len(output) == 1:
            return np.asarray(output[0] > self.threshold, np.uint8)
        classes = output.argmax(axis=0)
        return np.asarray(np.where(output.any(axis=0), classes, 0), np.uint8)

    def score(self, case: Case) -> float | None:
        """Mean Dice over the classes but the background, on the prepared grid."""
        found = self.predicted(case)
        if found is None or not case.has_label:
            return None
        truth = case.label()
        values = []
        for number in range(1, len(self.header.classes)):
            p, t = found == number, truth == number
            tp = int((p & t).sum())
            values.append(dice(tp, int(p.sum()) - tp, int(t.sum()) - tp))
        return sum(values) / len(values)


@contextmanager
def open_volume_review(path: Path, inputs: Path | None = None) -> Iterator[VolumeReview]:
    """Predictions at `path` with their volumes (those of `inputs`, if they moved), or prepared
    volumes at `path`. Raises InputError where the volumes are not where they were."""
    if is_volume_file(path):
        volumes = open_volumes(path)
        yield VolumeReview(volumes.cases, volumes.header, None, 0.5)
        return
    with h5py.File(path, "r") as file:
        told = inputs or Path(str(file.attrs.get("inputs", "")))
        for place in (told, path.parent / told.name):
            if is_volume_file(place):
                break
        else:
            if (path.parent / "overlays").is_dir():  # of trainer.predict
                found, pictures = "is of scans as they came", path.parent / "overlays"
                fix = f"look at {pictures}, which has a picture of each"
                raise InputError(str(path), found, "predictions for prepared volumes", fix)
            found = f"its volumes are not at '{told}'"
            raise InputError(str(path), found, "prepared volumes", "name them with --inputs")
        volumes = open_volumes(place)
        cases = [case for case in volumes.cases if case.name in file]
        if not cases:
            raise InputError(str(path), f"has no prediction for {place}", "predictions of these")
        yield VolumeReview(cases, volumes.header, file, float(file.attrs.get("threshold", 0.5)))


def draw_volumes(source: VolumeReview, case: int | None, most: int, path: Path, title: str) -> str:
    """Writes a page (PNG) of one case, or of `most` at the most, the worst first; what to tell."""
    from matplotlib.figure import Figure

    scores = {one.name: source.score(one) for one in source.cases} if case is None else {}
    if case is not None:
        chosen = [source.cases[case]]
        scores = {chosen[0].name: source.score(chosen[0])}
    else:
        known = sorted(source.cases, key=lambda one: scores[one.name] or 0.0)
        chosen = known[:most]
    high = HEADER_INCHES + ROW_INCHES * len(chosen)
    figure = Figure(figsize=(WIDE_INCHES, high), dpi=110, facecolor="white")
    for row, one in enumerate(chosen):
        bottom = (high - HEADER_INCHES - (row + 1) * ROW_INCHES) / high
        axis = figure.add_axes((0.02, bottom, 0.96, (ROW_INCHES - 0.3) / high))
        axis.imshow(_picture(source, one), interpolation="nearest")
        axis.set_axis_off()
        score = scores[one.name]
        axis.set_title(
            one.name + ("" if score is None else f"   Dice {score:.3f}"),
            loc="left",
            fontsize=9,
            parse_math=False,
        )
    _draw_header(figure, source, title, high)
    save_picture(figure, path)
    values = [value for value in scores.values() if value is not None]
    told = f"{len(chosen)} of {len(source.cases)} cases"
    if values and case is None:
        told += f", mean Dice {sum(values) / len(values):.3f} on the prepared grid, worst first"
    return told


def _draw_header(figure: Any, source: VolumeReview, title: str, high: float) -> None:
    from matplotlib.patches import Patch

    inch = 1 / high
    figure.text(
        0.02, 1 - 0.1 * inch, title, fontsize=12, fontweight="bold", va="top", parse_math=False
    )
    told = "filled: predicted, outlined: truth" if source.file is not None else "filled: truth"
    handles = [
        Patch(color=COLOURS[number % len(COLOURS)], label=name)
        for number, name in enumerate(source.header.classes[1:])
    ]
    figure.legend(
        handles=handles,
        title=told,
        loc="upper right",
        bbox_to_anchor=(0.98, 1.0),
        ncols=6,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )


def _picture(source: VolumeReview, case: Case) -> NDArray[np.uint8]:
    found, truth = source.predicted(case), case.label() if case.has_label else None
    at = middle(truth if truth is not None and truth.any() else found, case.grid.shape)
    image = grey(case.image()[0])
    if found is None:
        return three_planes(image, truth, at, case.grid.spacing_mm)
    return three_planes(image, found, at, case.grid.spacing_mm, truth)


def animate(source: VolumeReview, case: int, path: Path) -> str:
    """Writes a GIF of one case: frame n shows plane n across each axis, the last one where an axis
    has ended; as many frames as the first axis has planes. What to tell of it."""
    one = source.cases[case]
    found, truth = source.predicted(one), one.label() if one.has_label else None
    image = grey(one.image()[0])
    frames = []
    for n in range(image.shape[0]):
        at = (n, n, n)
        filled, outlined = (truth, None) if found is None else (found, truth)
        frames.append(
            Image.fromarray(three_planes(image, filled, at, one.grid.spacing_mm, outlined))
        )
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as file:
        frames[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 * FRAME_SECONDS),
            loop=0,
            comment=OURS.encode(),
        )
    beside.replace(path)
    return f"{one.name}, {len(frames)} frames"
