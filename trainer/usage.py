"""How the network of a run is used: its size, its transforms, its task; and what it is used on.

From the configuration and the layers file or, in a run without training, from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainer.checkpoint import load_checkpoint
from trainer.config import LOSS_FIELDS, Config, Data, Precision, Slices, Window
from trainer.data.labels import MOST_CLASSES, MaskClass
from trainer.data.masks import Masks
from trainer.data.samples import AnySamples, Item, open_samples
from trainer.data.slice_files import Slice, SliceFiles
from trainer.data.transforms import BatchTransform, size_of
from trainer.data.volumes.augment import VolumeTransform
from trainer.data.volumes.volume_file import Case, Header
from trainer.errors import InputError
from trainer.losses import LossFunction, build_loss
from trainer.model import SliceUse, Use, use_of
from trainer.networks.description import (
    Network,
    check_size,
    fitted,
    parse_network,
    read_network,
)
from trainer.parts import Parts, open_parts
from trainer.tasks import Aim, Task, reading_of, task_of

NEAR = 0.01
"""So far from a whole number may a class be that was divided by 255 and multiplied again."""

TRANSFORMS = ("transforms", "input_transforms", "target_transforms")


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
    shares: bool = False
    """Whether the loss needs targets from 0 to 1."""

    volumes: Header | None = None
    """What prepared volumes share."""

    window: Window | None = None
    """How they are predicted; its size is always given."""

    slices: SliceFiles | None = None
    """Of slice arrays."""

    precision: Precision = "auto"
    """Of its arithmetic."""

    @property
    def order(self) -> Literal["RGB", "BGR"]:
        """Of the colours that the network sees: OpenCV's for a Keras network, as published."""
        return "BGR" if self.network.kind == "keras" else "RGB"

    def open(self, items: Sequence[Item]) -> AnySamples:
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
            self.aim.ignored,
            self.shares,
        )

    def check_targets(self) -> None:
        """Raises InputError where the network's output is of another kind than the targets."""
        axes, target = self.network.output_axes, self.data.kinds[1]
        if self.aim.task == "labels" and target == "images":
            found = "gives a number a class for the whole image, the targets are masks"
            raise InputError(self.source, found, 'a network of images, or target_type "labels"')
        if self.aim.task == "labels" and axes:
            found = "gives an image, the targets are classes of whole samples"
            raise InputError(self.source, found, "a network that ends in a number a class")
        if self.aim.task != "labels" and axes != self.network.dimensions:
            found = f"gives an output of {axes} axes, the targets have {self.network.dimensions}"
            raise InputError(self.source, found, "a network whose output is like its input")

    def check_output(self, size: tuple[int, ...]) -> None:
        """Raises InputError where the output for samples of `size` (height, width), or of any
        axes, is not as large as the targets."""
        if self.aim.task == "labels" or self.network.keras is None:
            return
        graph = self.network.graph
        found = graph.shapes(size)[graph.nodes[-1].name][:-1]
        if found != size:
            sizes = [" x ".join(map(str, one)) for one in (found, size)]
            told = f"gives {sizes[0]} for {sizes[1]}, the size of the targets"
            raise InputError(self.source, told, "an output as large as the input")

    def transform(self) -> BatchTransform | VolumeTransform:
        """What is done to their batches."""
        if self.volumes:
            return VolumeTransform(self.data)
        return BatchTransform(self.data, self.aim.task, self.order)

    def loss(self, config: Config) -> LossFunction | None:
        """The loss that the configuration names, for this network and task."""
        if config.loss is None:
            return None
        network = self.network
        padded = bool(self.data.slicers or self.data.patches)
        return build_loss(config.loss, network.classes, self.aim.task, network.activation, padded)

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
            "grayscale": self.data.grayscale or self.data.input_grayscale,
            "channels": self.network.in_channels,
            "classes": self.network.classes,
            "class_names": list(self.aim.names),
            "task": self.aim.task,
            "reading": self.aim.reading,
            "scaling": "pixel / 255" if self.data.kinds[0] in ("images", "mnist") else "none",
            "threshold": 0.5,
            "precision": self.precision,
            "masks": self.masks.model_dump() if self.masks else None,
            "volumes": self.volumes.model_dump(mode="json") if self.volumes else None,
            "window": self.window.model_dump() if self.window else None,
            "slices": {
                "channels": list(self.slices.channels),
                "height": self.slices.shape[0],
                "width": self.slices.shape[1],
                "target": list(self.slices.planes),
            }
            if self.slices
            else None,
        }


def open_run(config: Config) -> tuple[Parts, Usage]:
    """What a run works on, and how its network is used; raises InputError for what is amiss."""
    load = config.checkpoints.load
    checkpoint = load_checkpoint(load) if load else {}
    known = use_of(checkpoint, str(load)) if not config.trains else Use()
    if known.slices:
        config = _of_known_slices(config, known.slices)
    parts = open_parts(config, known.class_names)
    usage = usage_of(config, parts, checkpoint, known)
    asked = config.trains or "precision" in config.model_fields_set
    return parts, replace(usage, precision=config.precision if asked else known.precision)


def _of_known_slices(config: Config, known: SliceUse) -> Config:
    """With the channels and the target of the training, where the configuration names none."""
    asked = config.data.slices or Slices()
    told: dict[str, Any] = {"channels": asked.channels or known.channels, "target": asked.target}
    if known.target and "target" not in asked.model_fields_set:
        told["target"] = known.target
    slices = Slices.model_validate(told)
    data = config.data.model_copy(update={"slices": slices})
    return config.model_copy(update={"data": data})


def usage_of(config: Config, parts: Parts, checkpoint: dict[str, Any], known: Use) -> Usage:
    """The network, its size and its transforms, from the configuration and the checkpoint, which
    says how it is used (`known`).

    In a run without training, `layers` and `transforms` that are left out come from the
    checkpoint, and another size than the trained one is an InputError. A network of several classes
    without a split reads the values of masks as the numbers of the classes.
    """
    load = config.checkpoints.load
    source = config.layers if isinstance(config.layers, str) else load or "layers"
    network = _network(config, checkpoint, source)
    slices: SliceFiles | None = None
    for item in (*parts.training[:1], *parts.evaluation[:1]):
        if isinstance(item, Slice):
            slices = item.files
            if known.slices and list(slices.channels) != known.slices.channels:
                found = f"{list(slices.channels)}, but {load} was trained on "
                accepted = "leave `channels` out"
                raise InputError(
                    "data.slices.channels", f"{found}{known.slices.channels}", accepted
                )
            network = fitted(network, len(item.files.channels), classes=2)
    data = config.data
    if not config.trains and not any(getattr(data, name) for name in TRANSFORMS):
        data = data.model_copy(update={name: getattr(known, name) for name in TRANSFORMS})
    size, trained = size_of(data), known.image_size
    if trained and size != trained:
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
    if parts.header:
        return _of_volumes(config, parts, parts.header, network, source, checkpoint, known)
    masks = parts.masks
    masks = masks or known.masks
    loss = config.loss.function if config.loss else None
    ignored = config.loss.ignore_index if config.loss else None
    ignored = ignored if ignored not in range(network.classes) else None
    task = task_of(data, network.classes, network.output_axes, loss, parts.target_shape)
    names = parts.class_names or tuple(known.class_names)
    if task == "classes" and masks is None and network.classes <= MOST_CLASSES:
        stored = ignored if ignored in range(256) else None  # others are in no image
        masks = _numbered(network.classes, stored, data)
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
    aim = Aim(task, reading, names or Aim.names, ignored)
    shares = loss not in (None, "mse")
    return Usage(network, source, data, size, masks, aim, checkpoint, shares, slices=slices)


def _of_volumes(
    config: Config,
    parts: Parts,
    header: Header,
    network: Network,
    source: str,
    checkpoint: dict[str, Any],
    known: Use,
) -> Usage:
    """For prepared volumes, which say what their channels and classes are."""
    if known.volumes and known.volumes.preparation != header.preparation:
        raise InputError(
            str(config.data.test_input_path),
            "is prepared in another way than what the checkpoint was trained on",
            "volumes of the same preparation",
            "or predict the scans themselves: python -m trainer.predict",
        )
    if config.trains and not config.data.patches:
        accepted = '{"size": [depth, height, width]}'
        raise InputError("data.patches", "is missing: volumes are trained on in crops", accepted)
    network = fitted(network, len(header.channels), len(header.classes))
    if network.dimensions != 3 or network.output_axes != 3:
        raise InputError(source, "is no network of volumes", '"dimensions": 3')
    if network.in_channels != len(header.channels):
        told = ", ".join(header.channels)
        found = f"{network.in_channels} in_channels, but the volumes have {told}"
        raise InputError(source, found, f'"in_channels": {len(header.channels)}')
    outputs = {len(header.classes)} | ({1} if len(header.classes) == 2 else set())
    if network.classes not in outputs:
        found = f"{network.classes} classes, but the volumes have {', '.join(header.classes)}"
        raise InputError(source, found, f'"classes": {max(outputs)}')
    window = config.evaluation.window
    if "window" not in config.evaluation.model_fields_set and known.window:
        window = known.window
    if window.size is None:
        size = config.data.patches.size if config.data.patches else None
        size = size or (known.window.size if known.window else None)
        if size is None:
            raise InputError("evaluation.window", "has no size", "[depth, height, width]")
        window = window.model_copy(update={"size": size})
    own = config.data.patches.size if config.data.patches else None
    key = "data.patches, size" if window.size == own else "evaluation.window, size"
    _check_window(window.size or [], parts, key)
    for where, own in (
        ("data.patches, size", config.data.patches.size if config.data.patches else None),
        ("evaluation.window, size", window.size),
    ):
        if own:
            check_size(network, own, where)
    task: Task = "foreground" if network.classes == 1 else "classes"
    reading = reading_of(network.activation, config.loss, network.classes)
    aim = Aim(task, reading, tuple(header.classes))
    data = config.data
    return Usage(network, source, data, None, None, aim, checkpoint, volumes=header, window=window)


def _check_window(size: Sequence[int], parts: Parts, key: str) -> None:
    """Raises InputError where a window is far larger than any case: it would be mostly filling."""
    shapes = [
        case.grid.shape for case in (*parts.training, *parts.evaluation) if isinstance(case, Case)
    ]
    largest = [max(shape[axis] for shape in shapes) for axis in range(3)]
    if any(own > 4 * side + 64 for own, side in zip(size, largest, strict=True)):
        told = "x".join(map(str, size))
        found = f"{told} voxels, the largest case has {'x'.join(map(str, largest))}"
        raise InputError(key, found, "at most a few times as large")


def _numbered(count: int, ignored: int | None, data: Data) -> Masks:
    """Masks whose values are the numbers of the classes; 255 is the second of two, too.

    Where targets are normalised, their values / 255 are the classes after that, as published.
    """
    values = [[0], [1, 255]] if count == 2 and ignored != 255 else [[n] for n in range(count)]
    both = [*data.transforms, *data.target_transforms]
    if scales := [one.value for one in both if one.name == "normalize"]:
        values = [[] for _ in range(count)]
        for value in range(256):
            number = value / 255
            for scale in scales:
                number = (number - scale.get("mean", 0.0)) / scale.get("std", 1.0)
            if abs(number - round(number)) < NEAR and round(number) in range(count):
                values[round(number)].append(value)
    classes = [MaskClass(name=f"class {n}", values=values[n]) for n in range(count)]
    return Masks(values=list(range(count)), classes=classes, numbers=True, ignored=ignored)


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
