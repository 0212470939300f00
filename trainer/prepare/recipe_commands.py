"""The command line of the published recipes: `python -m trainer.prepare kits19 SOURCE TARGET` …"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError, printable

if TYPE_CHECKING:
    from trainer.prepare.volume_sources import Source
    from trainer.prepare.volumes import Prepared


def add_folders(commands: Any, kind: str, text: str) -> argparse.ArgumentParser:
    """A command that reads SOURCE and writes TARGET."""
    parser: argparse.ArgumentParser = commands.add_parser(
        kind, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the data set's folder")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new or empty folder")
    return parser


def show_progress(what: str, done: int, total: int) -> None:
    """One line on a terminal, written over and over."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} cases {what}", end=end, file=sys.stderr, flush=True)


def tell(made: Prepared, target: Path) -> None:
    """Prints what was written, and what is next."""
    told = ", ".join(f"{count} {part}" for part, count in made.parts.items())
    print(f"Wrote {told} cases to {target}.")
    for note in made.notes:
        print(printable(note))
    preparation, data = made.plan.preparation, made.plan.config["neural_network"]["data"]
    size = "x".join(map(str, data["patches"]["size"]))
    if preparation.spacing_mm:
        spacing = " x ".join(f"{mm:.4g}" for mm in preparation.spacing_mm)
        print(f"Spacing: {spacing} mm.")
    print(f"Classes: {', '.join(preparation.classes)}.")
    print(f"Planned: crops of {size}, {data['batch_size']} in a batch (config.json, layers.json).")
    if "validation" not in made.parts:
        print("No case is set aside to choose on: a study needs a --split with a validation share.")
        return
    print(f"Next: python rml_optimization.py --data {shlex.quote(str(target))}")


def add_commands(commands: Any) -> None:
    """Adds the recipes to the commands of the program."""
    _add_kits19(commands)
    _add_lits(commands)
    _add_brats_slices(commands)


def _add_kits19(commands: Any) -> None:
    text = (
        "prepare KiTS19 as MLPerf's U-Net3D has it: 1.6 x 1.2 x 1.2 mm, the published 168 and 42 "
    )
    add = add_folders(commands, "kits19", text + "cases").add_argument
    add(
        "--mode",
        choices=("preprocess", "verify"),
        default="preprocess",
        help="verify: compare the .npy files of TARGET with --checksums and write nothing",
    )
    add("--npy", action="store_true", help="write the published .npy files and checksum.json too")
    add(
        "--checksums",
        metavar="FILE",
        type=Path,
        help="JSON with the MD5 of each .npy file, that those written are compared with",
    )
    add("--split", metavar="T,V,T", default="", help="shares, instead of the published cases")
    add("--seed", type=int, default=0, help="for --split")
    add("--jobs", type=int, default=0, help="cases at a time; 0: 4, or as many as cores")
    add("--memory-gib", type=float, default=0.0, help="to plan for; 0: that of the GPU or machine")
    add("--skip-bad", action="store_true", help="leave out cases with a fault and tell them")


def _kits19(given: argparse.Namespace) -> None:
    from trainer.prepare import kits19
    from trainer.prepare.volumes import Choices, prepare

    if given.mode == "verify":
        folder = given.target / "npy" if (given.target / "npy").is_dir() else given.target
        right = kits19.verify(folder, given.checksums or folder / kits19.CHECKSUMS)
        print(f"All {right} files of {folder} have the right MD5.")
        return
    if given.checksums and not given.npy:
        raise InputError("--checksums", "is of .npy files", fix="add --npy")
    medians: dict[str, float] = {}

    def arrays(folder: Path, cases: Sequence[Source]) -> None:
        if given.npy:
            medians.update(kits19.write_arrays(cases, folder / "npy", jobs, show_progress))
            if given.checksums:
                kits19.verify(folder / "npy", given.checksums)

    choices = Choices(
        split=given.split or Choices().split,
        seed=given.seed,
        spacing=",".join(map(str, kits19.SPACING_MM)),
        jobs=given.jobs,
        memory_gib=given.memory_gib,
        skip_bad=given.skip_bad,
    )
    jobs = given.jobs or 1
    found = kits19.sources(given.source, published_split=not given.split)
    made = prepare(found, given.target, choices, show_progress, kits19.RECIPE, arrays)
    if given.npy:
        told = ", ".join(f"{name} {value:.5g}" for name, value in medians.items())
        print(f"Wrote .npy files to {given.target / 'npy'}; medians: {told}.")
        if given.checksums:
            print(f"They have the MD5 of {given.checksums}.")
    tell(made, given.target)


def _add_lits(commands: Any) -> None:
    text = "prepare LiTS as TensorFlow's 3D U-Net has it: cubes around the liver"
    add = add_folders(commands, "lits", text).add_argument
    add("--size", type=int, default=128, help="voxels a side of a crop")
    add("--resize", type=int, default=192, help="voxels a side of a whole volume")
    add("--whole", action="store_true", help="crops of the whole volume, not around the liver")
    add(
        "--augment",
        action="store_true",
        help="brightness times 0.9 to 1.1; with --whole 2 crops at each of 27 places, not one",
    )
    add(
        "--window",
        metavar="LOW,HIGH",
        default="",
        help="Hounsfield units that become 0 and 1, like -100,400; the published data keep theirs",
    )
    add("--split", metavar="T,V,T", default="0.764,0.236,0", help="shares of volumes: 100 and 31")
    add("--seed", type=int, default=0, help="of the split and of the crops")
    add("--shard-start", type=int, default=0, help="the first number of this shard")
    add("--shard-stride", type=int, default=1, help="shards in all; each is a run of its own")
    add("--npy", action="store_true", help="write each crop as .npy files too")
    add("--one-hot", action="store_true", help="with --npy: labels have a channel a class")
    add("--jobs", type=int, default=0, help="volumes that are checked at a time; 0: one")
    add("--memory-gib", type=float, default=0.0, help="to plan for; 0: that of the GPU or machine")
    add("--skip-bad", action="store_true", help="leave out volumes with a fault and tell them")


def _window(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError("--window", f"is '{text}'", "two numbers like -100,400") from None
    return low, high


def _lits(given: argparse.Namespace) -> None:
    from trainer.prepare import lits

    choices = lits.Choices(
        given.size,
        given.resize,
        not given.whole,
        given.augment,
        _window(given.window),
        given.split,
        given.seed,
        given.shard_start,
        given.shard_stride,
        given.npy,
        given.one_hot,
        given.jobs,
        given.memory_gib,
        given.skip_bad,
    )
    made = lits.prepare(given.source, given.target, choices, show_progress)
    told = ", ".join(f"{count} {part}" for part, count in made.crops.items()) or "no"
    print(f"Wrote {told} crops to {given.target}.")
    for note in made.notes:
        print(printable(note))
    if given.shard_stride == 1:
        print(f"Next: python rml_optimization.py --data {shlex.quote(str(given.target))}")


def _add_brats_slices(commands: Any) -> None:
    text = "prepare BraTS as slices of four modalities for a 2D U-Net, as Intel's has them"
    add = add_folders(commands, "brats-slices", text).add_argument
    add("--size", type=int, default=128, help="pixels a side; 240: slices are not cropped")
    add(
        "--train-share",
        type=float,
        help="of the slices; the rest is for test; left out: 0.85, with --ids 0.8",
    )
    add(
        "--split-by",
        choices=("patient", "slice"),
        default="patient",
        help="slice: as published, where brains are in both parts",
    )
    add("--seed", type=int, default=0, help="the same seed draws the same split")
    add("--dtype", choices=("float32", "float64"), default="float32", help="float64: as published")
    add("--ids", metavar="SCAN,SCAN", default="", help="single brains, a folder each")
    add("--jobs", type=int, default=0, help="scans that are checked at a time; 0: one")
    add("--skip-bad", action="store_true", help="leave out scans with a fault and tell them")


def _brats_slices(given: argparse.Namespace) -> None:
    from trainer.prepare import brats_slices

    choices = brats_slices.Choices(
        given.size,
        given.train_share,
        given.split_by,
        given.seed,
        given.dtype,
        tuple(name.strip() for name in given.ids.split(",") if name.strip()),
        given.jobs,
        given.skip_bad,
    )
    made = brats_slices.prepare(given.source, given.target, choices, show_progress)
    told = ", ".join(f"{count} {part}" for part, count in made.slices.items())
    print(f"Wrote {told} slices to {given.target}.")
    for note in made.notes:
        print(printable(note))
    place = given.target / choices.ids[0] if choices.ids else given.target
    print(f"Next: python rml_optimization.py --data {shlex.quote(str(place))}")


RUNS: dict[str, Callable[[argparse.Namespace], None]] = {
    "kits19": _kits19,
    "lits": _lits,
    "brats-slices": _brats_slices,
}
