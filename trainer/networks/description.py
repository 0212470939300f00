"""The network file (`layers`): which network, and how it is built. Torch-free.

    {"network": "unet", "width": 8, "depth": 4, …}                     the U-Net of this program
    {"network": "smp.Unet", "encoder": "resnet50", …}  any of segmentation_models_pytorch
    {"network": "monai.SegResNet", "arguments": {…}}               any of MONAI
    {"module": "my_net.py:Net", "arguments": {"width": 32}}        a class of the user's own
    with "in_channels": 3, "classes": 1, "activation": "sigmoid", "weights": null
    and "dimensions": 3 for volumes, of all but smp

A study sets in_channels, classes and activation by its data where the file leaves them out.

A file with `class_name`, or a bare array, is a Keras network (keras/graph.py), which says all of
this by itself. The module of the user lies beside the network file (in a trial: beside its copy;
later: beside the checkpoint) and is not run here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.config import read_json
from trainer.errors import InputError, joined, nearest
from trainer.networks.keras.graph import Graph, graph_of, is_keras

MONAI_NETWORKS = (
    *("AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "FlexibleUNet", "HighResNet"),
    *("MedNeXt", "SegResNet", "SwinUNETR", "UNETR", "UNet", "VNet"),
)
"""Some of MONAI's networks that segment, for hints; the others work too."""

SMP_NETWORKS = (
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "DPT",
    "PSPNet",
    "PAN",
    "DeepLabV3",
    "DeepLabV3Plus",
    "UPerNet",
    "Segformer",
)
"""For hints; what a later version has besides works too."""

ENCODERS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "densenet121"),
    *("efficientnet-b0", "efficientnet-b3", "mobilenet_v2", "mit_b0", "mit_b2", "vgg16_bn"),
    *("tu-convnext_tiny", "tu-resnet10t", "tu-efficientnetv2_rw_s"),
)
"""Some of the encoders of smp, for hints; the others work too."""

ENCODER_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""timm fetches what other names lead to, like tu-hf-hub:someone/model."""

NETWORKS = (
    *("unet", *(f"smp.{name}" for name in SMP_NETWORKS)),
    *(f"monai.{name}" for name in MONAI_NETWORKS),
)
ACCEPTED = "unet, smp.NAME, monai.NAME, or module: FILE.py:CLASS in the network's place"
LIBRARY_NAME = re.compile(r"(smp|monai)\.[A-Za-z]\w*")
MODULE_NAME = re.compile(r"[^:\0]+\.py:[^\W\d]\w*")
FETCHES = re.compile(r"pretrain|url|weights|^(checkpoint|filename|path_or_repo)|hub")
"""Arguments by which smp, timm and MONAI fetch weights, or read them from any file."""

SMP_DIVISOR = 32
KEYS_OF = {"encoder": ("smp",), "arguments": ("smp", "monai", "module"), "module": ("module",)}
"""Keys that only some kinds of network take."""

KEYS_OF_UNET = (
    *("widths", "half_first", "downsampling", "upsampling", "nonlinearity", "convolution_bias"),
    *("normalization", "groups", "normalization_momentum", "normalization_eps", "dropout"),
    "initialization",
)


class Network(BaseModel):
    """A network file, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    network: str = Field(
        description="unet; smp.NAME, like smp.Unet; or monai.NAME, like monai.SegResNet; may be "
        "left out with module."
    )
    module: str | None = Field(
        None,
        description="FILE.py:CLASS, a torch module of your own; the file lies beside this one.",
    )
    arguments: dict[str, Any] = Field(
        {},
        description="smp, monai, module: what the class is called with. Input channels and "
        "classes are filled in where it takes them.",
    )
    divisor: int = Field(
        0,
        ge=0,
        description="Image sides must be multiples of this many pixels; 0: what is known of the "
        "network (unet 2**depth, smp 32, others 1).",
    )
    encoder: str | None = Field(None, description="smp: name of the encoder, like resnet50.")
    dimensions: int = Field(
        2, ge=0, le=3, description="2 for images, 3 for volumes: unet, monai and module."
    )
    width: int = Field(
        8, ge=1, description="unet: channels of the first level, twice as many in each level below."
    )
    depth: int = Field(4, ge=1, le=8, description="unet: how often the image is halved.")
    widths: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        min_length=2,
        max_length=9,
        description="unet: channels of each level, the first one above. Instead of width, depth..",
    )
    half_first: bool = Field(
        False,
        description="unet: the first of the two convolutions of a level has half of its channels, "
        "on the way down.",
    )
    downsampling: Literal["pool", "stride"] = Field(
        "pool", description="unet: by maximum, or by a stride of 2 of a level's first convolution."
    )
    upsampling: Literal["transpose", "transpose_same", "nearest"] = Field(
        "transpose",
        description="unet: transposed convolution to the channels of the level above, or one that "
        "keeps its channels, or the nearest value, which keeps them too.",
    )
    nonlinearity: Literal["relu", "leaky_relu"] = Field(
        "relu", description="unet: leaky_relu has the slope 0.01 below 0."
    )
    convolution_bias: bool = Field(
        False, description="unet: of the 3x3 convolutions; all others have one."
    )
    normalization: Literal["batch", "instance", "group", "none"] = Field(
        "batch", description="unet: after each 3x3 convolution, with a scale and a shift a channel."
    )
    groups: int = Field(4, ge=1, description="unet: groups of channels of group normalization.")
    normalization_momentum: float = Field(
        0.1, gt=0, le=1, description="unet, batch: share of a batch in the running statistics."
    )
    normalization_eps: float = Field(
        1e-5, gt=0, description="unet: added to the variance that is divided by."
    )
    dropout: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [],
        description="unet: one number a level, the first one above: share of values set to 0 "
        "between its two convolutions on the way down.",
    )
    initialization: Literal["default", "he_uniform", "glorot_uniform", "truncated_normal"] = Field(
        "default",
        description="unet: of convolutions; default is torch's. truncated_normal has the standard "
        "deviation 0.05. Biases start from 0 unless default.",
    )
    in_channels: int = Field(3, ge=1, description="1 grey, 3 RGB.")
    classes: int = Field(1, ge=1, description="Output channels: 1 for foreground alone.")
    activation: Literal["sigmoid", "softmax", "log_softmax"] | None = Field(
        None, description="Of the output: sigmoid for 1 class, softmax for several (default)."
    )
    keras: str | None = Field(
        None, description="A Keras network file's whole content, as text (in checkpoints)."
    )
    weights: str | None = Field(
        None, description="Encoder's weights: null (random), imagenet, or a safetensors file."
    )
    mean: list[float] | None = Field(None, description="Subtracted a channel, values in [0, 1].")
    std: list[float] | None = Field(None, description="Then divided by, a channel.")

    @model_validator(mode="before")
    @classmethod
    def _what_follows(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        if content.get("keras") is not None:
            return content
        known = dict(content)
        if content.get("activation") is None:
            known["activation"] = "sigmoid" if content.get("classes", 1) == 1 else "softmax"
        if content.get("module") is not None:
            known.setdefault("network", "module")
        if isinstance(widths := content.get("widths"), list) and len(widths) > 1:
            known.setdefault("depth", len(widths) - 1)
        return known

    @model_validator(mode="after")
    def _known_divisor(self) -> Network:
        if self.divisor == 0:
            known = {"unet": 2**self.depth, "smp": SMP_DIVISOR}.get(self.kind, 1)
            if self.keras is not None:
                known = self.graph.divisor or 1
            object.__setattr__(self, "divisor", known)
        return self

    @property
    def kind(self) -> str:
        """unet, smp, monai, module or keras."""
        return self.network.partition(".")[0]

    @property
    def graph(self) -> Graph:
        """Of a Keras network."""
        assert self.keras is not None
        return graph_of(self.keras, "layers")

    @property
    def levels(self) -> list[int]:
        """Channels of each level of the unet."""
        return self.widths or [self.width * 2**level for level in range(self.depth + 1)]

    @property
    def output_axes(self) -> int:
        """Of the output, without batch and classes: 2 for images, 3 for volumes, 0 for a number a
        class."""
        return len(self.graph.output_shape) - 1 if self.keras is not None else self.dimensions

    @property
    def operations(self) -> int | None:
        """As rmldnn counts them; None but for Keras networks."""
        return self.graph.operations if self.keras is not None else None

    def for_checkpoint(self) -> Network:
        """As a checkpoint keeps it: its weights are its own, a Python file lies beside it."""
        module = (
            self.module
            and f"{Path(self.module.rpartition(':')[0]).name}:" + (self.module.rpartition(":")[2])
        )
        return self.model_copy(update={"weights": None, "module": module})

    @property
    def label(self) -> str:
        """Short name for tables and logs."""
        if self.keras is not None:
            return self.graph.name
        name = self.module or self.network
        return name if self.encoder is None else f"{name} {self.encoder}"


def parse_network(content: Any, where: str) -> Network:
    """A checked network description from parsed JSON; raises InputError named by `where`."""
    if is_keras(content):
        return _of_keras(content, where)
    if not isinstance(content, dict):
        raise InputError(where, "this is not a network file", 'like {"network": "unet"}')
    try:
        network = Network.model_validate(content)
    except ValidationError as error:
        raise _explained(error, where) from None
    if network.kind == "keras" or network.keras is not None:
        return _from_checkpoint(network, where)
    _check(network, where)
    return network


def _of_keras(content: Any, where: str) -> Network:
    """All that a network file says follows from the graph."""
    try:
        text = json.dumps(content)
    except (RecursionError, ValueError):
        raise InputError(where, "is nested too deeply", "a Keras network file") from None
    graph = graph_of(text, where)
    names = ("in_channels", "classes", "activation", "dimensions")
    facts = {name: getattr(graph, name) for name in names}
    return Network.model_validate({"network": "keras", "keras": text, **facts})


def _from_checkpoint(network: Network, where: str) -> Network:
    """A Keras network as a checkpoint keeps it."""
    try:
        content = json.loads(network.keras or "")
    except (ValueError, RecursionError):
        raise InputError(f"{where}, keras", "is not a Keras network file's text") from None
    if not is_keras(content):
        raise InputError(f"{where}, keras", "is not a Keras network file's text")
    return _of_keras(content, where)


def _explained(error: ValidationError, where: str) -> InputError:
    faults = []
    for finding in error.errors():
        name = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            hint = nearest(name, Network.model_fields)
            faults.append(InputError(where, f"unknown key '{name}'{hint}"))
        elif finding["type"] == "missing":
            faults.append(InputError(where, f"the key '{name}' is missing"))
        else:
            faults.append(
                InputError(f"{where}, {name}", f"{finding['msg']}, found {finding['input']!r}")
            )
    return joined(faults, where)


def _check(network: Network, where: str) -> None:
    if network.network not in ("unet", "module") and not LIBRARY_NAME.fullmatch(network.network):
        hint = nearest(network.network, NETWORKS)
        raise InputError(where, f"unknown network '{network.network}'{hint}", ACCEPTED)
    for key, kinds in KEYS_OF.items():
        if getattr(network, key) and network.kind not in kinds:
            raise InputError(
                where, f"{network.network} takes no '{key}'", f"with {', '.join(kinds)}"
            )
    for key in KEYS_OF_UNET if network.kind != "unet" else ():
        if getattr(network, key) != Network.model_fields[key].default:
            raise InputError(where, f"{network.network} takes no '{key}'", "with unet")
    if network.dimensions not in (2, 3) or (network.kind == "smp" and network.dimensions == 3):
        found = f"{network.network} has no {network.dimensions} dimensions"
        fix = 'for volumes: "unet", "monai.NAME" or a module' if network.kind == "smp" else ""
        accepted = "2" if network.kind == "smp" else "2 or 3"
        raise InputError(f"{where}, dimensions", found, accepted, fix)
    if network.kind == "unet":
        _check_unet(network, where)
    if network.kind == "module" and not MODULE_NAME.fullmatch(network.module or ""):
        raise InputError(f"{where}, module", f"found {network.module!r}", "like my_net.py:Net")
    if network.kind == "smp" and network.encoder is None:
        raise InputError(where, f"{network.network} needs an 'encoder'", "like resnet50")
    if network.encoder is not None and not ENCODER_NAME.fullmatch(network.encoder):
        found = f"'{network.encoder}' is not the name of an encoder"
        hint = nearest(network.encoder, ENCODERS)
        raise InputError(f"{where}, encoder", found + hint, "letters, digits, and any of _ . -")
    for key, value in network.arguments.items():
        if network.kind != "module" and value and FETCHES.search(key):
            found = f"'{key}': networks fetch nothing, and read no file of weights"
            fix = 'leave it out; weights of an encoder of smp are named by "weights"'
            raise InputError(f"{where}, arguments", found, fix=fix)
    if (network.classes == 1) != (network.activation == "sigmoid"):
        found = f"classes {network.classes} with activation {network.activation}"
        raise InputError(where, found, "sigmoid with 1 class, softmax with several")
    for key, values in (("mean", network.mean), ("std", network.std)):
        if values is not None and len(values) != network.in_channels:
            found = f"{len(values)} numbers for {network.in_channels} channels"
            raise InputError(f"{where}, {key}", found, "one a channel")
    if network.std is not None and min(network.std) <= 0:
        raise InputError(f"{where}, std", f"{min(network.std)} is not positive", "above 0")


def _check_unet(network: Network, where: str) -> None:
    levels = network.levels
    for key, values in (("widths", network.widths), ("dropout", network.dropout)):
        if values and len(values) != network.depth + 1:
            found = f"{len(values)} numbers for depth {network.depth}"
            raise InputError(f"{where}, {key}", found, f"{network.depth + 1}: one a level")
    divisor = network.groups if network.normalization == "group" else 1
    divisor *= 2 if network.half_first else 1
    if odd := [width for width in levels if width % divisor]:
        why = "groups" + (" in half of them" if network.half_first else "")
        told = f"{odd[0]} channels cannot be parted into {network.groups} {why}"
        if network.normalization != "group":
            told = f"{odd[0]} channels have no half"
        raise InputError(where, told, f"widths that are multiples of {divisor}")


def fitted(network: Network, channels: int, classes: int) -> Network:
    """With the data's channels and classes (the background among them) where the file names none.

    Two classes are one output.
    """
    if network.keras is not None:
        return network
    update: dict[str, Any] = {}
    if "in_channels" not in network.model_fields_set:
        update["in_channels"] = channels
    if "classes" not in network.model_fields_set:
        update["classes"] = classes if classes > 2 else 1
        update["activation"] = "softmax" if classes > 2 else "sigmoid"
    return network.model_copy(update=update)


def read_network(path: str | Path) -> Network:
    """The network file at `path`; raises InputError."""
    return parse_network(read_json(path, "layers file"), str(path))


def module_file(content: Any, layers: Path) -> Path | None:
    """The Python file that the network file `layers` with this content names, else None.

    Raises InputError where it is not there.
    """
    if is_keras(content):  # Keras 3 writes where its own classes come from
        return None
    named = content.get("module") if isinstance(content, dict) else None
    if named is None:
        return None
    path = layers.parent / str(named).rpartition(":")[0]
    if not path.is_file():
        raise InputError(f"{layers}, module", f"there is no file '{path}'", "beside the file")
    return path


def array_order(size: Sequence[int]) -> tuple[int, ...]:
    """(width, height) of an image as (height, width), and back; (depth, height, width) of a volume
    and the length of a signal stay."""
    return (size[1], size[0]) if len(size) == 2 else tuple(size)


def shown_size(size: Sequence[int]) -> str:
    """256x128 pixels (width, height), or 64x64x32 voxels (depth, height, width)."""
    return f"{'x'.join(map(str, size))} {'voxels' if len(size) == 3 else 'pixels'}"


def check_size(network: Network, size: Sequence[int], where: str) -> None:
    """Raises InputError where the network cannot take an image of `size`; order: array_order."""
    if network.keras is not None:
        _check_keras_size(network, size, where)
        return
    told = f"{network.label} cannot take {shown_size(size)}"
    for side in size:
        if side % network.divisor or side < network.divisor:
            below = max(network.divisor, side // network.divisor * network.divisor)
            above = below + network.divisor
            nearest_sides = f"the nearest are {below} and {above}"
            raise InputError(where, told, f"multiples of {network.divisor}; {nearest_sides}")
    lowest = 2**network.depth
    if network.kind == "unet" and network.normalization == "instance" and set(size) == {lowest}:
        found = f"{told}: its lowest level has one value a channel, which has no variance"
        raise InputError(where, found, f"one side or more of at least {2 * lowest}")


def _check_keras_size(network: Network, size: Sequence[int], where: str) -> None:
    graph = network.graph
    try:
        graph.check_size(array_order(size))
    except InputError as error:
        accepted = ""
        if graph.divisor:
            accepted = f"multiples of {graph.divisor}"
        elif None not in graph.input_shape:
            declared = [side or 0 for side in graph.input_shape[:-1]]
            accepted = "x".join(map(str, array_order(declared)))
        told = f"{error.where.removeprefix('layers, ')}: {error.found}"
        found = f"{network.label} cannot take {shown_size(size)}; {told}"
        raise InputError(where, found, accepted) from None
