"""What a training tells TensorBoard: `"tensorboard": "logs/"`.

Every `tensorboard_interval` batches the scalars `loss` and `percent_complete`, by the number of the
batch; after each epoch, by its number, the scalars `epoch/…` and the histogram of its batches'
losses; after each evaluation the histogram of the cases' Dice, and up to three `images` with their
`ground_truth` and `predictions`: of volumes three planes, of flat blocks and images all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.samples import Samples
from trainer.data.transforms import BatchTransform
from trainer.data.volumes.augment import AnyTransform
from trainer.data.volumes.planes import grey, middle, three_planes
from trainer.data.volumes.volume_set import VolumeSet
from trainer.evaluate import Evaluation
from trainer.metrics import LabelScore
from trainer.overlay import colour_of
from trainer.prediction_file import Sink
from trainer.tasks import Aim

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = 3
"""Images of an evaluation."""

SCALARS = ("loss", "evaluation_loss", "accuracy", "foreground_dice", "iou", "learning_rate")
Picture = NDArray[np.uint8]


class Watch:
    """A sink that keeps the first predictions, and hands all on to `behind`."""

    def __init__(self, behind: Sink | None) -> None:
        self._behind = behind
        self.kept: dict[int, NDArray[np.float32]] = {}

    @property
    def paths(self) -> Sequence[Path]:
        """The files of the sink behind."""
        return self._behind.paths if self._behind else ()

    def write(self, number: int, output: NDArray[np.float32]) -> None:
        """What the network gives (C, …) for the sample with this number."""
        if number < SHOWN:
            self.kept[number] = output.copy()
        if self._behind:
            self._behind.write(number, output)


class Board:
    """Writes for TensorBoard into `folder`; with None it does nothing."""

    def __init__(self, folder: str | None = None, interval: int = 1) -> None:
        self._interval = interval
        self._writer: SummaryWriter | None = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder)

    def batch(self, number: int, of: int, loss: float) -> None:
        """Batch number 1, 2, … of all batches of all epochs."""
        if self._writer and (number % self._interval == 0 or number == of):
            self._writer.add_scalar("loss", loss, number)
            self._writer.add_scalar("percent_complete", 100 * number / of, number)

    def epoch(self, event: dict[str, Any], losses: Sequence[float], scored: Evaluation) -> None:
        """An epoch as metrics.jsonl tells it, the losses of its batches, its evaluation."""
        if self._writer is None:
            return
        number = event["epoch"]
        values = {name: event[name] for name in SCALARS}
        classes = event["class_dice"] or {}
        values |= {f"class_dice/{name}": value for name, value in classes.items()}
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"epoch/{name}", value, number)
        if losses:
            self._writer.add_histogram("epoch/loss_of_batches", np.array(losses), number)
        dices = [one.dice for one in scored.scores if not isinstance(one, LabelScore)]
        told = np.array([dice for dice in dices if dice is not None], np.float64)
        if told.size:
            self._writer.add_histogram("epoch/foreground_dice_of_cases", told, number)
        self._writer.flush()

    def watch(self, sink: Sink | None) -> Sink | None:
        """The sink of an evaluation, which sees what `images` shall show."""
        return Watch(sink) if self._writer else sink

    def images(
        self,
        sink: Sink | None,
        samples: Samples,
        transform: AnyTransform,
        aim: Aim,
        threshold: float,
        epoch: int,
    ) -> None:
        """The first samples of an evaluation, whose predictions went through `sink`."""
        if self._writer is None or not isinstance(sink, Watch):
            return
        for number, output in sink.kept.items():
            if isinstance(samples, VolumeSet):
                drawn = _volume(samples, number, output, threshold)
            else:
                assert isinstance(transform, BatchTransform)
                drawn = _image(samples, transform, number, output, aim, threshold)
            for name, picture in drawn.items():
                tag = f"{name}/{number}"
                self._writer.add_image(tag, picture, epoch, dataformats="HWC")

    def close(self) -> None:
        """Nothing can be written afterwards."""
        if self._writer:
            self._writer.close()


def _classes(output: NDArray[np.float32], threshold: float) -> Picture:
    """What the network gives (C, …) -> the class of each pixel."""
    found = output[0] > threshold if len(output) == 1 else output.argmax(axis=0)
    return np.asarray(found, np.uint8)


def _volume(
    samples: VolumeSet, number: int, output: NDArray[np.float32], threshold: float
) -> dict[str, Picture]:
    image, label = samples.whole(number)
    shown = grey(image[0].float().cpu().numpy())
    truth = None if label is None else label.cpu().numpy().astype(np.uint8)
    found = _classes(output, threshold)
    at = middle(found if truth is None else truth, shown.shape)
    spacing = samples.cases[number].grid.spacing_mm
    layers = {"images": None, "ground_truth": truth, "predictions": found}
    return {
        name: three_planes(shown, classes, at, spacing)
        for name, classes in layers.items()
        if classes is not None or name == "images"
    }


def _image(
    samples: Samples,
    transform: BatchTransform,
    number: int,
    output: NDArray[np.float32],
    aim: Aim,
    threshold: float,
) -> dict[str, Picture]:
    index = torch.tensor([number], device=samples.device)
    raw, raw_targets = samples.batch(index)
    inputs, targets = transform.evaluated(raw, raw_targets, index)
    drawn = {"images": _flat(inputs[0].float().cpu().numpy())}
    if aim.task != "labels":
        if targets is not None:
            drawn["ground_truth"] = _drawn(targets[0].float().cpu().numpy(), aim)
        found = output if aim.task == "channels" else _classes(output, threshold)[None]
        drawn["predictions"] = _drawn(np.asarray(found, np.float32), aim)
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _plane(values: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """(C, H, W), of a block (C, D, H, W) its middle; None for what is no image."""
    values = values[:, values.shape[1] // 2] if values.ndim == 4 else values
    return values if values.ndim == 3 else None


def _flat(values: NDArray[np.float32]) -> Picture | None:
    """Values (C, …) as a picture, from the smallest, black, to the largest; three channels are
    colours, of others the first is shown."""
    plane = _plane(values)
    if plane is None:
        return None
    shown = plane.transpose(1, 2, 0) if len(plane) == 3 else plane[0][..., None].repeat(3, axis=2)
    shown = np.nan_to_num(shown)
    low, high = float(shown.min()), float(shown.max())
    return np.asarray((shown - low) / max(high - low, 1e-12) * 255, np.uint8)


def _drawn(values: NDArray[np.float32], aim: Aim) -> Picture | None:
    """A target or a prediction: classes in their colours, numbers as grey or colours."""
    plane = _plane(values)
    if plane is None or aim.task == "channels":
        return _flat(values)
    classes = (np.nan_to_num(plane[0]) + 0.5).astype(np.uint8)
    picture = np.zeros((*classes.shape, 3), np.uint8)
    for number in np.unique(classes[classes > 0]):
        picture[classes == number] = 255 if aim.task == "foreground" else colour_of(int(number))
    return picture
