"""Command line: `python -m trainer.prepare demo TARGET` and `… weights LAYERS.json`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import RmlError


def _parser() -> argparse.ArgumentParser:
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m trainer.prepare", description="Makes what a study or a training run reads."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "make up a small data set that looks like breast ultrasound, for a first try"
    demo = commands.add_parser("demo", help=text, description=text, formatter_class=shown)
    demo.add_argument("target", metavar="TARGET", type=Path, help="a new or empty folder")
    demo.add_argument("--images", type=int, default=80, help="training images")
    demo.add_argument("--test-images", type=int, default=20, help="test images")
    demo.add_argument("--seed", type=int, default=0, help="the same seed gives the same images")
    text = "download the pretrained weights that a network file asks for"
    weights = commands.add_parser("weights", help=text, description=text)
    weights.add_argument("layers", metavar="LAYERS.json", type=Path, help="a network file")
    return parser


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} images", end="\n" if done == total else "", file=sys.stderr)


def _demo(target: Path, images: int, test_images: int, seed: int) -> None:
    from trainer.prepare.demo import make_demo

    made = make_demo(target, images, test_images, seed, progress=_show_progress)
    print(f"Wrote {made.training} training and {made.test} test images with masks to {target}.")
    print(
        f"{made.without_lesion} of them have no lesion. They are made up: nothing medical follows."
    )
    print(f"Next: python rml_optimization.py --data {target}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 for a mistake of input."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "demo":
            _demo(given.target, given.images, given.test_images, given.seed)
        else:
            from trainer.prepare.weights import fetch

            fetch(given.layers)
    except RmlError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
