"""What a layer of a Keras network is before any tensor exists: its facts, checked.

Shapes are Keras's: channels last, without the batch, None where a size is not known. Tensors are
torch's: (N, C, H, W), for any rank; only a layer that mixes axes (Flatten, Reshape) looks at them
in Keras's order. Nothing is permuted between layers: with the memory format channels_last these
views cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.networks.keras.activations import (
    LINEAR,
    Activation,
)
from trainer.networks.keras.initial import Initial
from trainer.networks.keras.options import LARGEST, Options

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int | None, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Parameter:
    """One tensor of a layer: torch's name and shape, and Keras's.

    `axes` are the axes of Keras's array in torch's order (a reshape follows for depthwise kernels).
    `statistic`: kept by the layer, not trained. `in_file`: Keras writes it, too.
    """

    name: str
    shape: tuple[int, ...]
    keras: str
    keras_shape: tuple[int, ...]
    axes: tuple[int, ...]
    initial: Initial
    statistic: bool = False
    in_file: bool = True

    @property
    def count(self) -> int:
        """So many numbers."""
        return math.prod(self.shape)


def _no_work(inputs: Sequence[Shape], output: Shape) -> int:
    return 0


def _identity(module: Any, tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class Layer:
    """What a layer is, as far as it is known without torch.

    `shape`: shapes that come in → shape that goes out; raises InputError where they do not fit.
    `build` makes the torch module (None: it needs none), `call` computes with it, without
    `activation`, which follows. `fused` is true where the activation is an option of another layer.
    `multiply_adds`: (shapes that come in, shape that goes out) → of one sample. `zeros` are what a
    layer of zero padding puts around; `padded` makes the same layer with so much more padding of
    its own. `fresh`: its output is its own and nobody needs it again for the gradient, so that an
    activation may overwrite it. `outputs_positive`: never below zero.
    """

    shape: Callable[[Sequence[Shape]], Shape]
    call: Callable[[Any, Sequence[Tensor]], Tensor] = _identity
    build: Callable[[], Any] | None = None
    parameters: tuple[Parameter, ...] = ()
    activation: Activation = LINEAR
    fused: bool = True
    multiply_adds: Callable[[Sequence[Shape], Shape], int] = _no_work
    zeros: tuple[int, ...] | None = None
    padded: Callable[[tuple[int, ...]], Layer | None] | None = None
    fresh: bool = False


Build = Callable[[Options, Sequence[Shape]], Layer]


# ---- shapes ----


def shape_text(shape: Shape) -> str:
    """(64, 64, 3), with ? for a size that is not known."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def one_input(o: Options, inputs: Sequence[Shape], dimensions: int | None = None) -> Shape:
    """The shape that comes in, of a layer that takes one, of so many dimensions beside channels."""
    if len(inputs) != 1:
        raise o.fault("", f"has {len(inputs)} inputs", "one")
    if dimensions is not None and len(inputs[0]) != dimensions + 1:
        names = {1: "(length, channels)", 2: "(height, width, channels)"}
        wanted = names.get(dimensions, "(depth, height, width, channels)")
        raise o.fault("", f"its input has the shape {shape_text(inputs[0])}", wanted)
    return inputs[0]


def known_channels(o: Options, shape: Shape) -> int:
    """The channels of a shape; raises InputError where they are not known."""
    if shape[-1] is None:
        raise o.fault("", "the size of its input is not known", "an InputLayer with a fixed shape")
    return shape[-1]


def check_channels(o: Options, shape: Shape, channels: int) -> None:
    """Raises InputError for another number of channels."""
    if shape[-1] != channels:
        found = f"its input would have {shape[-1]} channels instead of {channels}"
        raise o.fault("", found, "the size that the InputLayer declares")


def positive(o: Options, sizes: Sequence[int | None], shape: Shape) -> Shape:
    """The shape with these sizes; raises InputError where one of them would vanish."""
    if any(size is not None and not 0 < size <= LARGEST for size in sizes):
        raise o.fault("", f"leaves nothing of its input {shape_text(shape)}", "a larger image")
    return tuple(sizes)


def unchanged(o: Options, dimensions: int | None = None) -> Callable[[Sequence[Shape]], Shape]:
    """A layer that gives the shape that it gets, of so many dimensions."""
    return lambda inputs: one_input(o, inputs, dimensions)


def product(sizes: Sequence[int | None]) -> int:
    """0 where a size is not known."""
    return math.prod(size or 0 for size in sizes)
