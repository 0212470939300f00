"""Which cases a folder of volumes has, by its layout: Decathlon, nnU-Net, pairs, DICOM.

    sources = msd(Path("Task04_Hippocampus"))
    sources.cases[0].images, sources.cases[0].label, sources.labels

Nothing but names and dataset.json is read here; faults of single cases are collected in `faults`.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.volumes.dicom import import_pydicom, is_dicom
from trainer.data.volumes.preparation import BACKGROUND
from trainer.data.volumes.scans import ACCEPTED, CHANNEL, list_scans, stem_of, suffix_of
from trainer.errors import InputError, joined

MSD_FIX = "python -m trainer.prepare pairs, for scans and labels without a dataset.json"


class Source(NamedTuple):
    """One case. `images` is a file, a file a channel, or a folder with a DICOM series."""

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str
    part: str = ""
    """train, validation or test where the data set says so."""


class Sources(NamedTuple):
    """The cases of a data set and what it says about them.

    `labels` gives the values of each class by its name, `channels` names each channel, both empty
    where the data set does not say it. `faults` are those of cases that are not in `cases`.
    """

    kind: str
    name: str
    cases: list[Source]
    labels: dict[str, tuple[int, ...]]
    channels: list[str]
    unlabelled: list[Source]
    faults: list[InputError]


def _dataset_json(folder: Path, fix: str = "") -> dict[str, Any]:
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise InputError(str(folder), "there is no such folder", "a data set's folder")
    if not path.is_file():
        raise InputError(str(folder), "has no dataset.json", "a data set's folder", fix)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "a JSON file") from None
    if not isinstance(content, dict):
        raise InputError(str(path), "is no JSON object", "a data set's description")
    return content


def _names(content: dict[str, Any], key: str, path: Path) -> list[str]:
    """["MRI"] from {"0": "MRI"}, in the order of the numbers."""
    value = content.get(key)
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}, {key}", "is missing", 'an object like {"0": "CT"}')
    try:
        return [str(value[number]) for number in sorted(value, key=int)]
    except ValueError:
        raise InputError(f"{path}, {key}", f"has the names {list(value)}", "0, 1, …") from None


def _patient(name: str, pattern: str) -> str:
    """What `pattern` finds in the name of a case (its first group, if it has one), else all."""
    match = re.search(pattern, name) if pattern else None
    return (match[1] if match.re.groups else match[0]) if match else name


def check_pattern(pattern: str, option: str) -> None:
    """Raises InputError for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(option, f"'{pattern}' is no regular expression ({error})") from None


def _without_twice(cases: Sequence[Source], what: str) -> tuple[list[Source], list[InputError]]:
    """Cases whose name stands once, and a fault for each that stands twice."""
    counts = Counter(case.name for case in cases)
    faults = [
        InputError(f"{what}, {name}", f"stands there {count} times", "each case once")
        for name, count in counts.items()
        if count > 1
    ]
    return [case for case in cases if counts[case.name] == 1], faults


def present(cases: Sequence[Source]) -> tuple[list[Source], list[InputError]]:
    """Cases whose files are there, and a fault for each of the others."""
    kept, faults = [], []
    for case in cases:
        paths = [*case.images, *([case.label] if case.label else [])]
        missing = [path for path in paths if not path.exists()]
        if missing:
            found = "there is no such file"
            faults.append(InputError(f"{case.name}, {missing[0]}", found, "the file of a case"))
        else:
            kept.append(case)
    return kept, faults


def msd(folder: Path, patient: str = "") -> Sources:
    """A task of the Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr, imagesTs.

    `patient` is a regular expression for the patient in a case's name. Raises InputError for a
    dataset.json that says something else.
    """
    path = folder / "dataset.json"
    content = _dataset_json(folder, MSD_FIX)
    if "channel_names" in content and "training" not in content:
        fix = f"python -m trainer.prepare nnunet {folder} TARGET"
        raise InputError(str(path), "is of nnU-Net's raw layout", "that of the Decathlon", fix)
    training, labels = content.get("training"), content.get("labels")
    if not isinstance(training, list) or not training:
        raise InputError(f"{path}, training", "has no cases", 'a list of {"image", "label"}')
    if not isinstance(labels, dict):
        raise InputError(f"{path}, labels", "is missing", 'an object like {"1": "liver"}')
    cases = []
    for number, entry in enumerate(training):
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            found = f"is {json.dumps(entry)[:80]}"
            raise InputError(f"{path}, training[{number}]", found, '{"image", "label"}')
        image, label = folder / str(entry["image"]), folder / str(entry["label"])
        name = stem_of(image)
        cases.append(Source(name, (image,), label, _patient(name, patient)))
    if labels and all(isinstance(value, int) for value in labels.values()):
        # Some write it the other way round.
        turned = {str(value): name for name, value in labels.items()}
        if len(turned) < len(labels):
            raise InputError(f"{path}, labels", "has a value twice", "a value for each name")
        labels = turned
    try:
        values: dict[str, tuple[int, ...]] = {
            str(name): (int(value),) for value, name in labels.items()
        }
    except (TypeError, ValueError):
        raise InputError(f"{path}, labels", f"has {list(labels)}", "whole numbers") from None
    values = {name: own for name, own in values.items() if own != (0,)}
    if len(values) != len(labels) - ("0" in labels):
        raise InputError(f"{path}, labels", "names two values alike", "a name for each value")
    unlabelled = []
    listed = content.get("test")
    for entry in listed if isinstance(listed, list) else []:
        image = folder / str(entry.get("image") if isinstance(entry, dict) else entry)
        unlabelled.append(Source(stem_of(image), (image,), None, stem_of(image)))
    once, faults = _without_twice(cases, "dataset.json")
    there, more = present(once)
    return Sources(
        "msd",
        str(content.get("name") or folder.resolve().name),
        there,
        values,
        _names(content, "modality", path),
        [case for case in unlabelled if case.images[0].is_file()],
        faults + more,
    )


def nnunet(folder: Path, fold: int | None = None, patient: str = "") -> Sources:
    """nnU-Net's raw layout (version 2): imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz.

    With splits_final.json, the cases of `fold` (0 where None) are train and validation. Raises
    InputError for a dataset.json or a splits file that says something else.
    """
    path = folder / "dataset.json"
    content = _dataset_json(folder)
    key = "channel_names" if "channel_names" in content else "modality"
    channels = _names(content, key, path)
    ending = str(content.get("file_ending", ".nii.gz"))
    labels = _nnunet_labels(content, path)
    parts = _nnunet_parts(folder, fold)
    names = [
        stem_of(one) if suffix_of(one) else one.name.removesuffix(ending)
        for one in sorted((folder / "labelsTr").glob(f"*{ending}"))
        if not one.name.startswith(".")
    ]
    imaged = _channel_names(folder / "imagesTr", ending)
    if not names and not imaged:
        raise InputError(str(folder), f"has no cases with {ending}", "imagesTr and labelsTr")
    faults = [
        InputError(f"{name}, {folder / 'labelsTr' / (name + ending)}", "there is no such file")
        for name in imaged
        if name not in names
    ]
    if unknown := [name for name in parts if name not in {*names, *imaged}]:
        where = f"{folder / 'splits_final.json'}"
        faults += [InputError(f"{where}, {name}", "is no case of labelsTr") for name in unknown]
    cases = [
        Source(
            name,
            _channel_files(folder / "imagesTr", name, len(channels), ending),
            folder / "labelsTr" / f"{name}{ending}",
            _patient(name, patient),
            parts.get(name, ""),
        )
        for name in names
        if not parts or name in parts
    ]
    for name in imaged:
        extra = folder / "imagesTr" / f"{name}_{len(channels):04d}{ending}"
        if extra.exists():
            found = f"has more channels than the {len(channels)} of {key}"
            faults.append(InputError(f"{name}, {extra}", found))
            cases = [case for case in cases if case.name != name]
    there, more = present(cases)
    unlabelled = [
        Source(
            name,
            _channel_files(folder / "imagesTs", name, len(channels), ending),
            truth if (truth := folder / "labelsTs" / f"{name}{ending}").exists() else None,
            _patient(name, patient),
        )
        for name in _channel_names(folder / "imagesTs", ending)
    ]
    name = str(content.get("name") or folder.resolve().name)
    return Sources("nnunet", name, there, labels, channels, unlabelled, faults + more)


def _channel_names(folder: Path, ending: str) -> list[str]:
    """The cases of a folder with CASE_0000 + ending."""
    stems = [one.name.removesuffix(ending) for one in folder.glob(f"*{ending}")]
    matches = [CHANNEL.fullmatch(stem) for stem in stems if not stem.startswith(".")]
    return sorted({match[1] for match in matches if match})


def _channel_files(folder: Path, name: str, count: int, ending: str) -> tuple[Path, ...]:
    return tuple(folder / f"{name}_{channel:04d}{ending}" for channel in range(count))


def _nnunet_labels(content: dict[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Classes by name, larger regions first, so that their parts win."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"{path}, labels", "is missing", 'an object like {"background": 0}')
    if all(str(key).isdigit() for key in labels):  # version 1 had it the other way round
        labels = {str(name): int(value) for value, name in labels.items()}
    found: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, int) for one in values):
            raise InputError(
                f"{path}, labels, {name}", f"is {value!r}", "a whole number or several"
            )
        if name == "ignore":
            fix = "set these voxels to a class, and leave 'ignore' out"
            found_ignore = "has a label 'ignore', which is not supported"
            raise InputError(f"{path}, labels", found_ignore, "classes", fix)
        if values != [0] and name != BACKGROUND:
            found[name] = tuple(values)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _nnunet_parts(folder: Path, fold: int | None) -> dict[str, str]:
    """The part of each case by splits_final.json; empty where there is none."""
    path = folder / "splits_final.json"
    if not path.is_file():
        if fold is not None:
            raise InputError("--fold", f"{folder} has no splits_final.json", "a file of folds")
        return {}
    try:
        folds = json.loads(path.read_text(encoding="utf-8"))
        if fold is not None and fold < 0:
            raise IndexError
        chosen = {key: [str(one) for one in folds[fold or 0][key]] for key in ("train", "val")}
    except IndexError:
        raise InputError("--fold", f"is {fold}", f"0 to {len(folds) - 1}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(str(path), "is no list of folds", '[{"train": [], "val": []}]') from None
    if both := sorted(set(chosen["train"]) & set(chosen["val"])):
        faults = [InputError(name, "is in train and in val", "one part") for name in both]
        raise joined(faults, f"{path}, fold {fold or 0}")
    return {
        **dict.fromkeys(chosen["train"], "train"),
        **dict.fromkeys(chosen["val"], "validation"),
    }


def pairs(
    images: Path, labels: Path, image: str = "*", label: str = "*", patient: str = ""
) -> Sources:
    """Scans and labels by name: two folders, or one with a pattern for each (`*_ct.nii.gz`).

    What `*` stands for is the case; several channels of a scan are CASE_0000, CASE_0001 …. Raises
    InputError where a folder has none.
    """
    one_folder = images.resolve() == labels.resolve()
    if one_folder and "*" in (image, label):
        found = "is given for scans and for labels"
        fix = "--image-pattern '*_ct.nii.gz' --label-pattern '*_seg.nii.gz', or --label-folder"
        raise InputError(str(images), found, "two folders, or a pattern for each", fix)
    for option, pattern in (("--image-pattern", image), ("--label-pattern", label)):
        if pattern.count("*") != 1:
            raise InputError(option, f"is '{pattern}'", "a file name with one *")
    scans = _matched(images, image)
    truths = _matched(labels, label)
    for folder, pattern, found_files in ((images, image, scans), (labels, label, truths)):
        if not found_files:
            raise InputError(str(folder), f"has no file like {pattern}", ACCEPTED)
    if one_folder:
        scans = {
            name: files
            for name, files in scans.items()
            if files[0] not in {one for many in truths.values() for one in many}
        }
    faults = [
        *(
            InputError(f"{name}, {paths[0]}", "has no label")
            for name, paths in scans.items()
            if name not in truths
        ),
        *(
            InputError(f"{name}, {paths[0]}", "has no scan")
            for name, paths in truths.items()
            if name not in scans
        ),
    ]
    if not set(scans) & set(truths):
        found = f"no scan has the name of a label: {next(iter(scans))} … and {next(iter(truths))} …"
        fix = "--image-pattern '*_ct.nii.gz' --label-pattern '*_seg.nii.gz', * is what they share"
        raise InputError(str(images), found, "the same names", fix)
    cases = [
        Source(name, scans[name], truths[name][0], _patient(name, patient))
        for name in sorted(set(scans) & set(truths))
    ]
    return Sources("pairs", images.resolve().name, cases, {}, [], [], faults)


def _matched(folder: Path, pattern: str) -> dict[str, tuple[Path, ...]]:
    """The scans of a folder whose file name is like `pattern`, by what its * stands for."""
    if not folder.is_dir():
        raise InputError(str(folder), "there is no such folder", "a folder of scans")
    if pattern == "*":
        return {files.name: files.paths for files in list_scans(folder)}
    before, after = pattern.split("*")
    found: dict[str, tuple[Path, ...]] = {}
    for one in sorted(folder.iterdir()):
        plain = fnmatch.fnmatchcase(one.name, pattern) and suffix_of(one)
        if plain and not one.name.startswith("."):
            found[one.name.removeprefix(before).removesuffix(after)] = (one,)
    return found


def dicom(
    folder: Path, labels: Path | None = None, progress: Callable[[str], None] = lambda text: None
) -> Sources:
    """A folder with a DICOM series in each sub-folder, at any depth; the patient is PatientID.

    Labels are scans' files (NIfTI …) with the name of the series' folder, in `labels`, or one file
    in the folder itself. Raises InputError where there is no series, and without pydicom.
    """
    pydicom = import_pydicom()
    if not folder.is_dir():
        raise InputError(str(folder), "there is no such folder", "a folder of DICOM series")
    held = {files.name: files.paths[0] for files in list_scans(labels)} if labels else {}
    cases, faults, channels = [], [], set()
    for own in sorted({one.parent for one in folder.rglob("*") if one.is_file() and is_dicom(one)}):
        name = "_".join(own.relative_to(folder).parts) or own.resolve().name
        inside = sorted(one for one in own.iterdir() if suffix_of(one))
        label = held.get(name) or held.get(own.name) or (inside[0] if len(inside) == 1 else None)
        slices = sorted(one for one in own.iterdir() if one.is_file() and is_dicom(one))
        try:
            first = pydicom.dcmread(slices[0], stop_before_pixels=True)
        except Exception as error:  # pydicom raises many kinds for broken files
            faults.append(InputError(f"{name}, {slices[0]}", f"cannot be read ({error})"))
            continue
        channels.add(str(first.get("Modality", "")))
        cases.append(Source(name, (own,), label, str(first.get("PatientID", "")) or name))
    if not cases and not faults:
        raise InputError(str(folder), "has no DICOM files", "a folder of DICOM series")
    labelled = [case for case in cases if case.label]
    if labelled:
        faults += [
            InputError(
                f"{case.name}, {case.images[0]}",
                "has no label",
                "NAME.nii.gz in the folder of --label-folder",
            )
            for case in cases
            if not case.label
        ]
    once, more = _without_twice(labelled or cases, str(folder))
    return Sources(
        "dicom",
        folder.resolve().name,
        once if labelled else [],
        {},
        sorted(channels) if len(channels) == 1 else [],
        [] if labelled else once,
        faults + more,
    )
