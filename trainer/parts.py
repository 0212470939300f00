"""Which images a run trains on and evaluates, and how the network is used: before any tensor.

`Parts` comes from the folders and the split file, `Usage` from the layers file or, in a run
without training, from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoint import load_checkpoint
from trainer.config import LOSS_FIELDS, Config, Data, Transform
from trainer.data.array_set import ArraySet
from trainer.data.arrays import (
    Array,
    Block,
    Sample,
    blocks_of,
    labelled_arrays,
    list_arrays,
    paired,
)
from trainer.data.cache import ImageSet
from trainer.data.class_names import Labelled, all_names, labelled_images, numbered
from trainer.data.folders import Pair, pair
from trainer.data.idx import open_idx
from trainer.data.labels import MOST_CLASSES, MaskClass
from trainer.data.masks import Masks
from trainer.data.samples import Item, open_samples
from trainer.data.split import Split, chosen, read_split
from trainer.data.transforms import BatchTransform, size_of
from trainer.errors import InputError, joined
from trainer.losses import LossFunction, build_loss
from trainer.networks.description import Network, check_size, parse_network, read_network
from trainer.tasks import Aim, reading_of, task_of

TRANSFORMS = ("transforms", "input_transforms", "target_transforms")


@dataclass(frozen=True)
class Parts:
    """The samples of a run. `masks` is None where nothing says what masks mean.

    `class_names` are those of labels, by number; `notes` are lines for the log about what was
    found.
    """

    training: Sequence[Item]
    evaluation: Sequence[Item]
    evaluated_on: str
    masks: Masks | None
    seed: int
    metric: str
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[str, Sequence[Item]]:
        """The parts that have samples, by name."""
        parts = {"training": self.training, self.evaluated_on: self.evaluation}
        return {name: items for name, items in parts.items() if items}

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """The shape of one array of targets in its file; () for a number a sample; None where
        targets are no arrays or there are none."""
        for item in (*self.training[:1], *self.evaluation[:1]):
            if isinstance(item, Block) and item.whole.target is not None:
                return item.whole.target.shape if item.whole.row is None else ()
        return None


def _pairs(inputs: str, targets: str | None) -> list[Pair]:
    pairs, faults = pair(Path(inputs), Path(targets) if targets else None)
    if faults:
        raise joined(faults, inputs)
    return pairs


def _arrays(data: Data, inputs: str, targets: str | None) -> list[Sample]:
    found = list_arrays(inputs, data.kinds[0])
    if targets is None:
        return [Sample(one) for one in found]
    both = {one.name: one for one in found}
    if inputs == targets and set(both) == {"input", "target"}:  # two datasets of one file
        return [Sample(both["input"], both["target"])]
    return paired(found, list_arrays(targets, data.kinds[1]), f"{inputs} and {targets}")


def _read(data: Data, inputs: str, targets: str | None, notes: list[str]) -> Sequence[Item]:
    """The samples of one part whose targets are no labels."""
    if data.kinds[0] == "images":
        return _pairs(inputs, targets)
    return blocks_of(_arrays(data, inputs, targets), data, notes.append)


def _labelled(
    data: Data, known: Sequence[str], notes: list[str]
) -> tuple[dict[str, Sequence[Item]], tuple[str, ...]]:
    """The samples of both parts with labels, and the names of the classes; `known` are those that
    a checkpoint names."""
    kind = data.kinds[0]
    paths = {
        "training": (data.input_path, data.training_tag),
        "test": (data.test_input_path, data.test_tag or data.testing_tag),
    }
    arrays: dict[str, list[Array]] = {}
    parts: dict[str, Labelled] = {}
    for part, (path, tag) in paths.items():
        if path is None:
            continue
        if kind == "mnist":
            parts[part] = open_idx(Path(path), part, truth=part == "training")
        elif kind == "images":
            parts[part] = labelled_images(path, tag)
        else:
            arrays[part], parts[part] = labelled_arrays(path, kind, tag)
    told = {part: one for part, one in parts.items() if one.classes}
    names: tuple[str, ...] = tuple(known) if data.input_path is None else ()
    if told and not names:
        names, lines = all_names(told)
        notes += lines
    if data.input_path is not None and len(names) < 2:
        found = f"the training images have one class, '{names[0]}'"
        raise InputError(data.input_path, found, "a folder for each of two classes or more")
    items: dict[str, Sequence[Item]] = {}
    for part, one in parts.items():
        pairs = numbered(one, names, str(paths[part][0])) if one.classes else one.pairs
        items[part] = pairs
        if part in arrays:
            labels = zip(arrays[part], pairs, strict=True)
            samples = [Sample(array, label=pair.label) for array, pair in labels]
            items[part] = blocks_of(samples, data, notes.append)
    return items, names


def _chosen(items: Sequence[Item], names: list[str], where: str) -> list[Pair]:
    pairs = [item for item in items if isinstance(item, Pair)]
    if len(pairs) != len(items):
        raise InputError("data.split", "a split file is of images", "leave it out for arrays")
    return chosen(pairs, names, where)


def open_parts(config: Config, class_names: Sequence[str] = ()) -> Parts:
    """Lists and pairs the files that a configuration names; raises InputError for what is amiss.

    With a split and training: its parts `training` and, unless test_input_path is given,
    `validation`. With a split and no training: its part `test`. `class_names` are those of the
    checkpoint, which number the labels of a run without training.
    """
    data = config.data
    split: Split | None = read_split(data.split) if data.split else None
    seed = config.seed if config.seed is not None else split.seed if split else 0
    masks = split.masks if split else None
    metric = split.metric if split else "accuracy"
    notes: list[str] = []
    training: Sequence[Item] = []
    evaluation: Sequence[Item] = []
    names: tuple[str, ...] = ()
    if data.kinds[1] == "labels":
        labelled, names = _labelled(data, class_names, notes)
        training, evaluation = labelled.get("training", []), labelled.get("test", [])
    else:
        if data.input_path:
            training = _read(data, data.input_path, data.target_path, notes)
        if data.test_input_path:
            evaluation = _read(data, data.test_input_path, data.test_target_path, notes)
    evaluated_on = "test"
    if split and data.split:
        if not data.input_path:
            evaluation = _split_test(evaluation, split, data.split)
        elif data.test_input_path:
            training = _chosen(training, split.parts.training, data.split)
            evaluation = _split_test(evaluation, split, data.split)
        else:
            evaluation = _chosen(training, split.parts.validation, data.split)
            training = _chosen(training, split.parts.training, data.split)
            evaluated_on = "validation"
    return Parts(training, evaluation, evaluated_on, masks, seed, metric, names, notes=tuple(notes))


def _split_test(items: Sequence[Item], split: Split, where: str) -> Sequence[Item]:
    return _chosen(items, split.parts.test, where) if split.parts.test else items


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
    ignored: int | None = None
    """The class that a loss leaves out; it may be beyond the network's classes."""

    @property
    def order(self) -> Literal["RGB", "BGR"]:
        """Of the colours that the network sees: OpenCV's for a Keras network, as published."""
        return "BGR" if self.network.kind == "keras" else "RGB"

    def open(self, items: Sequence[Item]) -> ImageSet | ArraySet:
        """The samples of a part as the network takes them; nothing is read yet."""
        network = self.network
        return open_samples(
            items,
            self.data,
            network.in_channels,
            network.dimensions,
            self.aim.task,
            network.classes,
            self.masks,
            self.ignored,
        )

    def transform(self) -> BatchTransform:
        """What is done to their batches."""
        return BatchTransform(self.data, self.aim.task, self.order)

    def loss(self, config: Config) -> LossFunction | None:
        """The loss that the configuration names, for this network and task."""
        if config.loss is None:
            return None
        network = self.network
        return build_loss(config.loss, network.classes, self.aim.task, network.activation)

    @property
    def threshold(self) -> float:
        """Of one output as it is predicted: above it, a pixel is foreground."""
        return 0.0 if self.network.activation is None and self.aim.reading == "sigmoid" else 0.5

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
            "reading": self.aim.reading,
            "scaling": "pixel / 255" if self.data.kinds[0] in ("images", "mnist") else "none",
            "threshold": 0.5,
            "masks": self.masks.model_dump() if self.masks else None,
        }


def open_run(config: Config) -> tuple[Parts, Usage]:
    """What a run works on, and how its network is used; raises InputError for what is amiss."""
    load = config.checkpoints.load
    checkpoint = load_checkpoint(load) if load else {}
    names = checkpoint.get("use", {}).get("class_names", ()) if not config.trains else ()
    parts = open_parts(config, names)
    return parts, usage_of(config, parts, checkpoint)


def usage_of(config: Config, parts: Parts, checkpoint: dict[str, Any]) -> Usage:
    """The network, its size and its transforms, from the configuration and the checkpoint.

    In a run without training, `layers` and `transforms` that are left out come from the
    checkpoint, and another size than the trained one is an InputError. A network of several classes
    without a split reads the values of masks as the numbers of the classes.
    """
    load = config.checkpoints.load
    source = config.layers if isinstance(config.layers, str) else load or "layers"
    network = _network(config, checkpoint, source)
    data = config.data
    known = checkpoint.get("use", {})
    if not config.trains and not any(getattr(data, name) for name in TRANSFORMS):
        kept = {name: known.get(name, []) for name in TRANSFORMS}
        transforms = {n: [Transform.model_validate(t) for t in ts] for n, ts in kept.items()}
        data = data.model_copy(update=transforms)
    size = size_of(data)
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
    loss = config.loss.function if config.loss else None
    task = task_of(data, network.classes, network.output_axes, loss, parts.target_shape)
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
        names = tuple(f"output {number}" for number in range(network.classes))
    reading = reading_of(network.activation, config.loss, network.classes)
    aim = Aim(task, reading, names or Aim.names)
    ignored = config.loss.ignore_index if config.loss else None
    return Usage(network, source, data, size, masks, aim, checkpoint, ignored)


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
