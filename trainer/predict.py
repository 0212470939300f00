"""Masks, overlays and probabilities for a folder of images, with a trained model and no masks.

    from trainer.predict import load_model
    mask = load_model("best_model").predict(array)      # (H, W) uint8: the class of each pixel

    python -m trainer.predict FOLDER --model best_model --out predictions

A model of volumes predicts scans instead: files (NIfTI, MetaImage, NRRD, numpy) or folders of DICOM
series, each written as a file of labels with the scan's own voxels.

Images that cannot be read are named and passed over. A second run with the same model and folder
does what is new or has changed. What lies in the output folder is not trusted: a model's own code
may have written it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ValidationError

from trainer.data.folders import MASK_NAME, SUFFIXES, files_below
from trainer.data.images import image_array, open_image
from trainer.data.labels import written
from trainer.data.masks import Masks
from trainer.data.volumes.planes import grey, middle, three_planes
from trainer.data.volumes.scans import SUFFIXES as SCAN_SUFFIXES
from trainer.data.volumes.scans import list_scans, read_scan, write_label
from trainer.errors import InputError, printable
from trainer.events import METRICS_FILE, RUN_FILES, EventLog
from trainer.files import open_plain, read_text, write_json
from trainer.model import Model, SliceUse, load_model, model_file
from trainer.networks.weights import sha256
from trainer.overlay import overlay
from trainer.stopping import StopRequest

__all__ = ["load_model", "predict_folder"]

RECORD_FILE = "predict.json"
PROBABILITIES_FILE = "predictions.h5"
MASKS, OVERLAYS = "masks", "overlays"
SCHEMA_VERSION = 1
OF_THE_TRAINER = re.compile(r"output_\d+\.(h5|png)")
"""What a configuration's predictions leave in a folder; they do not disturb."""

Files = tuple[Path, ...]
"""What one image or scan is read from: a file, a file a channel, or a folder of DICOM files."""

MOST_LINES = 10
IS_A_MASK = "this is a mask of"
BEYOND = 0.25
"""An image is odd whose brightness or contrast lies this share of the range outside of it."""


# ---- what there is to do ----


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
    kind: Literal["images", "scans", "slices"] = "images"
    slices: SliceUse | None = None
    images: list[Done] = []
    skipped: list[Skipped] = []


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
            skipped[name] = f"{IS_A_MASK} {mask[1]}"
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


def check_source(source: Path, out: Path) -> None:
    """Raises InputError where there is neither an image nor a scan; the model says which it takes.

    Nothing is read, and no torch is needed.
    """
    if source.is_dir() and next(source.rglob("*_t1.nii*"), None):
        return  # scans of BraTS, below
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


def oddities(image: Any, model: Model) -> list[str]:
    """In which ways a PIL image is unlike those that the model was trained on."""
    odd = []
    width, height = image.size
    if model.size and (width < model.size[0] // 2 or height < model.size[1] // 2):
        odd.append(f"{width}x{height} pixels, the network sees {model.size[0]}x{model.size[1]}")
    seen = model.use.images
    if not seen:
        return odd
    if seen.grey and (np.ptp(np.asarray(image.convert("RGB")), axis=2) > 0).any():
        odd.append("it has colour, the model was trained on grey images")
    pixels = image_array(image, model.network.description.in_channels, model.size)
    for name, value, (low, high) in (
        ("brightness", float(pixels.mean()), seen.brightness),
        ("contrast", float(pixels.std()), seen.contrast),
    ):
        margin = BEYOND * (high - low)
        if not low - margin <= value <= high + margin:
            odd.append(f"{name} {value:.0f}, in training {low:.0f} to {high:.0f}")
    return odd


# ---- doing it ----


@dataclass
class Work:
    """Predicting one folder: what is done, what was passed over."""

    model: Model
    out: Path
    probabilities: Any
    before: dict[str, Done]
    mirror: bool = False
    done: dict[str, Done] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def one(self, name: str, paths: Files, png: str) -> None:
        """Predicts an image, unless it is done already; what cannot be read is passed over."""
        path = paths[0]
        try:
            digest = _digest(paths)
            known = self.before.get(name)
            if known and known.sha256 == digest and self._is_there(name, png):
                self.done[name] = known.model_copy(update={"new": False})
            else:
                predict = self._predict_scan if self.model.use.volumes else self._predict
                self.done[name] = predict(name, paths, png, digest)
        except InputError as error:
            self.skipped[name] = " ".join(str(error).replace(f"{path}: ", "").split())
        except OSError as error:
            if error.filename is None or Path(error.filename) != path:
                raise
            self.skipped[name] = error.strerror or "cannot be read"

    def _is_there(self, name: str, png: str) -> bool:
        known = self.before[name]
        files = [self.out / place for place in (known.mask, known.overlay)]
        plain = all(file.is_file() and not file.is_symlink() for file in files)
        return plain and name in self.probabilities

    def _predict_scan(self, name: str, paths: Files, png: str, digest: str) -> Done:
        scan = read_scan(paths if len(paths) > 1 else paths[0])
        found = self.model.predict_scan(scan, self.mirror)
        values = np.array([value for _, value in self.model.label_values], np.int32)
        values = values.astype(np.uint8) if values.max() < 256 else values.astype(np.int16)
        _folder(self.out, f"{MASKS}/{name}")
        label = values[found.classes]
        written_to = write_label(self.out / MASKS / name, label, scan.grid, paths[0])
        at = middle(found.classes, scan.grid.shape)
        picture = three_planes(grey(scan.array[0]), found.classes, at, scan.grid.spacing_mm)
        _save_png(self.out, f"{OVERLAYS}/{png}", Image.fromarray(picture))
        if name in self.probabilities:
            del self.probabilities[name]
        data = found.probabilities.astype(np.float16)
        dataset = self.probabilities.create_dataset(name, data=data)
        dataset.attrs["affine"] = found.field.affine
        counts = np.bincount(found.classes.ravel(), minlength=len(self.model.classes))
        return Done(
            name=name,
            sha256=digest,
            mask=f"{MASKS}/{written_to.name}",
            overlay=f"{OVERLAYS}/{png}",
            size=scan.grid.shape,
            pixels=dict(zip(self.model.classes, counts.tolist(), strict=True)),
            odd=[],
        )

    def _predict(self, name: str, paths: Files, png: str, digest: str) -> Done:
        image = open_image(paths[0])
        odd = oddities(image, self.model)
        rgb = np.asarray(image.convert("RGB"))
        grey = image.mode in ("1", "L", "LA")
        array = np.asarray(image.convert("L")) if grey else rgb
        classes, found = self.model.predict_with_probabilities(array)
        masks = self.model.masks
        mask = Image.fromarray(np.where(classes > 0, 255, 0).astype(np.uint8))
        if masks and masks.classes:
            mask = written(classes, masks.classes)
        _save_png(self.out, f"{MASKS}/{png}", mask)
        _save_png(self.out, f"{OVERLAYS}/{png}", Image.fromarray(overlay(rgb, classes)))
        if name in self.probabilities:
            del self.probabilities[name]
        self.probabilities.create_dataset(name, data=found)
        counts = np.bincount(classes.ravel(), minlength=len(self.model.classes))
        return Done(
            name=name,
            sha256=digest,
            mask=f"{MASKS}/{png}",
            overlay=f"{OVERLAYS}/{png}",
            size=image.size,
            pixels=dict(zip(self.model.classes, counts.tolist(), strict=True)),
            odd=odd,
        )


def _digest(paths: Files) -> str:
    """Of all that one image is read from."""
    files = [
        file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])
    ]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                while block := opened.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def _folder(out: Path, place: str) -> Path:
    """The folder of `place` below `out`, made where it is missing, reached through no link."""
    folder = out
    for part in Path(place).parent.parts:
        folder = folder / part
        if folder.is_symlink():
            raise InputError(str(folder), "is a link", "a folder", "remove it")
        folder.mkdir(exist_ok=True)
    return folder


def _save_png(out: Path, place: str, picture: Any) -> None:
    """Writes a picture at `place` below `out`, beside and renamed, through no link."""
    folder = _folder(out, place)
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
def _probabilities(out: Path, source: Path, model: Model, keep: set[str]) -> Iterator[Any]:
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
            if model.masks:
                file.attrs["masks"] = model.masks.model_dump_json()
            yield file
        os.replace(beside, out / PROBABILITIES_FILE)
    finally:
        beside.unlink(missing_ok=True)


def predict_folder(
    source: Path,
    model_path: Path,
    out: Path,
    device: str = "auto",
    trust_code: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    stop: StopRequest | None = None,
    mirror: bool = False,
) -> Record:
    """Predicts every image of `source` into `out`; what predict.json then holds.

    `progress(done, total, name)` is called after each image. Raises InputError where nothing can
    be predicted at all, or `out` holds other things; Stopped where `stop` was asked: what was done
    until then stays, and the next run goes on.
    """
    stop = stop or StopRequest()
    file = model_file(model_path)
    checksum = sha256(file)
    check_source(source, out)
    before = check_output(out, source, checksum)
    model = load_model(file, device, trust_code=trust_code)
    if model.use.slices:
        return _predict_slices(model, checksum, source, out, progress, stop)
    if model.use.volumes:
        channels = (
            None if model.use.volumes.preparation.channels else len(model.use.volumes.channels)
        )
        images, skipped = list_scan_source(source, out, channels)
    else:
        images, skipped = list_source(source, out)
    if before and read_record(out).mirror != mirror:
        before = {}  # all anew, in the other way
    before = {name: one for name, one in before.items() if name in images}
    record = Record(
        model=checksum,
        source=str(source.resolve()),
        classes=model.classes,
        mask_values=dict(model.label_values) if model.use.volumes else mask_values(model.masks),
        mirror=mirror,
        images=list(before.values()),
    )
    _write(record, out)  # the folder is known as ours, whatever happens
    names = png_names(list(images))
    with _probabilities(out, source, model, keep=set(before)) as probabilities:
        work = Work(model, out, probabilities, before, mirror, skipped=skipped)
        for number, (name, paths) in enumerate(images.items(), start=1):
            if stop.asked():
                work.done |= {n: one for n, one in before.items() if n not in work.done}
                break
            work.one(name, paths, names[name])
            progress(number, len(images), name)
    if not work.done:
        for left in (RECORD_FILE, PROBABILITIES_FILE):
            (out / left).unlink()
        stop.check()
        reasons = "\n".join(f"- {name}: {why}" for name, why in list(work.skipped.items())[:10])
        raise InputError(str(source), f"no image could be predicted\n{reasons}")
    record.images = list(work.done.values())
    record.skipped = [Skipped(name=n, reason=why) for n, why in sorted(work.skipped.items())]
    _write(record, out)
    stop.check()
    return record


def _predict_slices(
    model: Model,
    checksum: str,
    source: Path,
    out: Path,
    progress: Callable[[int, int, str], None],
    stop: StopRequest,
) -> Record:
    """With a model of slices: .npy files, or raw scans."""
    from trainer.predict_slices import predict_slices

    values: dict[str, int | str] = {"background": 0, "target": 1}
    record = Record(
        model=checksum,
        source=str(source.resolve()),
        classes=list(values),
        mask_values=values,
        kind="slices",
        slices=model.use.slices,
    )
    _write(record, out)
    for one in predict_slices(model, source, out, progress, stop.check):
        total = int(np.prod(one.shape))
        done = Done(
            name=one.name,
            sha256="",
            mask=str(one.label.relative_to(out)) if one.label else one.array.name,
            overlay="",
            size=one.shape,
            pixels={"background": total - one.voxels, "target": one.voxels},
            odd=[],
        )
        record.images.append(done)
    _write(record, out)
    return record


def _write(record: Record, out: Path) -> None:
    write_json(out / RECORD_FILE, record.model_dump(mode="json"))


def mask_values(masks: Masks | None) -> dict[str, int | str]:
    """What a written mask holds for each class: the values or colours of the masks in training."""
    if masks and masks.classes:
        return {one.name: one.shown for one in masks.classes}
    return {"background": 0, "foreground": 255}


# ---- the command line ----


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
    if record.kind == "slices":
        yield f"{len(images)} predicted in {out}: NAME_predictions.npy (probabilities by slice), "
        yield f"{MASKS}/ (labels of raw scans: {values}), {RECORD_FILE} (what was done)"
        return
    what = "scans" if images and len(images[0].size) == 3 else "images"
    yield f"{len(images)} {what} predicted{before} in {out}: {MASKS}/ ({values}), {OVERLAYS}/, "
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
            yield f"… {len(lines)} images are {what}; all of them: {out / RECORD_FILE}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.predict", description="Predicts masks for images, with a model."
    )
    parser.add_argument("source", metavar="FOLDER", type=Path, help="images or scans (or one)")
    parser.add_argument("--model", type=Path, default=Path("best_model"), help="best_model/ or .pt")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder for results")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps")
    mirror = "scans: the mean over all mirror images; slower, often a little better"
    parser.add_argument("--mirror", action="store_true", help=mirror)
    parser.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
    trust = "run the Python file of a model whose network is somebody's own"
    parser.add_argument("--trust-code", action="store_true", help=trust)
    inside = "for launchers: the working directory is a run folder, and --out"
    parser.add_argument("--in-run-folder", action="store_true", help=inside)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code: 0, or that of an error (see trainer/errors.py)."""
    from trainer.__main__ import limit_threads, translated

    given = _parser().parse_args(arguments)
    events, stop = EventLog(None), StopRequest()
    stop.on_signals()
    try:
        limit_threads(given.threads)
        if given.in_run_folder:
            events = EventLog(Path(METRICS_FILE))

        def progress(done: int, total: int, name: str) -> None:
            events.write("image", done=done, images=total, name=name)
            if sys.stderr.isatty():
                end = "\n" if done == total else ""
                print(f"\r{done} of {total} images", end=end, file=sys.stderr)

        record = predict_folder(
            given.source,
            given.model,
            given.out,
            given.device,
            given.trust_code,
            progress,
            stop,
            given.mirror,
        )
    except Exception as error:
        known = translated(error)
        if known is None:
            raise
        print(f"Error: {known}", file=sys.stderr)
        events.write("end", reason=str(known), exit_code=known.exit_code)
        return known.exit_code
    for line in told(record, given.out):
        print(line)
    events.write("end", reason="done", exit_code=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
