"""Which images a run trains on and evaluates, and how the network is used: before any tensor.

`Parts` comes from the folders and the split file, `Usage` from the layers file or, in a run
without training, from the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoint import load_checkpoint
from trainer.config import LOSS_FIELDS, Config, Data, Transform
from trainer.data.folders import Pair, pair
from trainer.data.labels import MOST_CLASSES, MaskClass
from trainer.data.masks import Masks
from trainer.data.split import Split, chosen, read_split
from trainer.data.transforms import resize_of
from trainer.errors import InputError, joined
from trainer.networks.description import Network, check_size, parse_network, read_network
from trainer.tasks import Aim, reading_of, task_of

TRANSFORMS = ("transforms", "input_transforms", "target_transforms")


@dataclass(frozen=True)
class Parts:
    """The images of a run. `masks` is None where masks are divided by 255."""

    training: list[Pair]
    evaluation: list[Pair]
    evaluated_on: str
    masks: Masks | None
    seed: int
    metric: str

    def sizes(self) -> dict[str, list[Pair]]:
        """The parts that have images, by name."""
        parts = {"training": self.training, self.evaluated_on: self.evaluation}
        return {name: pairs for name, pairs in parts.items() if pairs}


def _pairs(inputs: str, targets: str | None) -> list[Pair]:
    pairs, faults = pair(Path(inputs), Path(targets) if targets else None)
    if faults:
        raise joined(faults, inputs)
    return pairs


def open_parts(config: Config) -> Parts:
    """Lists and pairs the files that a configuration names; raises InputError for what is amiss.

    With a split and training: its parts `training` and, unless test_input_path is given,
    `validation`. With a split and no training: its part `test`.
    """
    data = config.data
    split: Split | None = read_split(data.split) if data.split else None
    seed = config.seed if config.seed is not None else split.seed if split else 0
    masks = split.masks if split else None
    metric = split.metric if split else "accuracy"
    training: list[Pair] = []
    evaluation: list[Pair] = []
    if data.input_path:
        everything = _pairs(data.input_path, data.target_path)
        training = everything
        if split and data.split:
            training = chosen(everything, split.parts.training, data.split)
            if not data.test_input_path:
                evaluation = chosen(everything, split.parts.validation, data.split)
                return Parts(training, evaluation, "validation", masks, seed, metric)
    if data.test_input_path:
        evaluation = _pairs(data.test_input_path, data.test_target_path)
        if split and data.split and split.parts.test:
            evaluation = chosen(evaluation, split.parts.test, data.split)
    return Parts(training, evaluation, "test", masks, seed, metric)


@dataclass(frozen=True)
class Usage:
    """How the network is used. `source` names the file that describes it."""

    network: Network
    source: str
    data: Data
    size: tuple[int, int] | None
    masks: Masks | None
    aim: Aim
    checkpoint: dict[str, Any]

    @property
    def order(self) -> Literal["RGB", "BGR"]:
        """Of the colours that the network sees: OpenCV's for a Keras network, as published."""
        return "BGR" if self.network.kind == "keras" else "RGB"

    def for_checkpoint(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        fixed = {
            name: [t.model_dump(exclude_unset=True) for t in getattr(self.data, name) if t.fixed]
            for name in TRANSFORMS
        }
        return {
            "image_size": list(self.size) if self.size else None,
            **fixed,
            "channels": self.network.in_channels,
            "classes": self.network.classes,
            "class_names": list(self.aim.names),
            "task": self.aim.task,
            "scaling": "pixel / 255" if self.data.kinds[0] in ("images", "mnist") else "none",
            "threshold": 0.5,
            "masks": self.masks.model_dump() if self.masks else None,
        }


def usage_of(config: Config, parts: Parts) -> Usage:
    """The network, its size and its transforms, from the configuration and the checkpoint.

    In a run without training, `layers` and `transforms` that are left out come from the
    checkpoint, and another size than the trained one is an InputError. A network of several classes
    without a split reads the values of masks as the numbers of the classes.
    """
    load = config.checkpoints.load
    checkpoint = load_checkpoint(load) if load else {}
    source = config.layers if isinstance(config.layers, str) else load or "layers"
    network = _network(config, checkpoint, source)
    data = config.data
    known = checkpoint.get("use", {})
    if not config.trains and not any(getattr(data, name) for name in TRANSFORMS):
        kept = {name: known.get(name, []) for name in TRANSFORMS}
        transforms = {n: [Transform.model_validate(t) for t in ts] for n, ts in kept.items()}
        data = data.model_copy(update=transforms)
    size = resize_of(data)
    trained = tuple(known["image_size"]) if known.get("image_size") else None
    if not config.trains and trained and size != trained:
        asked = f"{size[0]}x{size[1]}" if size else "no resize"
        raise InputError(
            "data.transforms",
            f"{asked}, but {load} was trained at {trained[0]}x{trained[1]}",
            f'{{"resize": [{trained[0]}, {trained[1]}]}}',
            "use that size, or leave `transforms` out",
        )
    if size:
        check_size(network, size, "data.transforms, resize")
    _check_source(config, network)
    masks = parts.masks
    if masks is None and not config.trains and known.get("masks"):
        masks = Masks.model_validate(known["masks"])
    task = task_of(config, network.classes, masks is not None, parts)
    names = parts.class_names or tuple(known.get("class_names", ()))
    if task == "classes" and masks is None and network.classes <= MOST_CLASSES:
        numbers = range(network.classes)
        classes = [MaskClass(name=f"class {number}", values=[number]) for number in numbers]
        masks = Masks(threshold=None, values=list(numbers), classes=classes)
    if task in ("foreground", "classes") and data.kinds[0] == "images":
        outputs = masks.outputs if masks else 1
        if network.classes != outputs:
            assert masks
            found = f"{network.classes} classes, but the masks have {', '.join(masks.names)}"
            raise InputError(source, found, f'"classes": {outputs}')
    if masks:
        names = tuple(masks.names)
    elif task == "labels":
        _check_labels(network, parts, source)
    elif task == "channels":
        names = ("", *(f"output {number}" for number in range(network.classes)))
    reading = reading_of(network.activation, config.loss, network.classes)
    return Usage(
        network, source, data, size, masks, Aim(task, reading, names or Aim.names), checkpoint
    )


def _check_source(config: Config, network: Network) -> None:
    """A source is what the network ends in, where it acts at all and the network ends in one."""
    loss, end = config.loss, network.activation
    if not loss or loss.source is None or end is None:
        return
    if "source" not in LOSS_FIELDS[loss.function]:
        return
    ends = ("softmax", "log_softmax") if end in ("softmax", "log_softmax") else ("sigmoid",)
    if loss.source not in ends:
        raise InputError(
            "loss.source",
            f"'{loss.source}', but the network ends in {end}",
            " or ".join(f"'{one}'" for one in ends),
        )


def _check_labels(network: Network, parts: Parts, source: str) -> None:
    """As many outputs as there are classes, or more."""
    if parts.class_names and len(parts.class_names) > network.classes:
        found = f"{network.classes} outputs, but there are {len(parts.class_names)} classes"
        told = ", ".join(parts.class_names[:10])
        raise InputError(source, f"{found}: {told}", f"{len(parts.class_names)} outputs")


def _network(config: Config, checkpoint: dict[str, Any], source: str) -> Network:
    if isinstance(config.layers, str):
        return read_network(config.layers)
    if config.layers is not None:
        return parse_network(config.layers, source)
    if "network" not in checkpoint:
        found = f"left out, and {source} does not describe its network"
        raise InputError("layers", found, "the network file of these weights")
    return parse_network(checkpoint["network"], source).for_checkpoint()
