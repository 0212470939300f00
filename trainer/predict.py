"""Masks, overlays and probabilities for a folder of images, with a trained model and no masks.

    from trainer.predict import load_model
    mask = load_model("best_model").predict(array)      # (H, W) uint8: the class of each pixel

    python -m trainer.predict FOLDER --model best_model --out predictions

A model of volumes predicts scans instead: files (NIfTI, MetaImage, NRRD, numpy) or folders of DICOM
series, each written as a file of labels with the scan's own voxels. A model of slices predicts
arrays (.npy), or scans of BraTS.

Images that cannot be read are named and passed over. A second run with the same model and folder
does what is new or has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.data.images import image_array, open_image
from trainer.data.labels import written
from trainer.data.volumes.planes import grey, middle, three_planes
from trainer.data.volumes.scans import read_scan, write_label
from trainer.errors import InputError, Stopped
from trainer.events import METRICS_FILE, EventLog
from trainer.model import Model, load_model, model_file
from trainer.networks.weights import sha256
from trainer.overlay import overlay
from trainer.predict_output import (
    MASKS,
    OVERLAYS,
    PROBABILITIES_FILE,
    RECORD_FILE,
    Done,
    Kind,
    Record,
    Skipped,
    check_output,
    mask_values,
    open_probabilities,
    png_names,
    read_record,
    save_png,
    subfolder,
    told,
    write_record,
)
from trainer.predict_sources import (
    PREDICTIONS,
    Files,
    check_source,
    list_scan_source,
    list_slice_source,
    list_source,
)
from trainer.stopping import StopRequest

__all__ = ["load_model", "predict_folder"]

BEYOND = 0.25
"""An image is odd whose brightness or contrast lies this share of the range outside of it."""


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
    kind, images, skipped = _to_predict(model, source, out)
    if mirror and kind != "scans":
        raise InputError("--mirror", f"this model is of {kind}", "it is for models of volumes")
    if before and read_record(out).mirror != mirror:
        before = {}  # all anew, in the other way
    before = {name: one for name, one in before.items() if name in images}
    values: dict[str, int | str] = {"background": 0, "target": 1}
    if kind != "slices":
        values = dict(model.label_values) if kind == "scans" else mask_values(model.masks)
    record = Record(
        model=checksum,
        source=str(source.resolve()),
        classes=list(values) if kind == "slices" else model.classes,
        mask_values=values,
        mirror=mirror,
        kind=kind,
        slices=model.use.slices,
        images=list(before.values()),
    )
    write_record(record, out)  # the folder is known as ours, whatever happens
    names = png_names(list(images))
    opened: AbstractContextManager[Any] = nullcontext({})  # slices have a file each
    if kind != "slices":
        opened = open_probabilities(out, source, model.masks, keep=set(before))
    with opened as probabilities:
        work = Predictor(model, out, probabilities, before, mirror, stop, skipped=skipped)
        with suppress(Stopped):
            for number, (name, paths) in enumerate(images.items(), start=1):
                stop.check()
                work.one(kind, name, paths, names[name])
                progress(number, len(images), name)
        work.done |= {n: one for n, one in before.items() if stop.asked() and n not in work.done}
    if not work.done:
        for left in (RECORD_FILE, PROBABILITIES_FILE):
            (out / left).unlink(missing_ok=True)
        stop.check()
        reasons = "\n".join(f"- {name}: {why}" for name, why in list(work.skipped.items())[:10])
        raise InputError(str(source), f"nothing could be predicted\n{reasons}")
    record.images = list(work.done.values())
    record.skipped = [Skipped(name=n, reason=why) for n, why in sorted(work.skipped.items())]
    write_record(record, out)
    stop.check()
    return record


def _to_predict(
    model: Model, source: Path, out: Path
) -> tuple[Kind, dict[str, Files], dict[str, str]]:
    """What the model takes, what there is of it by name, and what was passed over, with why."""
    if model.use.slices:
        return ("slices", *list_slice_source(source))
    if header := model.use.volumes:
        channels = None if header.preparation.channels else len(header.channels)
        return ("scans", *list_scan_source(source, out, channels))
    return ("images", *list_source(source, out))


@dataclass
class Predictor:
    """Predicting one folder: what is done, what was passed over."""

    model: Model
    out: Path
    probabilities: Any
    before: dict[str, Done]
    mirror: bool
    stop: StopRequest
    done: dict[str, Done] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def one(self, kind: Kind, name: str, paths: Files, png: str) -> None:
        """Predicts an image, unless it is done already; what cannot be read is passed over."""
        path = paths[0]
        try:
            digest = _digest(paths)
            known = self.before.get(name)
            if known and known.sha256 == digest and self._is_there(kind, name):
                self.done[name] = known.model_copy(update={"new": False})
            else:
                predict = {
                    "images": self._predict_image,
                    "scans": self._predict_scan,
                    "slices": self._predict_slices,
                }[kind]
                self.done[name] = predict(name, paths, png, digest)
        except InputError as error:
            self.skipped[name] = " ".join(str(error).replace(f"{path}: ", "").split())
        except OSError as error:
            if error.filename is None or Path(error.filename) != path:
                raise
            self.skipped[name] = error.strerror or "cannot be read"

    def _is_there(self, kind: Kind, name: str) -> bool:
        known = self.before[name]
        places = {known.mask, known.overlay or known.mask}
        if kind == "slices":
            places.add(f"{name}{PREDICTIONS}.npy")
        files = [self.out / place for place in places]
        plain = all(file.is_file() and not file.is_symlink() for file in files)
        return plain and (kind == "slices" or name in self.probabilities)

    def _predict_slices(self, name: str, paths: Files, png: str, digest: str) -> Done:
        from trainer.predict_slices import predict_slices

        if len(paths) > 1:  # of a scan there is a label
            subfolder(self.out, f"{MASKS}/{name}")
        found = predict_slices(self.model, name, paths, self.out, self.stop.check)
        total = int(np.prod(found.shape))
        return Done(
            name=name,
            sha256=digest,
            mask=str((found.label or found.array).relative_to(self.out)),
            overlay="",
            size=found.shape,
            pixels={"background": total - found.voxels, "target": found.voxels},
            odd=[],
        )

    def _predict_scan(self, name: str, paths: Files, png: str, digest: str) -> Done:
        scan = read_scan(paths if len(paths) > 1 else paths[0])
        found = self.model.predict_scan(scan, self.mirror)
        values = np.array([value for _, value in self.model.label_values], np.int32)
        values = values.astype(np.uint8) if values.max() < 256 else values.astype(np.int16)
        subfolder(self.out, f"{MASKS}/{name}")
        label = values[found.classes]
        written_to = write_label(self.out / MASKS / name, label, scan.grid, paths[0])
        at = middle(found.classes, scan.grid.shape)
        picture = three_planes(grey(scan.array[0]), found.classes, at, scan.grid.spacing_mm)
        save_png(self.out, f"{OVERLAYS}/{png}", Image.fromarray(picture))
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

    def _predict_image(self, name: str, paths: Files, png: str, digest: str) -> Done:
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
        save_png(self.out, f"{MASKS}/{png}", mask)
        save_png(self.out, f"{OVERLAYS}/{png}", Image.fromarray(overlay(rgb, classes)))
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
    from trainer.__main__ import prepare_process, translated

    given = _parser().parse_args(arguments)
    events, stop = EventLog(None), StopRequest()
    stop.on_signals()
    try:
        prepare_process(given.threads)
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
