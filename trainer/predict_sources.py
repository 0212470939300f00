"""What there is to predict: the images of a folder, or its scans, by name; nothing is read yet."""

from __future__ import annotations

from pathlib import Path

from trainer.data.folders import MASK_NAME, SUFFIXES, files_below
from trainer.data.volumes.scans import SUFFIXES as SCAN_SUFFIXES
from trainer.data.volumes.scans import list_scans
from trainer.errors import InputError

Files = tuple[Path, ...]
"""What one image or scan is read from: a file, a file a channel, or a folder of DICOM files."""

IS_A_MASK = "this is a mask"
PREDICTIONS, SLICE_MASKS = "_predictions", "msks_"
"""What names of arrays end or begin with that are no inputs."""


def list_source(source: Path, out: Path) -> tuple[dict[str, Files], dict[str, str]]:
    """Images of a folder with its subfolders (or one image) by name, and what is none, with why.

    What lies in `out` does not count. Raises InputError where there is no image.
    """
    if source.is_file():
        return {source.name: (source,)}, {}
    if not source.is_dir():
        raise InputError(str(source), "there is no such folder or image", "images to predict")
    own, found = out.resolve(), list(files_below(source))
    if own != source.resolve():
        found = [path for path in found if own not in path.resolve().parents]
    files = {path.relative_to(source).as_posix(): path for path in found}
    stems = {path.with_suffix("") for path in found}
    images: dict[str, Files] = {}
    skipped: dict[str, str] = {}
    for name, path in files.items():
        mask = MASK_NAME.fullmatch(path.stem)
        if path.suffix.lower() not in SUFFIXES:
            skipped[name] = "this is not an image (" + ", ".join(SUFFIXES) + ")"
        elif mask and path.with_name(mask[1]) in stems:
            skipped[name] = f"{IS_A_MASK} of {mask[1]}"
        elif path.exists() and not path.is_file():
            skipped[name] = "this is no plain file"
        elif not _is_text(name):
            skipped[ascii(name)] = "its name is no UTF-8"
        else:
            images[name] = (path,)
    if not images:
        raise InputError(str(source), "there is no image", ", ".join(SUFFIXES))
    return images, skipped


def list_scan_source(
    source: Path, out: Path, channels: int | None
) -> tuple[dict[str, Files], dict[str, str]]:
    """The same for scans: by name, and what was passed over, with why.

    `channels` are those of the model. Raises InputError where there is no scan, or two have one
    name.
    """
    found = list_scans(source, channels)
    scans = {one.name: one.paths for one in found if _is_text(one.name)}
    skipped = {ascii(one.name): "its name is no UTF-8" for one in found if one.name not in scans}
    if source.is_dir():
        taken = {path for one in found for path in one.paths}
        for path in sorted(source.iterdir()):
            within = any(path == one or path in one.parents for one in taken)
            voxels_of = path.with_suffix(".mhd")  # a header that names this file
            within = within or voxels_of in taken
            if not within and source not in taken and path.resolve() != out.resolve():
                skipped[path.name] = f"this is no scan ({', '.join(SCAN_SUFFIXES)})"
    return scans, skipped


def list_slice_source(source: Path) -> tuple[dict[str, Files], dict[str, str]]:
    """The same for slices: arrays (.npy), or where there are none the scans of BraTS below, a file
    a modality. Masks and predictions are no inputs. Raises InputError where there is neither."""
    from trainer.prepare.brats_slices import find_scans

    files = [source] if source.is_file() else sorted(source.glob("*.npy"))
    arrays = [one for one in files if one.suffix == ".npy" and not one.stem.endswith(PREDICTIONS)]
    inputs: dict[str, Files] = {
        one.stem: (one,) for one in arrays if not one.stem.startswith(SLICE_MASKS)
    }
    skipped = {one.name: IS_A_MASK for one in arrays if one.stem not in inputs}
    if not inputs:
        inputs, skipped = find_scans(source)
    for name in [name for name in inputs if not _is_text(name)]:
        skipped[ascii(name)] = "its name is no UTF-8"
        del inputs[name]
    return inputs, skipped


def check_source(source: Path, out: Path) -> None:
    """Raises InputError where there is neither an image nor a scan; the model says which it takes.

    Nothing is read, and no torch is needed.
    """
    from trainer.prepare.brats_slices import holds_scans

    if source.is_dir() and holds_scans(source):
        return
    try:
        list_source(source, out)
    except InputError as error:
        try:
            list_scans(source)
        except InputError as other:
            if not source.exists():
                raise error from None
            accepted = f"{error.accepted}; {other.accepted}"
            raise InputError(str(source), "there is no image and no scan", accepted) from None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
