"""The command line of the kinds of volumes: `python -m trainer.prepare msd SOURCE TARGET` …"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.prepare import recipe_commands
from trainer.prepare.recipe_commands import add_folders, show_progress, tell

IMAGES_AND_LABELS = (("images", "labels"), ("imagesTr", "labelsTr"), ("inputs", "targets"))

LAYOUTS = {
    "msd": "a task of the Medical Segmentation Decathlon (dataset.json, imagesTr, labelsTr)",
    "nnunet": "nnU-Net's raw layout (dataset.json, imagesTr/CASE_0000.nii.gz …, labelsTr)",
    "pairs": "scans and labels as loose files (.nii, .nii.gz, .mha, .mhd, .nrrd, .npy)",
    "dicom": "folders with a DICOM series each, labels as NIfTI beside them (needs pydicom)",
}
"""Layouts that are prepared alike, and what they are."""

PHANTOMS = {
    "msd": "brains of four channels with tumours",
    "nnunet": "the same, with regions and folds",
    "pairs": "abdomens in CT as .nrrd",
    "dicom": "the same as DICOM series",
    "kits19": "kidneys in CT",
    "lits": "livers in CT",
    "brats": "brains in a file a modality",
}
COMMANDS = (*LAYOUTS, "phantoms", *recipe_commands.RUNS)


def add_commands(commands: Any) -> None:
    """Adds the kinds of volumes to the commands of the program."""
    for kind, what in LAYOUTS.items():
        parser = add_folders(commands, kind, f"prepare volumes: {what}")
        _add_shared(parser)
        if kind != "dicom":
            parser.add_argument(
                "--patient",
                metavar="REGEX",
                default="",
                help="what of a case's name is its patient, like '^[^_]+'; empty: all of it",
            )
        if kind == "nnunet":
            parser.add_argument(
                "--fold", type=int, help="of splits_final.json; the first where it is left out"
            )
        if kind in ("pairs", "dicom"):
            parser.add_argument("--label-folder", metavar="DIR", type=Path, help="labels lie there")
        if kind == "pairs":
            parser.add_argument(
                "--image-pattern",
                metavar="NAME",
                default="*",
                help="file names of scans; * is the case",
            )
            parser.add_argument(
                "--label-pattern",
                metavar="NAME",
                default="*",
                help="file names of labels; * is the case",
            )
            parser.add_argument(
                "--modality",
                metavar="NAMES",
                default="",
                help="of each channel, like CT or T1,FLAIR; CT is normalized as a whole set",
            )

    recipe_commands.add_commands(commands)
    text = "make up volumes, in the layout of a published data set: "
    text += "; ".join(f"{kind}: {what}" for kind, what in PHANTOMS.items())
    parser = commands.add_parser(
        "phantoms",
        help="make up volumes, for a first try",
        description=text,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("kind", metavar="KIND", choices=PHANTOMS, help=", ".join(PHANTOMS))
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new or empty folder")
    parser.add_argument("--cases", type=int, default=12, help="how many")
    parser.add_argument("--size", type=int, default=48, help="voxels a side, about")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same volumes")


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--labels",
        metavar="NAME=VALUES",
        action="append",
        default=[],
        help="a class, like 'whole tumour=1,2,3', or a name of the data set; again for each, or "
        "with ; between them; other values that the data set names are background, and those of "
        "'background=4,5'; left out: all",
    )
    add("--split", metavar="T,V,T", default="0.7,0.15,0.15", help="shares of patients")
    add("--seed", type=int, default=0, help="the same seed draws the same split")
    add(
        "--order",
        choices=("seed", "file"),
        default="seed",
        help="file: the split takes cases in the order in which they are listed",
    )
    add(
        "--spacing",
        metavar="MM,MM,MM",
        default="auto",
        help="of all cases, first axis first; auto: derived from them, none: as they come",
    )
    add("--reshape", metavar="D,H,W", default="", help="voxels of all cases, instead of a spacing")
    add(
        "--crop",
        metavar="B:A,B:A,B:A",
        default="",
        help="voxels to take away before and after along each axis, like 0:0,0:0,2:1",
    )
    add("--jobs", type=int, default=0, help="cases at a time; 0: 4, or as many as cores")
    add("--memory-gib", type=float, default=0.0, help="to plan for; 0: that of the GPU or machine")
    add(
        "--with-test",
        action="store_true",
        help="imagesTs too: in test.h5 where they have labels (labelsTs), else in unlabelled.h5",
    )
    add("--skip-bad", action="store_true", help="leave out cases with a fault and tell them")


def run(given: argparse.Namespace) -> None:
    """Runs one of these commands; raises InputError."""
    RUNS.get(given.command, _prepare)(given)


def _phantoms(given: argparse.Namespace) -> None:
    from trainer.prepare.phantoms import make_phantoms

    make_phantoms(given.kind, given.target, given.cases, given.size, given.seed, show_progress)
    print(f"Wrote {given.cases} volumes to {given.target}: {PHANTOMS[given.kind]}.")
    print("They are made up: nothing medical follows.")
    quoted = shlex.quote(str(given.target))
    more = f" --size {given.size * 2 // 3}" if given.kind == "brats" else ""  # they vary
    print(f"Next: python -m trainer.prepare {NEXT.get(given.kind, given.kind)} {quoted} DATA{more}")


def _prepare(given: argparse.Namespace) -> None:
    from trainer.prepare.volumes import Choices, prepare

    for option, number in (("--jobs", given.jobs), ("--memory-gib", given.memory_gib)):
        if number < 0:
            raise InputError(option, f"is {number:g}", "0 or more")
    choices = Choices(
        given.split,
        given.seed,
        given.order == "file",
        given.spacing,
        given.reshape,
        given.crop,
        tuple(one for group in given.labels for one in group.split(";") if one.strip()),
        given.jobs,
        given.memory_gib,
        given.with_test,
        given.skip_bad,
    )
    sources = _sources(given)
    if getattr(given, "patient", "") and all(one.patient == one.name for one in sources.cases):
        found = f"'{given.patient}' finds a patient in no name, like {sources.cases[0].name}"
        raise InputError("--patient", found, "a regular expression that names match")
    made = prepare(sources, given.target, choices, show_progress)
    tell(made, given.target)


def _sources(given: argparse.Namespace) -> Any:
    from trainer.prepare import volume_sources as layouts

    if given.command != "dicom":
        layouts.check_pattern(given.patient, "--patient")
    if given.command == "msd":
        return layouts.msd(given.source, given.patient)
    if given.command == "nnunet":
        return layouts.nnunet(given.source, given.fold, given.patient)
    if given.command == "dicom":
        return layouts.dicom(given.source, given.label_folder)
    images, labels = given.source, given.label_folder or given.source
    if given.label_folder is None:
        for one, other in IMAGES_AND_LABELS:
            if (images / one).is_dir() and (images / other).is_dir():
                images, labels = images / one, images / other
                break
    patterns = (given.image_pattern, given.label_pattern)
    found = layouts.pairs(images, labels, *patterns, given.patient)
    return found._replace(channels=[one for one in given.modality.split(",") if one])


NEXT = {"brats": "brats-slices"}
RUNS: dict[str, Callable[[argparse.Namespace], None]] = {
    "phantoms": _phantoms,
    **recipe_commands.RUNS,
}
