"""Uses a trained model on images without configuration or masks.

    from trainer.predict import load_model
    mask = load_model("best_model").predict(array)      # (H, W) uint8: the class of each pixel

    python -m trainer.predict FOLDER --model best_model --out predictions

The second writes for each image a mask and an overlay in the image's own size, the probabilities as
HDF5, and `predict.json`, which says what was done. Images that cannot be read are named and passed
over. A second run with the same model and folder does what is new or has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.folders import MASK_NAME, SUFFIXES, files_below
from trainer.data.images import image_array, open_image
from trainer.data.labels import written
from trainer.data.masks import Masks
from trainer.errors import InputError
from trainer.events import METRICS_FILE, RUN_FILES, EventLog
from trainer.networks.weights import sha256
from trainer.overlay import overlay
from trainer.stopping import StopRequest

if TYPE_CHECKING:
    import torch

    from trainer.data.transforms import BatchTransform
    from trainer.networks.build import SegmentationNetwork

MODEL_FILE = "best_model_file.pt"
RECORD_FILE = "predict.json"
PROBABILITIES_FILE = "predictions.h5"
MASKS, OVERLAYS = "masks", "overlays"
SCHEMA_VERSION = 1
OF_THE_TRAINER = re.compile(r"output_\d+\.(h5|png)")
"""What a configuration's predictions leave in a folder; they do not disturb."""

MOST_LINES = 10
IS_A_MASK = "this is a mask of"
BEYOND = 0.25
"""An image is odd whose brightness or contrast lies this share of the range outside of it."""


# ---- the model ----


@dataclass(frozen=True)
class Model:
    """A trained network and how it is used; `load_model` makes one."""

    network: SegmentationNetwork
    transform: BatchTransform
    masks: Masks | None
    size: tuple[int, int] | None
    seen: dict[str, Any] | None
    device: torch.device

    @property
    def classes(self) -> list[str]:
        """Names of the classes; their numbers are those in a predicted mask."""
        return self.masks.names if self.masks else ["background", "foreground"]

    def probabilities(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """An image (H, W) grey or (H, W, 3) RGB, 8 bit -> (C, h, w) at the network's size.

        C is 1 for foreground alone, else one a class. Raises InputError for another kind of array.
        """
        return np.asarray(self._probabilities(image).cpu().numpy()[0])

    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image (H, W) or (H, W, 3), 8 bit -> the class of each pixel (H, W), at its size."""
        return self.predict_with_probabilities(image)[0]

    def predict_with_probabilities(
        self, image: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Both, from one pass through the network."""
        from trainer.evaluate import own_size_classes

        probabilities = self._probabilities(image)
        height, width = np.shape(image)[:2]
        classes = own_size_classes(probabilities[0], (height, width))
        return np.asarray(classes.cpu().numpy(), np.uint8), probabilities.cpu().numpy()[0]

    def _probabilities(self, image: NDArray[np.uint8]) -> torch.Tensor:
        import torch

        from trainer.device import autocast, memory_layout
        from trainer.networks.description import check_size

        array = np.asarray(image)
        grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
        if array.dtype != np.uint8 or not (grey or colour) or 0 in array.shape:
            found = f"an array of shape {array.shape} and type {array.dtype}"
            raise InputError("image", found, "(H, W) or (H, W, 3), uint8")
        channels = self.network.description.in_channels
        own = image_array(Image.fromarray(array), channels, self.size)
        if self.size is None:
            check_size(self.network.description, (own.shape[2], own.shape[1]), "image")
        with torch.inference_mode():
            batch = self.transform.inputs(torch.from_numpy(own)[None].to(self.device))
            with autocast(self.device):
                logits = self.network(batch.contiguous(memory_format=memory_layout(self.device)))
            return self.network.probabilities(logits)


def model_file(path: Path) -> Path:
    """The checkpoint of a model: of a folder like best_model/, or the file itself."""
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        found = f"there is no model: {file} does not exist"
        raise InputError(str(path), found, "a folder best_model/ of a study, or a checkpoint .pt")
    return file


def load_model(
    path: str | Path = "best_model", device: str = "auto", *, trust_code: bool = False
) -> Model:
    """The model of a folder `best_model/`, or of a checkpoint (.pt), ready to predict.

    `device` is auto, cpu, cuda, cuda:N or mps. Raises InputError for anything that is no
    checkpoint of this program. Nothing in a checkpoint is executed; a network of somebody's own is
    a Python file beside it, which runs only with `trust_code`.
    """
    from trainer.checkpoint import load_checkpoint
    from trainer.config import Data
    from trainer.data.transforms import BatchTransform
    from trainer.device import open_device, placed
    from trainer.networks.build import build
    from trainer.networks.description import parse_network

    file = model_file(Path(path))
    checkpoint = load_checkpoint(file)
    if "network" not in checkpoint or "use" not in checkpoint:
        raise InputError(str(file), "does not say what its network is", "a .pt of this program")
    use = checkpoint["use"]
    description = parse_network(checkpoint["network"], str(file))
    network = build(description, folder=file.parent, trust_code=trust_code)
    try:
        network.body.load_state_dict(checkpoint["state"])
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise InputError(str(file), f"does not fit its own network: {lines[-1].strip()}") from None
    names = ("transforms", "input_transforms", "target_transforms")
    data = Data.model_validate({name: use.get(name, []) for name in names})
    target = open_device(device, None, deterministic=False)
    return Model(
        placed(network, target).eval(),
        BatchTransform(data, description.classes),
        Masks.model_validate(use["masks"]) if use.get("masks") else None,
        (use["image_size"][0], use["image_size"][1]) if use.get("image_size") else None,
        use.get("images"),
        target,
    )


# ---- what is odd ----


def oddities(image: Any, model: Model) -> list[str]:
    """In which ways a PIL image is unlike those that the model was trained on."""
    odd = []
    width, height = image.size
    if model.size and (width < model.size[0] // 2 or height < model.size[1] // 2):
        odd.append(f"{width}x{height} pixels, the network sees {model.size[0]}x{model.size[1]}")
    if not model.seen:
        return odd
    if model.seen["grey"] and (np.ptp(np.asarray(image.convert("RGB")), axis=2) > 0).any():
        odd.append("it has colour, the model was trained on grey images")
    pixels = image_array(image, model.network.description.in_channels, model.size)
    measured = {"brightness": float(pixels.mean()), "contrast": float(pixels.std())}
    for name, value in measured.items():
        low, high = model.seen[name]
        margin = BEYOND * (high - low)
        if not low - margin <= value <= high + margin:
            odd.append(f"{name} {value:.0f}, in training {low:.0f} to {high:.0f}")
    return odd


# ---- a folder ----


@dataclass(frozen=True)
class Work:
    """What there is to do: images by name, and what was done before."""

    source: Path
    images: dict[str, Path]
    skipped: dict[str, str]
    before: dict[str, dict[str, Any]]


def list_source(source: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Images of a folder with its subfolders (or one image) by name, and what is none, with why."""
    if source.is_file():
        return {source.name: source}, {}
    if not source.is_dir():
        raise InputError(str(source), "there is no such folder or image", "images to predict")
    images: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    files = {path.relative_to(source).as_posix(): path for path in files_below(source)}
    stems = {path.with_suffix("") for path in files.values()}
    for name, path in files.items():
        mask = MASK_NAME.fullmatch(path.stem)
        if path.suffix.lower() not in SUFFIXES:
            skipped[name] = "this is not an image (" + ", ".join(SUFFIXES) + ")"
        elif mask and path.with_name(mask[1]) in stems:
            skipped[name] = f"{IS_A_MASK} {mask[1]}"
        else:
            images[name] = path
    if not images:
        raise InputError(str(source), "there is no image", ", ".join(SUFFIXES))
    return images, skipped


def check_output(
    out: Path, source: Path, model: str, besides: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The images that are done already, by name; raises InputError where `out` holds other things.

    `model` is the checkpoint's checksum; files named in `besides` do not disturb. Makes the folder.
    """
    fix = "name another folder with --out"
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "is not a folder", fix=fix)
    if out.resolve() == source.resolve():
        raise InputError(str(out), "is the folder of the images", fix=fix)
    out.mkdir(parents=True, exist_ok=True)
    record = out / RECORD_FILE
    names = sorted(path.name for path in out.iterdir())
    there = [n for n in names if n not in besides and not OF_THE_TRAINER.fullmatch(n)]
    if not there:
        return {}
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
        same = told["model"] == model and told["source"] == str(source.resolve())
        before: dict[str, dict[str, Any]] = {image["name"]: image for image in told["images"]}
    except FileNotFoundError:
        raise InputError(str(out), f"holds other things: {', '.join(there[:5])}", fix=fix) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(str(record), "is no record of predictions", fix=fix) from None
    if not same:
        found = f"holds the predictions of {told['source']} by model {told['model'][:12]}"
        raise InputError(str(out), found, fix=f"{fix}, or remove it")
    return before


def _free_name(name: str, taken: set[str]) -> str:
    """The PNG for an image: its name with .png; where two images would share it, both suffixes."""
    png = str(Path(name).with_suffix(".png"))
    return f"{name}.png" if png in taken else png


def predict_folder(
    source: Path,
    model_path: Path,
    out: Path,
    device: str = "auto",
    trust_code: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    stop: StopRequest | None = None,
    besides: Sequence[str] = (),
) -> dict[str, Any]:
    """Predicts every image of `source` into `out`; what predict.json then holds.

    `progress(done, total, name)` is called after each image. Raises InputError where nothing can
    be predicted at all, or `out` holds other things than `besides`; Stopped where `stop` was asked:
    what was done until then stays, and the next run goes on.
    """
    stop = stop or StopRequest()
    file = model_file(model_path)
    checksum = sha256(file)
    images, skipped = list_source(source)
    before = check_output(out, source, checksum, besides)
    before = {name: one for name, one in before.items() if name in images}
    model = load_model(file, device, trust_code=trust_code)
    record = {
        "schema_version": SCHEMA_VERSION,
        "model": checksum,
        "source": str(source.resolve()),
        "classes": model.classes,
        "mask_values": mask_values(model.masks),
        "images": list(before.values()),
    }
    _write_json(out / RECORD_FILE, record)  # the folder is known as ours, whatever happens
    done: dict[str, dict[str, Any]] = {}
    taken = {str(Path(one["mask"]).relative_to(MASKS)) for one in before.values()}
    with _probabilities_file(out, source, model, keep=set(before)) as probabilities:
        for number, (name, path) in enumerate(images.items(), start=1):
            if stop.asked():
                done |= {n: one for n, one in before.items() if n not in done}
                break
            known = before.get(name)
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if known and known["sha256"] == digest and _still_there(out, known):
                    done[name] = {**known, "new": False}
                else:
                    png = str(Path(known["mask"]).relative_to(MASKS)) if known else ""
                    png = png or _free_name(name, taken)
                    one = _predict_one(model, path, name, png, out, probabilities)
                    taken.add(png)
                    done[name] = {"name": name, "sha256": digest, "new": True, **one}
            except InputError as error:
                told = str(error).replace(f"{path}: ", "")
                skipped[name] = " ".join(told.split())
            except OSError as error:
                if error.filename is None or Path(error.filename) != path:
                    raise
                skipped[name] = error.strerror or "cannot be read"
            progress(number, len(images), name)
    if not done:
        for name in (RECORD_FILE, PROBABILITIES_FILE):
            (out / name).unlink()
        stop.check()
        reasons = "\n".join(f"- {name}: {why}" for name, why in list(skipped.items())[:10])
        raise InputError(str(source), f"no image could be predicted\n{reasons}")
    over = [{"name": name, "reason": why} for name, why in sorted(skipped.items())]
    record |= {"images": list(done.values()), "skipped": over}
    _write_json(out / RECORD_FILE, record)
    stop.check()
    return record


def mask_values(masks: Masks | None) -> dict[str, int | str]:
    """What a written mask holds for each class: the values or colours of the masks in training."""
    if masks and masks.classes:
        return {one.name: one.shown for one in masks.classes}
    return {"background": 0, "foreground": 255}


def _write_json(path: Path, content: Any) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _still_there(out: Path, known: dict[str, Any]) -> bool:
    return (out / known["mask"]).is_file() and (out / known["overlay"]).is_file()


def _predict_one(
    model: Model, path: Path, name: str, png: str, out: Path, probabilities: Any
) -> dict[str, Any]:
    """Writes mask, overlay and probabilities of one image; what predict.json says of it."""
    image = open_image(path)
    odd = oddities(image, model)
    rgb = np.asarray(image.convert("RGB"))
    grey = image.mode in ("1", "L", "LA")
    array = np.asarray(image.convert("L")) if grey else rgb
    classes, found = model.predict_with_probabilities(array)
    masks = model.masks
    mask = (
        written(classes, masks.classes)
        if masks and masks.classes
        else Image.fromarray(np.where(classes > 0, 255, 0).astype(np.uint8))
    )
    for folder, picture in ((MASKS, mask), (OVERLAYS, Image.fromarray(overlay(rgb, classes)))):
        _save_png(out / folder / png, picture)
    if name in probabilities:
        del probabilities[name]
    probabilities.create_dataset(name, data=found)
    counts = np.bincount(classes.ravel(), minlength=len(model.classes))
    pixels = dict(zip(model.classes, counts.tolist(), strict=True))
    files = {"mask": f"{MASKS}/{png}", "overlay": f"{OVERLAYS}/{png}"}
    return {**files, "size": list(image.size), "pixels": pixels, "odd": odd}


def _save_png(path: Path, picture: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    picture.save(beside, format="PNG")
    os.replace(beside, path)


class _probabilities_file:
    """predictions.h5, written beside and renamed at the end; images in `keep` stay in it."""

    def __init__(self, out: Path, source: Path, model: Model, keep: set[str]) -> None:
        self._path, self._beside = out / PROBABILITIES_FILE, out / f".{PROBABILITIES_FILE}"
        self._source, self._model, self._keep = source, model, keep

    def __enter__(self) -> Any:
        import h5py

        from trainer.cases import image_names

        self._beside.unlink(missing_ok=True)
        if self._keep and self._path.exists():
            shutil.copyfile(self._path, self._beside)
        self._file = h5py.File(self._beside, "a")
        for name in image_names(self._file):
            if name not in self._keep:
                del self._file[name]
        inputs = self._source if self._source.is_dir() else self._source.parent
        self._file.attrs["inputs"], self._file.attrs["targets"] = str(inputs.resolve()), ""
        self._file.attrs["threshold"] = 0.5
        if self._model.masks:
            self._file.attrs["masks"] = self._model.masks.model_dump_json()
        return self._file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._beside, self._path)
        else:
            self._beside.unlink(missing_ok=True)


# ---- the command line ----


def told(record: dict[str, Any], out: Path) -> Iterator[str]:
    """What people read of a record, line by line: how many, which are odd or were passed over."""
    images, skipped = record["images"], record["skipped"]
    new = sum(image["new"] for image in images)
    before = f" ({new} new, {len(images) - new} done before)" if new < len(images) else ""
    values = ", ".join(f"{name} {value}" for name, value in record["mask_values"].items())
    yield f"{len(images)} images predicted{before} in {out}: {MASKS}/ ({values}), {OVERLAYS}/, "
    yield f"{PROBABILITIES_FILE} (probabilities), {RECORD_FILE} (what was done)"
    masks = [one for one in skipped if one["reason"].startswith(IS_A_MASK)]
    if masks:
        yield f"passed over: {len(masks)} masks that lie beside their images"
    skipped = [one for one in skipped if one not in masks]
    odd = [f"odd: {one['name']}: {'; '.join(one['odd'])}" for one in images if one["odd"]]
    over = [f"passed over: {one['name']}: {one['reason']}" for one in skipped]
    for lines, what in ((odd, "odd"), (over, "passed over")):
        yield from lines[:MOST_LINES]
        if len(lines) > MOST_LINES:
            yield f"… {len(lines)} images are {what}; all of them: {out / RECORD_FILE}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.predict", description="Predicts masks for images, with a model."
    )
    parser.add_argument("source", metavar="FOLDER", type=Path, help="images (or one image)")
    parser.add_argument("--model", type=Path, default=Path("best_model"), help="best_model/ or .pt")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder for results")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps")
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
            RUN_FILES if given.in_run_folder else (),
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
