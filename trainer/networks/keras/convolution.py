"""Convolutions of Keras: plain, depthwise, separable, transposed; in 1 to 3 dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.networks.keras.activations import (
    Activation,
    activation,
)
from trainer.networks.keras.initial import initial
from trainer.networks.keras.layer import (
    Layer,
    Parameter,
    Shape,
    check_channels,
    known_channels,
    one_input,
    positive,
    product,
)
from trainer.networks.keras.options import Options

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A window that moves over an image. `padding`: valid, same, causal, or fixed on both sides."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Pixels from the first to the last of the window."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def around(self, size: int, axis: int) -> tuple[int, int]:
        """Padding (before, after) of a size along an axis. `same` puts the odd one at the end:
        https://www.tensorflow.org/api_docs/python/tf/nn (notes on padding).

        `size` may be torch's symbol of a size that stays free in an export: no comparison here.
        """
        reach, stride = self.reach[axis], self.strides[axis]
        if self.padding == "same":
            total = ((size + stride - 1) // stride - 1) * stride + reach - size
            if reach < stride:  # else it is never negative
                total = max(total, 0)
            return total // 2, total - total // 2
        if self.padding == "causal":
            return reach - 1, 0
        each = 0 if self.padding == "valid" else int(self.padding[axis])
        return each, each

    def fixed(self) -> tuple[int, ...] | None:
        """Padding that is the same on both sides for every size; None where it depends."""
        if isinstance(self.padding, tuple):
            return self.padding
        if self.padding == "valid":
            return (0,) * len(self.kernel)
        even = all(stride == 1 for stride in self.strides) and all(r % 2 for r in self.reach)
        return tuple(r // 2 for r in self.reach) if even and self.padding == "same" else None

    def out(self, size: int | None, axis: int) -> int | None:
        """The size that goes out; 0 or less where the window does not fit."""
        if size is None:
            return None
        full = size + sum(self.around(size, axis))
        return (full - self.reach[axis]) // self.strides[axis] + 1

    def outs(self, o: Options, shape: Shape) -> Shape:
        """The sizes that go out, without channels; raises InputError."""
        sizes = [self.out(size, axis) for axis, size in enumerate(shape[:-1])]
        return positive(o, sizes, shape)

    def pads(self, sizes: Sequence[int]) -> list[int]:
        """For torch's `pad`, which begins with the last axis."""
        pairs = [self.around(size, axis) for axis, size in enumerate(sizes)]
        return [amount for pair in reversed(pairs) for amount in pair]


def _window(o: Options, n: int, key: str = "kernel_size", causal: bool = False) -> Window:
    """The options of a convolution's window. `padding` may be whole numbers (rmldnn)."""
    value = o.value("padding", "valid")
    padding: str | tuple[int, ...]
    if isinstance(value, str):
        padding = o.word("padding", value, ("valid", "same", *(("causal",) if causal else ())))
    else:
        padding = o.sizes("padding", n, least=0)
    strides, dilation = o.sizes("strides", n, 1), o.sizes("dilation_rate", n, 1)
    if max(strides) > 1 and max(dilation) > 1:
        raise o.fault("dilation_rate", "together with strides above 1", "one of the two")
    return Window(o.sizes(key, n), strides, dilation, padding)


def with_border(x: Tensor, window: Window, value: float = 0.0) -> Tensor:
    """The padding that depends on the size of what comes in."""
    import torch.nn.functional as F

    pads = window.pads(x.shape[2:])
    return x if no_padding(pads) else F.pad(x, pads, value=value)


def no_padding(pads: Sequence[int]) -> bool:
    """No padding, as far as that is a number and not a symbol."""
    return all(isinstance(amount, int) and amount == 0 for amount in pads)


def _convolving(
    window: Window,
) -> tuple[tuple[int, ...], Callable[[Any, Sequence[Tensor]], Tensor]]:
    """What torch pads by itself, and how the layer computes."""
    fixed = window.fixed()
    if fixed is not None:
        return fixed, lambda module, tensors: module(tensors[0])
    return (0,) * len(window.kernel), lambda module, tensors: module(
        with_border(tensors[0], window)
    )


def with_padding(window: Window, more: tuple[int, ...]) -> Window | None:
    """The window with zeros put around before; None for one that does not pad evenly."""
    if window.padding != "valid" and not isinstance(window.padding, tuple):
        return None
    fixed = window.fixed() or ()
    return Window(
        window.kernel,
        window.strides,
        window.dilation,
        tuple(a + b for a, b in zip(fixed, more, strict=True)),
    )


def _kernel(o: Options, k: tuple[int, ...], inputs: int, outputs: int, part: str = "") -> Parameter:
    """A convolution's kernel: Keras (window…, inputs, outputs), torch (outputs, inputs, window…).

    `part` is pointwise for that half of a separable convolution.
    """
    n, keras_shape = len(k), (*k, inputs, outputs)
    start = initial(o, f"{part or 'kernel'}_initializer", "glorot_uniform", keras_shape)
    name, keras = (f"{part}.weight", f"{part}_kernel") if part else ("weight", "kernel")
    return Parameter(name, (outputs, inputs, *k), keras, keras_shape, (n + 1, n, *range(n)), start)


def _depthwise_kernel(o: Options, window: Window, inputs: int, per: int, name: str) -> Parameter:
    """Keras (window…, inputs, multiplier), torch (inputs * multiplier, 1, window…)."""
    n, k = len(window.kernel), window.kernel
    keras_shape = (*k, inputs, per)
    start = initial(o, "depthwise_initializer", "glorot_uniform", keras_shape)
    axes = (n, n + 1, *range(n))
    return Parameter(name, (inputs * per, 1, *k), "depthwise_kernel", keras_shape, axes, start)


def bias_parameters(o: Options, outputs: int, name: str = "bias") -> tuple[Parameter, ...]:
    """The bias, if the layer has one; no parameters else."""
    if not o.flag("use_bias", True):
        return ()
    start = initial(o, "bias_initializer", "zeros", (outputs,))
    return (Parameter(name, (outputs,), "bias", (outputs,), (0,), start),)


def _moving(
    o: Options,
    n: int,
    window: Window,
    sizes: tuple[int, int],
    parameters: tuple[Parameter, ...],
    fused: Activation,
    make: Callable[[Window, tuple[int, ...]], Any],
) -> Layer:
    """A convolution that is made by `make(window, padding)`; `sizes`: channels in and out."""
    padding, call = _convolving(window)

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = one_input(o, shapes, n)
        check_channels(o, coming, sizes[0])
        return (*window.outs(o, coming), sizes[1])

    def padded(more: tuple[int, ...]) -> Layer | None:
        wider = with_padding(window, more)
        if wider is None:
            return None
        return _moving(o, n, wider, sizes, parameters, fused, make)

    weights = sum(p.count for p in parameters if len(p.shape) > 1)
    return Layer(
        out,
        call,
        lambda: make(window, padding),
        parameters,
        fused,
        multiply_adds=lambda shapes, out: product(out[:-1]) * weights,
        padded=padded,
        fresh=True,
    )


def convolution_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Conv1D to Conv3D: windows that slide, in groups if asked."""
    channels = known_channels(o, one_input(o, inputs, n))
    o.channels_last()
    window = _window(o, n, causal=n == 1)
    filters, groups = o.whole("filters"), o.whole("groups", 1)
    if channels % groups or filters % groups:
        found = f"{groups} groups for {channels} channels and {filters} filters"
        raise o.fault("groups", found, "a divisor of both")
    kernel = _kernel(o, window.kernel, channels // groups, filters)
    bias = bias_parameters(o, filters)

    def make(w: Window, padding: tuple[int, ...]) -> Any:
        from torch import nn

        convolution = getattr(nn, f"Conv{n}d")
        options = (w.kernel, w.strides, padding, w.dilation, groups, bool(bias))
        return convolution(channels, filters, *options)

    return _moving(o, n, window, (channels, filters), (kernel, *bias), activation(o), make)


def depthwise_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """DepthwiseConv1D to 3D: each channel has windows of its own, `depth_multiplier` of them."""
    channels = known_channels(o, one_input(o, inputs, n))
    o.channels_last()
    o.must_be("groups", 1)
    window, outputs = _window(o, n), channels * o.whole("depth_multiplier", 1)
    kernel = _depthwise_kernel(o, window, channels, outputs // channels, "weight")
    bias = bias_parameters(o, outputs)

    def make(w: Window, padding: tuple[int, ...]) -> Any:
        from torch import nn

        convolution = getattr(nn, f"Conv{n}d")
        options = (w.kernel, w.strides, padding, w.dilation, channels, bool(bias))
        return convolution(channels, outputs, *options)

    return _moving(o, n, window, (channels, outputs), (kernel, *bias), activation(o), make)


def separable_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Depthwise, then pointwise (1x1), which has the bias."""
    channels = known_channels(o, one_input(o, inputs, n))
    o.channels_last()
    o.must_be("groups", 1)
    window, per, filters = _window(o, n), o.whole("depth_multiplier", 1), o.whole("filters")
    inner = channels * per
    depth = _depthwise_kernel(o, window, channels, per, "depthwise.weight")
    point = _kernel(o, (1,) * n, inner, filters, "pointwise")
    bias = bias_parameters(o, filters, "pointwise.bias")

    def make(w: Window, padding: tuple[int, ...]) -> Any:
        from collections import OrderedDict

        from torch import nn

        convolution = getattr(nn, f"Conv{n}d")
        options = (w.kernel, w.strides, padding, w.dilation, channels, False)
        depthwise = convolution(channels, inner, *options)
        pointwise = convolution(inner, filters, 1, bias=bool(bias))
        return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))

    parameters = (depth, point, *bias)
    return _moving(o, n, window, (channels, filters), parameters, activation(o), make)


def transposed_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """The output's length is Keras's; of what torch computes, the odd pixel is cut at the end.

    https://github.com/keras-team/keras, compute_conv_transpose_output_length.
    """
    shape = one_input(o, inputs, n)
    channels = known_channels(o, shape)
    o.channels_last()
    o.must_be("groups", 1)
    mode = o.text("padding", "valid", ("valid", "same"))
    kernel_size, strides = o.sizes("kernel_size", n), o.sizes("strides", n, 1)
    dilation, filters = o.sizes("dilation_rate", n, 1), o.whole("filters")
    window = Window(kernel_size, strides, dilation, "valid")
    extra: tuple[int, ...] | None = None
    if o.given("output_padding"):
        extra = o.sizes("output_padding", n, least=0)
        if any(e >= s for e, s in zip(extra, strides, strict=True)):
            raise o.fault("output_padding", f"found {list(extra)}", "less than the strides")
    o.value("output_padding")
    # torch's own padding, what it adds at the end, and what is cut there, for each axis
    padding, added, cut = [], [], []
    for axis, (reach, stride) in enumerate(zip(window.reach, strides, strict=True)):
        # (size - 1) * stride + reach without any padding; so much more than what is wanted
        over = 0 if mode == "valid" else reach - stride
        if extra is not None:
            over = (2 * (reach // 2) if mode == "same" else 0) - extra[axis]
        elif mode == "valid":
            over = min(0, reach - stride)
        padding.append(max(over, 0) // 2)
        added.append(max(-over, 0))
        cut.append(max(over, 0) % 2)
    k = window.kernel
    keras_shape = (*k, filters, channels)
    start = initial(o, "kernel_initializer", "glorot_uniform", keras_shape)
    weight = Parameter(
        "weight", (channels, filters, *k), "kernel", keras_shape, (n + 1, n, *range(n)), start
    )
    bias, fused = bias_parameters(o, filters), activation(o)
    if any(a and a >= max(s, d) for a, s, d in zip(added, strides, dilation, strict=True)):
        raise o.fault("output_padding", "is larger than torch can add", "less than the strides")

    def build() -> Any:
        from torch import nn

        return getattr(nn, f"ConvTranspose{n}d")(
            channels,
            filters,
            k,
            strides,
            tuple(padding),
            tuple(added),
            1,
            bool(bias),
            dilation,
        )

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        y = module(tensors[0])
        for axis, last in enumerate(cut):
            if last:
                y = y.narrow(axis + 2, 0, y.shape[axis + 2] - last)
        return y

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = one_input(o, shapes, n)
        check_channels(o, coming, channels)
        sizes = [
            None
            if size is None
            else (size - 1) * strides[a] + window.reach[a] - 2 * padding[a] + added[a] - cut[a]
            for a, size in enumerate(coming[:-1])
        ]
        return (*positive(o, sizes, coming), filters)

    return Layer(
        out,
        call,
        build,
        (weight, *bias),
        fused,
        multiply_adds=lambda shapes, out: product(shapes[0][:-1]) * weight.count,
        fresh=not any(cut),
    )
