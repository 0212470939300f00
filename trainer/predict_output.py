"""The folder that `python -m trainer.predict` writes: predict.json, masks, overlays, probabilities.

    done = check_output(out, source, checksum)      # what is there already, by name
    save_png(out, "masks/a.png", picture)
    write_record(record, out)

What lies in the folder is not trusted: a model's own code may have written it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from trainer.data.masks import Masks
from trainer.errors import InputError, printable
from trainer.events import RUN_FILES
from trainer.files import open_plain, read_text, write_json
from trainer.model import SliceUse
from trainer.predict_sources import IS_A_MASK

RECORD_FILE = "predict.json"
PROBABILITIES_FILE = "predictions.h5"
MASKS, OVERLAYS = "masks", "overlays"
SCHEMA_VERSION = 1
OF_THE_TRAINER = re.compile(r"output_\d+\.(h5|png)|.+_predictions\.(npy|png)")
"""What a configuration's predictions leave in a folder; they do not disturb."""

MOST_LINES = 10
Kind = Literal["images", "scans", "slices"]
WHAT: dict[Kind, str] = {"images": "images", "scans": "scans", "slices": "arrays or scans"}
"""What one of a kind is called, in the plural."""


class Done(BaseModel):
    """What predict.json says of an image that is done."""

    name: str
    sha256: str
    mask: str
    overlay: str
    size: tuple[int, ...]
    pixels: dict[str, int]
    odd: list[str]
    new: bool = True


class Skipped(BaseModel):
    """An image, or another file, that was passed over."""

    name: str
    reason: str


class Record(BaseModel):
    """predict.json. `mask_values` says what a written mask holds for each class."""

    schema_version: int = SCHEMA_VERSION
    model: str
    source: str
    classes: list[str]
    mask_values: dict[str, int | str]
    mirror: bool = False
    kind: Kind = "images"
    slices: SliceUse | None = None
    """Of a model of slices: what it takes, and finds."""
    images: list[Done] = []
    skipped: list[Skipped] = []


def check_output(
    out: Path, source: Path, model: str, besides: Sequence[str] = RUN_FILES
) -> dict[str, Done]:
    """The images that are done already, by name; raises InputError where `out` holds other things.

    `model` is the checkpoint's checksum; files named in `besides` do not disturb. Makes the folder.
    """
    fix = "name another folder with --out"
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "is not a folder", fix=fix)
    if out.resolve() == source.resolve():
        raise InputError(str(out), "is the folder of the images", fix=fix)
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in out.iterdir())
    except OSError as error:
        found = f"cannot be a folder for results ({error.strerror})"
        raise InputError(str(out), found, fix=fix) from None
    there = [n for n in names if n not in besides and not OF_THE_TRAINER.fullmatch(n)]
    if not there:
        return {}
    try:
        record = Record.model_validate_json(read_text(out / RECORD_FILE))
    except FileNotFoundError:
        raise InputError(str(out), f"holds other things: {', '.join(there[:5])}", fix=fix) from None
    except (OSError, ValidationError):
        found = "is no record of predictions"
        raise InputError(str(out / RECORD_FILE), found, fix=fix) from None
    if record.model != model or record.source != str(source.resolve()):
        found = f"holds the predictions of {record.source} by model {record.model[:12]}"
        raise InputError(str(out), found, fix=f"{fix}, or remove it")
    for folder in (MASKS, OVERLAYS):
        if (out / folder).is_symlink():
            raise InputError(str(out / folder), "is a link", "a folder", "remove it")
    return {image.name: image for image in record.images}


def png_names(images: Sequence[str]) -> dict[str, str]:
    """The PNG for each image: its name with .png; where several would share one, suffix and all."""
    plain = {name: str(Path(name).with_suffix(".png")) for name in images}
    shared = Counter(plain.values())
    names = {
        name: png if shared[png] == 1 or name == png else f"{name}.png"
        for name, png in plain.items()
    }
    taken = Counter(names.values())
    for name, png in names.items():  # a.png, a.bmp and a.bmp.png
        if taken[png] > 1 and png != plain[name]:
            names[name] = f"{name}.mask.png"
    return names


def subfolder(out: Path, place: str) -> Path:
    """The folder of `place` below `out`, made where it is missing, reached through no link."""
    folder = out
    for part in Path(place).parent.parts:
        folder = folder / part
        if folder.is_symlink():
            raise InputError(str(folder), "is a link", "a folder", "remove it")
        folder.mkdir(exist_ok=True)
    return folder


def save_png(out: Path, place: str, picture: Any) -> None:
    """Writes a picture at `place` below `out`, beside and renamed, through no link."""
    folder = subfolder(out, place)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as file:
        beside = Path(file.name)
        try:
            picture.save(file, format="PNG")
            file.close()
            beside.chmod(0o666 & ~_umask())
            os.replace(beside, out / place)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def open_probabilities(
    out: Path, source: Path, masks: Masks | None, keep: set[str]
) -> Iterator[Any]:
    """predictions.h5, open to be written: beside and renamed at the end; images in `keep` stay."""
    import h5py

    from trainer.cases import image_names

    beside = out / f".{PROBABILITIES_FILE}.{os.getpid()}"
    beside.unlink(missing_ok=True)
    with beside.open("xb") as target:
        if keep and (out / PROBABILITIES_FILE).exists():
            with open_plain(out / PROBABILITIES_FILE) as before:
                while block := before.read(1 << 20):
                    target.write(block)
    try:
        with h5py.File(beside, "a" if beside.stat().st_size else "w") as file:
            for name in image_names(file):
                if name not in keep:
                    del file[name]
            inputs = source if source.is_dir() else source.parent
            file.attrs["inputs"], file.attrs["targets"] = str(inputs.resolve()), ""
            file.attrs["threshold"] = 0.5
            if masks:
                file.attrs["masks"] = masks.model_dump_json()
            yield file
        os.replace(beside, out / PROBABILITIES_FILE)
    finally:
        beside.unlink(missing_ok=True)


def write_record(record: Record, out: Path) -> None:
    """Writes predict.json."""
    write_json(out / RECORD_FILE, record.model_dump(mode="json"))


def mask_values(masks: Masks | None) -> dict[str, int | str]:
    """What a written mask holds for each class: the values or colours of the masks in training."""
    if masks and masks.classes:
        return {one.name: one.shown for one in masks.classes}
    return {"background": 0, "foreground": 255}


def read_record(out: Path) -> Record:
    """predict.json of a run that ended; raises InputError where it is none."""
    try:
        return Record.model_validate(json.loads(read_text(out / RECORD_FILE)))
    except (OSError, ValueError) as error:
        raise InputError(str(out / RECORD_FILE), f"cannot be read ({error})") from None


def told(record: Record, out: Path) -> Iterator[str]:
    """What people read of a record, line by line: how many, which are odd or were passed over."""
    images = record.images
    new = sum(image.new for image in images)
    before = f" ({new} new, {len(images) - new} done before)" if new < len(images) else ""
    values = ", ".join(f"{name} {value}" for name, value in record.mask_values.items())
    done = f"{len(images)} {WHAT[record.kind]} predicted{before} in {out}: "
    if record.kind == "slices":
        yield f"{done}NAME_predictions.npy (probabilities by slice), "
        yield f"{MASKS}/ (labels of raw scans: {values}), {RECORD_FILE} (what was done)"
    else:
        yield f"{done}{MASKS}/ ({values}), {OVERLAYS}/, "
        yield f"{PROBABILITIES_FILE} (probabilities), {RECORD_FILE} (what was done)"
    masks = sum(one.reason.startswith(IS_A_MASK) for one in record.skipped)
    if masks:
        yield f"passed over: {masks} masks that lie beside their images"
    odd = [f"odd: {one.name}: {'; '.join(one.odd)}" for one in images if one.odd]
    others = [one for one in record.skipped if not one.reason.startswith(IS_A_MASK)]
    over = [f"passed over: {one.name}: {one.reason}" for one in others]
    for lines, what in ((odd, "odd"), (over, "passed over")):
        yield from map(printable, lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            yield f"… {len(lines)} {WHAT[record.kind]} are {what}; all of them: {out / RECORD_FILE}"
