"""What a network is asked for: how its output (N, C, …) is compared with a target. Torch-free.

foreground  C is 1; the target (N, 1, …) is in [0, 1], or any number for a regression
classes     C is the number of classes; the target (N, 1, …) is the class of each pixel or voxel
channels    the target (N, C, …) has a number for each output, as an image to be restored has
labels      the output is (N, C), the target (N,) the class of the whole sample
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.config import Data, Loss

Task = Literal["foreground", "classes", "channels", "labels"]
Reading = Literal["sigmoid", "softmax", "identity"]
"""How logits become what is compared: each by itself, together, or as they are."""


def reading_of(activation: str | None, loss: Loss | None, outputs: int) -> Reading:
    """By what the network ends in; of one that ends in nothing, by `loss.source`.

    Without a source, such outputs are logits, and plain numbers for mse.
    """
    end = activation or (loss.source if loss else None)
    if end is not None:
        return "sigmoid" if end == "sigmoid" else "softmax"
    if loss and loss.function == "mse":
        return "identity"
    return "sigmoid" if outputs == 1 else "softmax"


@dataclass(frozen=True)
class Aim:
    """What a network is trained for and judged by. `names` are those of the classes.

    `ignored` is a number in targets that is no class, and does not count.
    """

    task: Task = "foreground"
    reading: Reading = "sigmoid"
    names: tuple[str, ...] = ("background", "foreground")
    ignored: int | None = None


def task_of(
    data: Data,
    outputs: int,
    spatial: int,
    loss: str | None = None,
    target: tuple[int, ...] | None = None,
) -> Task:
    """What a network of `outputs` channels and `spatial` axes beside them (0: a number a class and
    nothing else) is asked for.

    `loss` is the name of the function. `target` is the shape of one array of targets in its file,
    with or without a channel axis; None where targets are no arrays or there are none.
    """
    inputs, targets = data.kinds
    if targets == "labels" or spatial == 0:
        return "labels"
    if inputs == "images":
        grey = data.target_grayscale or data.grayscale or data.target_is_mask or data.split
        colours = outputs == 3 and loss in ("bce", "mse") and not grey
        return "foreground" if outputs == 1 else "channels" if colours else "classes"
    if target is not None and sum(side > 1 for side in target) == 0:
        return "labels"
    if outputs == 1:
        return "foreground"
    axes = len(data.slicers[0].sizes) if data.slicers else spatial  # flat blocks of volumes, too
    given = target[0] if target is not None and len(target) == axes + 1 else 1
    return "channels" if given > 1 else "classes"
