"""A picture of predictions: input, probability and truth side by side, the worst cases first.

    python -m trainer.review predictions/output_1.h5
    python -m trainer.review predictions/imgs_test_predictions.npy        # slices
    python -m trainer.review prepared/train.h5 --case 3 --gif  # volumes: three planes
    python -m trainer.review --data config.json --case 0      # a case as the network sees it

Gather, then draw: trainer/cases.py reads and scores, `draw_page` draws. Torch-free, but for
`--data` (trainer/augmented.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.cases import Case, Review, gather, open_predictions, summary
from trainer.errors import InputError, RmlError
from trainer.overlay import COLOURS, colour_of
from trainer.picture import check_picture, save_picture
from trainer.review_slices import gather_slices, of_slices, open_slice_review
from trainer.review_volumes import of_volumes

MOST_IMAGES = 200

LOW, PREDICTED, TRUE = "#c2185b", "#ffb000", "#26d9c7"
"""Low probability, prediction, truth: apart from grey and each other, colour-blind readers too."""

GROUPS = 2
"""Images beside each other on a page."""

PANEL, GAP, MARGIN, HEADER, TITLE = 2.1, 0.35, 0.15, 0.95, 0.27
"""Inches: width of a panel, between groups, around the page, above the rows, above a panel."""

LONGEST_NAME = 40


def draw_page(review: Review, title: str, path: Path) -> None:
    """Writes the cases as a PNG picture to `path`, which is replaced in one step."""
    from matplotlib.figure import Figure

    cases = review.cases
    panels = 2 if cases[0].truth is None else 3
    groups = min(GROUPS, len(cases))
    shape = float(np.median([case.image.shape[0] / case.image.shape[1] for case in cases]))
    cell = PANEL * shape + TITLE
    group_wide = panels * PANEL + GAP
    wide = max(groups * group_wide - GAP + 2 * MARGIN, 7.0)
    high = HEADER + -(-len(cases) // groups) * cell + MARGIN
    figure = Figure(figsize=(wide, high), dpi=110, facecolor="white")
    for index, case in enumerate(cases):
        row, group = divmod(index, groups)
        bottom = high - HEADER - (row + 1) * cell + TITLE / 2
        left = MARGIN + group * group_wide
        axes = [
            figure.add_axes(
                (
                    (left + i * PANEL) / wide,
                    bottom / high,
                    0.98 * PANEL / wide,
                    PANEL * shape / high,
                )
            )
            for i in range(panels)
        ]
        _draw_case(axes, case, review.threshold, shape, first=row == 0)
    _draw_header(figure, review, title, (wide, high))
    save_picture(figure, path)


def _draw_case(axes: list[Any], case: Case, threshold: float, shape: float, first: bool) -> None:
    """Draws one image in its panels, whose height over width is `shape`."""
    height, width = case.image.shape[:2]
    span = max(width, height / shape)
    last = "truth and prediction" if len(case.probability) == 1 else "truth"
    for axis, label in zip(axes, ("input", "prediction", last), strict=False):
        axis.imshow(case.image, aspect="auto")
        axis.set(xticks=[], yticks=[], facecolor="#eeeeee")
        for spine in axis.spines.values():
            spine.set_visible(False)
        if first:
            box = {"facecolor": "black", "alpha": 0.55, "linewidth": 0, "pad": 2}
            axis.text(
                0.02, 0.03, label, transform=axis.transAxes, fontsize=7.5, color="w", bbox=box
            )
    axes[1].imshow(_heat(case), aspect="auto")
    if len(case.probability) == 1:
        _outline(axes[1], case.probability[0], threshold, PREDICTED)
        if case.truth is not None:
            _outline(axes[2], case.probability[0], threshold, PREDICTED)
            _outline(axes[2], case.truth, 0.5, TRUE)
    elif case.truth is not None:
        axes[2].imshow(class_colours(case.truth), aspect="auto")
    for axis in axes:  # the whole image in the middle of a panel, whatever its shape
        axis.set_xlim((width - span) / 2 - 0.5, (width + span) / 2 - 0.5)
        axis.set_ylim((height + span * shape) / 2 - 0.5, (height - span * shape) / 2 - 0.5)
    axes[0].set_title(shortened(case.name), loc="left", fontsize=9, pad=3, parse_math=False)
    if case.score:
        axes[-1].set_title(case.score.text, loc="right", fontsize=9, pad=3, fontweight="bold")


def _heat(case: Case) -> NDArray[np.float64]:
    """Colours (H, W, 4): from red to amber with the probability, or one colour a class."""
    from matplotlib.colors import LinearSegmentedColormap

    if len(case.probability) > 1:
        return class_colours(case.predicted)
    ramp = LinearSegmentedColormap.from_list("probability", [LOW, PREDICTED])
    probability = np.nan_to_num(case.probability[0]).clip(0, 1)
    colours = np.asarray(ramp(probability))
    colours[..., 3] = 0.65 * probability
    return colours


def class_colours(classes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colours (H, W, 4) of class indices (H, W): half transparent, the background not at all."""
    colours = np.zeros((*classes.shape, 4))
    for number in np.unique(classes[classes > 0]):
        colours[classes == number] = (*colour_of(int(number)) / 255, 0.5)
    return colours


def _outline(axis: Any, field: NDArray[Any], level: float, colour: str) -> None:
    field = np.nan_to_num(field.astype(np.float32))
    if field.min() < level < field.max():  # matplotlib warns of a level that is not there
        axis.contour(field, levels=[level], colors=[colour], linewidths=1.3)


def shortened(name: str) -> str:
    """A long file name without its middle."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def _draw_header(figure: Any, review: Review, title: str, size: tuple[float, float]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    left, inch = MARGIN / size[0], 1 / size[1]
    style: dict[str, Any] = {"va": "top", "parse_math": False}
    figure.text(left, 1 - 0.12 * inch, title, fontsize=12, fontweight="bold", **style)
    figure.text(left, 1 - 0.36 * inch, summary(review), fontsize=9, color="#444444", **style)
    handles: list[Any] = []
    if len(review.cases[0].probability) == 1:
        predicted = f"predicted: above {review.threshold:g}"
        handles += [
            Line2D([], [], color=PREDICTED, label=predicted),
            Patch(color=LOW, label="probability: low"),
            Patch(color=PREDICTED, label="high"),
        ]
        handles += [Line2D([], [], color=TRUE, label="truth")] if review.scores else []
    else:
        classes = review.names[1:] if len(review.names) > 2 else ["any class but the first"]
        handles += [
            Patch(color=COLOURS[number % len(COLOURS)], label=name)
            for number, name in enumerate(classes[: len(COLOURS)])
        ]
    place = {"loc": "upper left", "bbox_to_anchor": (left, 1 - 0.55 * inch), "borderaxespad": 0.3}
    figure.legend(
        handles=handles, ncols=4, frameon=False, fontsize=9, borderpad=0, handlelength=1.4, **place
    )


# ----------------------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.review",
        description="Draws inputs, predictions and truth side by side, the worst cases first; or, "
        "with --data, one case as the network sees it, before and after augmentation.",
    )
    text = "output_<epoch>.h5 or NAME_predictions.npy (slices), or a file of prepared volumes"
    parser.add_argument("predictions", type=Path, nargs="?", help=text)
    text = "picture to write (default: FILE.png beside it, or case_<N>.png here)"
    parser.add_argument("--out", type=Path, help=text)
    parser.add_argument("--images", type=int, help="images to draw (default: 12)")
    text = "folder of the images (of slices: their file), if they moved"
    parser.add_argument("--inputs", type=Path, help=text)
    text = "folder of the masks (of slices: their file), if they moved"
    parser.add_argument("--targets", type=Path, help=text)
    text = "a configuration, that of a trial too, whose data to look at"
    parser.add_argument("--data", type=Path, metavar="CONFIG", help=text)
    text = "one case: a name, or an index from 0 (with --data default: 0); of volumes, or with "
    text += "--data"
    parser.add_argument("--case", metavar="N", help=text)
    text = "volumes: an animation (GIF) through all planes of one case"
    parser.add_argument("--gif", action="store_true", help=text)
    text = "with --data: training (default), validation or test"
    parser.add_argument("--part", choices=("training", "validation", "test"), help=text)
    text = "with --data: also open a window, where there is a screen"
    parser.add_argument("--show", action="store_true", help=text)
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.predictions is None) == (given.data is None):
        parser.error("give either a file of predictions, or --data CONFIG")
    of_predictions, of_data = ("images", "inputs", "targets", "gif"), ("part", "show")
    for name in of_predictions if given.data else of_data:
        if getattr(given, name) not in (None, False):
            parser.error(f"--{name} goes with {'predictions' if given.data else '--data CONFIG'}")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws one picture; returns the exit code: 0, or 2 for a mistake of input."""
    given = _parse(arguments)
    try:
        if given.data:
            return _review_data(given)
        if of_volumes(given.predictions):
            return _review_volumes(given)
        if given.case is not None or given.gif:
            option = "--gif" if given.gif else "--case"
            found = "is drawn as a page of its images or slices"
            raise InputError(option, f"{given.predictions} {found}", "a file of volumes")
        out = given.out or given.predictions.with_suffix(".png")
        most = 12 if given.images is None else given.images
        if not 1 <= most <= MOST_IMAGES:
            raise InputError("--images", f"is {most}", f"1 to {MOST_IMAGES}")
        if of_slices(given.predictions):
            check_picture(out)
            slices = open_slice_review(given.predictions, given.inputs, given.targets)
            review = gather_slices(slices, most)
        else:
            with open_predictions(given.predictions, given.inputs, given.targets) as source:
                check_picture(out)
                review = gather(source, most)
        draw_page(review, given.predictions.name, out)
    except RmlError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Wrote {out}: {summary(review)}.")
    return 0


def _review_volumes(given: argparse.Namespace) -> int:
    from trainer.review_volumes import animate, draw_volumes, open_volume_review

    most = 12 if given.images is None else given.images
    if not 1 <= most <= MOST_IMAGES:
        raise InputError("--images", f"is {most}", f"1 to {MOST_IMAGES}")
    with open_volume_review(given.predictions, given.inputs) as source:
        case = source.find(given.case) if given.case is not None else None
        place = given.predictions.with_suffix(".png")
        if case is not None or given.gif:
            case = case if case is not None else 0
            place = place.with_name(f"{place.stem}_case_{case}.png")
        suffix = ".gif" if given.gif else ".png"
        out = given.out or place.with_suffix(suffix)
        check_picture(out, suffix=suffix)
        told = (
            animate(source, case or 0, out)
            if given.gif
            else draw_volumes(source, case, most, out, given.predictions.name)
        )
    print(f"Wrote {out}: {told}.")
    return 0


def _review_data(given: argparse.Namespace) -> int:
    from trainer.augmented import draw, show_case
    from trainer.augmented_volumes import draw_crops, is_of_volumes

    case = "0" if given.case is None else given.case
    out = given.out or Path(f"case_{Path(case).stem}.png")
    if is_of_volumes(given.data):
        check_picture(out)
        if given.show:
            raise InputError("--show", "draws images", "leave it out, and open the picture")
        print(f"Wrote {out}: {draw_crops(given.data, case, given.part, out)}.")
        return 0
    window = _window() if given.show else None
    check_picture(out)
    shown = show_case(given.data, case, given.part)
    if window:
        figure = window.figure(dpi=110)
    else:
        from matplotlib.figure import Figure

        figure = Figure(dpi=110, facecolor="white")
    draw(figure, shown)
    save_picture(figure, out)
    print(f"Wrote {out}: {shown.name}, " + "; ".join(shown.lines) + ".")
    if window:
        window.show()
    return 0


def _window() -> Any:
    """matplotlib.pyplot where it can open a window; raises InputError where it cannot."""
    try:
        from matplotlib import get_backend, pyplot

        backend = get_backend()
        pyplot.switch_backend(backend)
        if backend.lower() in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template"):
            raise ImportError(f"matplotlib draws with {backend}")
    except (ImportError, ValueError) as error:
        found = f"no window can be opened here: there is no screen, or no toolkit ({error})"
        raise InputError("--show", found, fix="leave --show out, and open the picture") from None
    return pyplot


if __name__ == "__main__":
    sys.exit(main())
