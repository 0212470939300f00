"""Layers of Keras that keep sizes: dense, activations, dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.networks.keras.activations import (
    ACTIVATIONS,
    Activation,
    activation,
    bounded_relu,
    elu,
    leaky_relu,
)
from trainer.networks.keras.convolution import bias_parameters
from trainer.networks.keras.initial import initial
from trainer.networks.keras.layer import (
    Layer,
    Parameter,
    Shape,
    known_channels,
    one_input,
    product,
    unchanged,
)
from trainer.networks.keras.options import Options, shown

if TYPE_CHECKING:
    from torch import Tensor


def dense_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Dense: over the last axis, Keras's channels."""
    shape = one_input(o, inputs)
    channels, units = known_channels(o, shape), o.whole("units")
    start = initial(o, "kernel_initializer", "glorot_uniform", (channels, units))
    kernel = Parameter("weight", (units, channels), "kernel", (channels, units), (1, 0), start)
    bias, fused = bias_parameters(o, units), activation(o)

    def build() -> Any:
        from torch import nn

        return nn.Linear(channels, units, bias=bool(bias))

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[0]
        if x.dim() == 2:
            return module(x)
        return module(x.movedim(1, -1)).movedim(-1, 1)

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = one_input(o, shapes)
        if coming[-1] is not None and coming[-1] != channels:
            found = f"has weights for {channels} inputs, this size gives {coming[-1]}"
            raise o.fault("", found, "images of the size that the InputLayer declares")
        return (*coming[:-1], units)

    return Layer(
        out,
        call,
        build,
        (kernel, *bias),
        fused,
        multiply_adds=lambda shapes, out: product(out[:-1]) * kernel.count,
        fresh=True,
    )


def activation_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Activation: a function by name."""
    shape = one_input(o, inputs)
    axis = o.value("axis")  # rmldnn's own files have one: 1, torch's channels
    if axis is not None and (isinstance(axis, bool) or axis not in (-1, 1, len(shape))):
        raise o.fault("axis", f"found {shown(axis)}", "-1, the channels")
    if not o.given("activation"):
        raise o.fault("activation", "is missing", ", ".join(ACTIVATIONS))
    return Layer(unchanged(o), activation=activation(o), fused=False)


def named_layer(name: str, o: Options, inputs: Sequence[Shape]) -> Layer:
    """A layer that is an activation itself: Sigmoid, Tanh, Swish."""
    one_input(o, inputs)
    return Layer(unchanged(o), activation=ACTIVATIONS[name], fused=False)


def softmax_layer(name: str, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Softmax and Log_Softmax, over the channels."""
    shape = one_input(o, inputs)
    value = o.value("axis", -1)
    channels_of_torch = (1,) if name == "log_softmax" else ()  # not a class of Keras: rmldnn's own
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or value not in (-1, len(shape), *channels_of_torch):
        raise o.fault("axis", f"found {shown(value)}", f"-1 or {len(shape)}, the channels")
    return Layer(unchanged(o), activation=ACTIVATIONS[name], fused=False)


def relu_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """ReLU with its limit, slope and threshold."""
    one_input(o, inputs)
    most = o.number("max_value", None, 0.0) if o.given("max_value") else None
    o.value("max_value")
    slope = o.number("negative_slope", 0.0, 0.0)
    threshold = o.number("threshold", 0.0, 0.0)
    apply = bounded_relu(most, slope, threshold)
    return Layer(unchanged(o), activation=Activation("relu", apply, slope == 0.0), fused=False)


def leaky_relu_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """The slope is `alpha` in Keras 2, `negative_slope` in Keras 3."""
    one_input(o, inputs)
    slope = o.number("negative_slope" if o.given("negative_slope") else "alpha", 0.3, 0.0)
    o.value("alpha"), o.value("negative_slope")
    return Layer(unchanged(o), activation=Activation("leaky_relu", leaky_relu(slope)), fused=False)


def elu_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """ELU with its alpha."""
    one_input(o, inputs)
    alpha = o.number("alpha", 1.0, 0.0)
    return Layer(unchanged(o), activation=Activation("elu", elu(alpha)), fused=False)


def dropout_layer(n: int | None, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Only in training. `n` dimensions: whole channels are dropped."""
    one_input(o, inputs, n)
    rate = o.number("rate", None, 0.0, 1.0)
    o.must_be("noise_shape")
    if n is not None:
        o.channels_last()

    def build() -> Any:
        from torch import nn

        return getattr(nn, f"Dropout{n}d" if n else "Dropout")(rate)

    def call(module: Any, tensors: Any) -> Any:
        return module(tensors[0]) if module else tensors[0]

    return Layer(unchanged(o, n), call, build if rate else None)
