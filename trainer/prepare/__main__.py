"""Command line: `python -m trainer.prepare demo TARGET`, `… busi SOURCE DATA`, `… weights FILE`,
and `… msd SOURCE TARGET` and the other kinds of volumes, which are in volume_commands.py."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import RmlError
from trainer.prepare import volume_commands


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
    text = (
        "write class folders with masks beside the images (breast ultrasound as it is published) "
    )
    text += "in the standard layout"
    busi = commands.add_parser("busi", help=text, description=text, formatter_class=shown)
    busi.add_argument("source", metavar="SOURCE", type=Path, help="benign/, malignant/, normal/ …")
    busi.add_argument("target", metavar="DATA", type=Path, help="a new or empty folder")
    busi.add_argument("--test-share", type=float, default=0.2, help="share of each class for test")
    busi.add_argument("--seed", type=int, default=0, help="the same seed draws the same split")
    text = "download the pretrained weights that a network file asks for"
    weights = commands.add_parser("weights", help=text, description=text)
    weights.add_argument("layers", metavar="LAYERS.json", type=Path, help="a network file")
    volume_commands.add_commands(commands)
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
    print(f"Next: python rml_optimization.py --data {shlex.quote(str(target))}")


def _busi(source: Path, target: Path, test_share: float, seed: int) -> None:
    from trainer.prepare.class_folders import RECORD_FILE, prepare

    def progress(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{done} of {total} images {what}", end=end, file=sys.stderr)

    made = prepare(source, target, test_share, seed, progress)
    train, test = made.parts
    print(f"Wrote {train} training and {test} test images with masks to {target}:")
    for name, (own_train, own_test) in made.classes.items():
        print(f"  {name}: {own_train} training, {own_test} test")
    print(f"The masks of {made.united} images were several files, they are united.")
    if made.together:
        count = sum(map(len, made.together))
        print(f"{count} near-identical images, in {len(made.together)} groups, stay in one part.")
    print(f"What became what: {target / RECORD_FILE}.")
    print(f"Next: python rml_optimization.py --data {shlex.quote(str(target))}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 for a mistake of input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--window" in words[:-1]:  # argparse takes -100,400 for an option
        at = words.index("--window")
        words[at : at + 2] = [f"--window={words[at + 1]}"]
    given = _parser().parse_args(words)
    try:
        if given.command == "demo":
            _demo(given.target, given.images, given.test_images, given.seed)
        elif given.command == "busi":
            _busi(given.source, given.target, given.test_share, given.seed)
        elif given.command in volume_commands.COMMANDS:
            volume_commands.run(given)
        else:
            from trainer.prepare.weights import fetch

            fetch(given.layers)
    except RmlError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
