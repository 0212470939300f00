"""The layer classes of Keras: what each option means, and the torch module that computes it.

A layer class is one function and one line in LAYERS. The function reads the options, checks them
against the shapes that come in, and returns a `Layer`: plain facts, and functions that import torch
when they are called. Torch-free until then.

Shapes are Keras's: channels last, without the batch, None where a size is not known. Tensors are
torch's: (N, C, H, W), for any rank; only a layer that mixes axes (Flatten, Reshape) looks at them
in Keras's order. Nothing is permuted between layers: with the memory format channels_last these
views cost nothing.

L1 and L2 penalties of a file are read and not applied: they belong to the loss (weight decay of the
optimizer is the usual replacement).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from trainer.networks.keras.activations import (
    ACTIVATIONS,
    LINEAR,
    Activation,
    activation,
    bounded_relu,
    elu,
    leaky_relu,
)
from trainer.networks.keras.initial import Initial, initial
from trainer.networks.keras.options import LARGEST, Options, shown

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


def _one(o: Options, inputs: Sequence[Shape], dimensions: int | None = None) -> Shape:
    """The shape that comes in, of a layer that takes one, of so many dimensions beside channels."""
    if len(inputs) != 1:
        raise o.fault("", f"has {len(inputs)} inputs", "one")
    if dimensions is not None and len(inputs[0]) != dimensions + 1:
        names = {1: "(length, channels)", 2: "(height, width, channels)"}
        wanted = names.get(dimensions, "(depth, height, width, channels)")
        raise o.fault("", f"its input has the shape {shape_text(inputs[0])}", wanted)
    return inputs[0]


def _channels(o: Options, shape: Shape) -> int:
    if shape[-1] is None:
        raise o.fault("", "the size of its input is not known", "an InputLayer with a fixed shape")
    return shape[-1]


def _same_channels(o: Options, shape: Shape, channels: int) -> None:
    if shape[-1] != channels:
        found = f"its input would have {shape[-1]} channels instead of {channels}"
        raise o.fault("", found, "the size that the InputLayer declares")


def _positive(o: Options, sizes: Sequence[int | None], shape: Shape) -> Shape:
    if any(size is not None and not 0 < size <= LARGEST for size in sizes):
        raise o.fault("", f"leaves nothing of its input {shape_text(shape)}", "a larger image")
    return tuple(sizes)


def _unchanged(o: Options, dimensions: int | None = None) -> Callable[[Sequence[Shape]], Shape]:
    return lambda inputs: _one(o, inputs, dimensions)


def _product(sizes: Sequence[int | None]) -> int:
    """0 where a size is not known."""
    return math.prod(size or 0 for size in sizes)


# ---- windows: convolution and pooling ----


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
        return _positive(o, sizes, shape)

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


def _around(x: Tensor, window: Window, value: float = 0.0) -> Tensor:
    """The padding that depends on the size of what comes in."""
    import torch.nn.functional as F

    pads = window.pads(x.shape[2:])
    return x if _none(pads) else F.pad(x, pads, value=value)


def _none(pads: Sequence[int]) -> bool:
    """No padding, as far as that is a number and not a symbol."""
    return all(isinstance(amount, int) and amount == 0 for amount in pads)


def _convolving(
    window: Window,
) -> tuple[tuple[int, ...], Callable[[Any, Sequence[Tensor]], Tensor]]:
    """What torch pads by itself, and how the layer computes."""
    fixed = window.fixed()
    if fixed is not None:
        return fixed, lambda module, tensors: module(tensors[0])
    return (0,) * len(window.kernel), lambda module, tensors: module(_around(tensors[0], window))


def _with_padding(window: Window, more: tuple[int, ...]) -> Window | None:
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


def _bias(o: Options, outputs: int, name: str = "bias") -> tuple[Parameter, ...]:
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
        coming = _one(o, shapes, n)
        _same_channels(o, coming, sizes[0])
        return (*window.outs(o, coming), sizes[1])

    def padded(more: tuple[int, ...]) -> Layer | None:
        wider = _with_padding(window, more)
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
        multiply_adds=lambda shapes, out: _product(out[:-1]) * weights,
        padded=padded,
        fresh=True,
    )


def _convolution(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    channels = _channels(o, _one(o, inputs, n))
    o.channels_last()
    window = _window(o, n, causal=n == 1)
    filters, groups = o.whole("filters"), o.whole("groups", 1)
    if channels % groups or filters % groups:
        found = f"{groups} groups for {channels} channels and {filters} filters"
        raise o.fault("groups", found, "a divisor of both")
    kernel = _kernel(o, window.kernel, channels // groups, filters)
    bias = _bias(o, filters)

    def make(w: Window, padding: tuple[int, ...]) -> Any:
        from torch import nn

        convolution = getattr(nn, f"Conv{n}d")
        options = (w.kernel, w.strides, padding, w.dilation, groups, bool(bias))
        return convolution(channels, filters, *options)

    return _moving(o, n, window, (channels, filters), (kernel, *bias), activation(o), make)


def _depthwise(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    channels = _channels(o, _one(o, inputs, n))
    o.channels_last()
    o.must_be("groups", 1)
    window, outputs = _window(o, n), channels * o.whole("depth_multiplier", 1)
    kernel = _depthwise_kernel(o, window, channels, outputs // channels, "weight")
    bias = _bias(o, outputs)

    def make(w: Window, padding: tuple[int, ...]) -> Any:
        from torch import nn

        convolution = getattr(nn, f"Conv{n}d")
        options = (w.kernel, w.strides, padding, w.dilation, channels, bool(bias))
        return convolution(channels, outputs, *options)

    return _moving(o, n, window, (channels, outputs), (kernel, *bias), activation(o), make)


def _separable(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Depthwise, then pointwise (1x1), which has the bias."""
    channels = _channels(o, _one(o, inputs, n))
    o.channels_last()
    o.must_be("groups", 1)
    window, per, filters = _window(o, n), o.whole("depth_multiplier", 1), o.whole("filters")
    inner = channels * per
    depth = _depthwise_kernel(o, window, channels, per, "depthwise.weight")
    point = _kernel(o, (1,) * n, inner, filters, "pointwise")
    bias = _bias(o, filters, "pointwise.bias")

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


def _transposed(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """The output's length is Keras's; of what torch computes, the odd pixel is cut at the end.

    https://github.com/keras-team/keras, compute_conv_transpose_output_length.
    """
    shape = _one(o, inputs, n)
    channels = _channels(o, shape)
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
    bias, fused = _bias(o, filters), activation(o)
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
        coming = _one(o, shapes, n)
        _same_channels(o, coming, channels)
        sizes = [
            None
            if size is None
            else (size - 1) * strides[a] + window.reach[a] - 2 * padding[a] + added[a] - cut[a]
            for a, size in enumerate(coming[:-1])
        ]
        return (*_positive(o, sizes, coming), filters)

    return Layer(
        out,
        call,
        build,
        (weight, *bias),
        fused,
        multiply_adds=lambda shapes, out: _product(shapes[0][:-1]) * weight.count,
        fresh=not any(cut),
    )


def _pool_window(o: Options, n: int) -> Window:
    pool = o.sizes("pool_size", n, 2)
    strides = o.sizes("strides", n, list(pool))
    return Window(pool, strides, (1,) * n, o.text("padding", "valid", ("valid", "same")))


def _max_pool(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """`same` pads with minus infinity. Zeros that stand before it are folded in by graph.py where
    nothing that comes in is below zero: then they never win either."""
    _one(o, inputs, n)
    o.channels_last()

    def layer(window: Window) -> Layer:
        fixed = window.fixed()
        inside = fixed is not None and all(
            2 * p <= k for p, k in zip(fixed, window.kernel, strict=True)
        )

        def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
            import torch.nn.functional as F

            pool = getattr(F, f"max_pool{n}d")
            x = tensors[0]
            if inside:
                return pool(x, window.kernel, window.strides, fixed)
            return pool(_around(x, window, -math.inf), window.kernel, window.strides)

        def padded(more: tuple[int, ...]) -> Layer | None:
            wider = _with_padding(window, more)
            fits = all(2 * p <= k for p, k in zip(more, window.kernel, strict=True))
            return layer(wider) if wider and fits and window.padding == "valid" else None

        return Layer(
            lambda shapes: (
                *window.outs(o, _one(o, shapes, n)),
                shapes[0][-1],
            ),
            call,
            padded=padded,
        )

    return layer(_pool_window(o, n))


def _average_pool(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """`same`: padding does not count in the divisor."""
    _one(o, inputs, n)
    o.channels_last()
    window = _pool_window(o, n)
    fixed = window.fixed()

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch.nn.functional as F

        pool = getattr(F, f"avg_pool{n}d")
        x = tensors[0]
        pads = window.pads(x.shape[2:])
        if _none(pads):
            return pool(x, window.kernel, window.strides)
        if fixed is not None:
            return pool(x, window.kernel, window.strides, fixed, count_include_pad=False)
        share = pool(F.pad(x.new_ones(1, 1, *x.shape[2:]), pads), window.kernel, window.strides)
        return pool(F.pad(x, pads), window.kernel, window.strides) / share

    return Layer(lambda shapes: (*window.outs(o, _one(o, shapes, n)), shapes[0][-1]), call)


def _global_pool(n: int, highest: bool, o: Options, inputs: Sequence[Shape]) -> Layer:
    _one(o, inputs, n)
    o.channels_last()
    keep = o.flag("keepdims", False)
    axes = tuple(range(2, n + 2))

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        if highest:
            return tensors[0].amax(axes, keepdim=keep)
        return tensors[0].mean(axes, keepdim=keep)

    def out(shapes: Sequence[Shape]) -> Shape:
        return (*((1,) * n if keep else ()), _one(o, shapes, n)[-1])

    return Layer(out, call)


# ---- dense ----


def _dense(o: Options, inputs: Sequence[Shape]) -> Layer:
    shape = _one(o, inputs)
    channels, units = _channels(o, shape), o.whole("units")
    start = initial(o, "kernel_initializer", "glorot_uniform", (channels, units))
    kernel = Parameter("weight", (units, channels), "kernel", (channels, units), (1, 0), start)
    bias, fused = _bias(o, units), activation(o)

    def build() -> Any:
        from torch import nn

        return nn.Linear(channels, units, bias=bool(bias))

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[0]
        if x.dim() == 2:
            return module(x)
        return module(x.movedim(1, -1)).movedim(-1, 1)

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = _one(o, shapes)
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
        multiply_adds=lambda shapes, out: _product(out[:-1]) * kernel.count,
        fresh=True,
    )


# ---- normalization ----


def _last_axis(o: Options, shape: Shape, default: int = -1) -> None:
    value = o.value("axis", default)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or value not in (-1, len(shape)):
        raise o.fault("axis", f"found {shown(value)}", f"-1 or {len(shape)}, the channels")


def torch_momentum(keras: float) -> float:
    """How much of a batch's statistics is taken over, from a file's `momentum`.

    Keras means the share that is kept (0.99), torch the share that is taken over (0.1). Some files
    were written with torch's meaning; a share to keep below a half is none that anybody uses.
    """
    return 1.0 - keras if keras >= 0.5 else keras


def _batch_norm(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Always with a scale and a shift, whatever `center` and `scale` say, as rmldnn has them.

    A file of weights holds no gamma or beta that the option leaves out; they stay 1 and 0. torch
    keeps the unbiased variance, Keras the biased one. One value a channel has no variance: it
    becomes the shift, as in Keras.
    """
    shape = _one(o, inputs)
    channels = _channels(o, shape)
    _last_axis(o, shape)
    epsilon = o.number("epsilon", 1e-3, 0.0)
    momentum = torch_momentum(o.number("momentum", 0.99, 0.0, 1.0))
    for key in ("renorm", "synchronized"):
        o.must_be(key, False)
    for key in ("virtual_batch_size", "renorm_clipping", "adjustment", "renorm_momentum"):
        o.value(key)
    scale, center = o.flag("scale", True), o.flag("center", True)
    c = (channels,)

    def tensor(name: str, keras: str, default: str, statistic: bool, in_file: bool) -> Parameter:
        start = initial(o, f"{keras}_initializer", default, c)
        return Parameter(name, c, keras, c, (0,), start, statistic, in_file)

    def build() -> Any:
        from torch import nn

        classes = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
        return classes[len(shape)](channels, epsilon, momentum)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[0]
        if module.training and x.numel() == x.shape[1]:
            return _one_value(module, x)
        return module(x)

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = _one(o, shapes, len(shape) - 1)
        _same_channels(o, coming, channels)
        return coming

    if not 1 <= len(shape) <= 4:
        raise o.fault("", f"its input has the shape {shape_text(shape)}", "1 to 4 axes")
    return Layer(
        out,
        call,
        build,
        (
            tensor("weight", "gamma", "ones", False, scale),
            tensor("bias", "beta", "zeros", False, center),
            tensor("running_mean", "moving_mean", "zeros", True, True),
            tensor("running_var", "moving_variance", "ones", True, True),
        ),
        fresh=True,
    )


def _one_value(module: Any, x: Tensor) -> Tensor:
    """Batch normalisation of one value a channel, which torch refuses: (x - x) * gamma + beta."""
    import torch

    with torch.no_grad():
        module.num_batches_tracked.add_(1)
        share = module.momentum
        if share is None:  # the plain mean over batches
            share = 1.0 / module.num_batches_tracked
        module.running_mean.lerp_(x.detach().flatten().float(), share)
        module.running_var.mul_(1.0 - share)
    across = (1, -1, *(1,) * (x.dim() - 2))
    return (x - x) * module.weight.view(across) + module.bias.view(across)


def _layer_norm(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Over the channels of each position."""
    shape = _one(o, inputs)
    channels = _channels(o, shape)
    _last_axis(o, shape)
    o.must_be("rms_scaling", False)
    epsilon = o.number("epsilon", 1e-3, 0.0)
    scale, center = o.flag("scale", True), o.flag("center", True)
    c = (channels,)
    gamma = Parameter("weight", c, "gamma", c, (0,), initial(o, "gamma_initializer", "ones", c))
    beta = Parameter("bias", c, "beta", c, (0,), initial(o, "beta_initializer", "zeros", c))

    def build() -> Any:
        return _scale_and_shift(channels, scale, center)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch.nn.functional as F

        x = tensors[0].movedim(1, -1)
        weight = getattr(module, "weight", None)
        y = F.layer_norm(x, c, weight, getattr(module, "bias", None), epsilon)
        return y.movedim(-1, 1)

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = _one(o, shapes)
        _same_channels(o, coming, channels)
        return coming

    parameters = (*((gamma,) if scale else ()), *((beta,) if center else ()))
    return Layer(out, call, build if parameters else None, parameters)


def _scale_and_shift(channels: int, scale: bool, center: bool) -> Any:
    """A module that only holds `weight` and `bias`."""
    import torch
    from torch import nn

    module = nn.Module()
    if scale:
        module.weight = nn.Parameter(torch.empty(channels))
    if center:
        module.bias = nn.Parameter(torch.empty(channels))
    return module


def _instance_norm(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Over the positions of each image and channel; not a class of Keras itself.

    `affine` as in torch, or `scale` and `center` as in keras-contrib. One position becomes the
    shift. `momentum` is of no use without running statistics.
    """
    shape = _one(o, inputs)
    channels = _channels(o, shape)
    if len(shape) < 2:
        raise o.fault("", f"its input has the shape {shape_text(shape)}", "an image")
    _last_axis(o, shape)
    o.channels_last()
    o.must_be("track_running_stats", False)
    o.number("momentum", 0.1, 0.0, 1.0)
    epsilon = o.number("epsilon", 1e-3, 0.0)
    affine = o.flag("affine", True)
    scale, center = affine and o.flag("scale", True), affine and o.flag("center", True)
    c = (channels,)
    gamma = Parameter("weight", c, "gamma", c, (0,), initial(o, "gamma_initializer", "ones", c))
    beta = Parameter("bias", c, "beta", c, (0,), initial(o, "beta_initializer", "zeros", c))
    for key in ("scale", "center"):
        o.value(key)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch

        # group_norm of torch.nn.functional refuses one position, this one does not
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        return torch.group_norm(tensors[0], channels, weight, bias, epsilon)

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = _one(o, shapes)
        _same_channels(o, coming, channels)
        return coming

    parameters = (*((gamma,) if scale else ()), *((beta,) if center else ()))

    def build() -> Any:
        return _scale_and_shift(channels, scale, center)

    return Layer(out, call, build if parameters else None, parameters)


# ---- activations ----


def _activation(o: Options, inputs: Sequence[Shape]) -> Layer:
    shape = _one(o, inputs)
    axis = o.value("axis")  # rmldnn's own files have one: 1, torch's channels
    if axis is not None and (isinstance(axis, bool) or axis not in (-1, 1, len(shape))):
        raise o.fault("axis", f"found {shown(axis)}", "-1, the channels")
    if not o.given("activation"):
        raise o.fault("activation", "is missing", ", ".join(ACTIVATIONS))
    return Layer(_unchanged(o), activation=activation(o), fused=False)


def _named(name: str, o: Options, inputs: Sequence[Shape]) -> Layer:
    _one(o, inputs)
    return Layer(_unchanged(o), activation=ACTIVATIONS[name], fused=False)


def _softmax(name: str, o: Options, inputs: Sequence[Shape]) -> Layer:
    shape = _one(o, inputs)
    value = o.value("axis", -1)
    channels_of_torch = (1,) if name == "log_softmax" else ()  # not a class of Keras: rmldnn's own
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or value not in (-1, len(shape), *channels_of_torch):
        raise o.fault("axis", f"found {shown(value)}", f"-1 or {len(shape)}, the channels")
    return Layer(_unchanged(o), activation=ACTIVATIONS[name], fused=False)


def _relu(o: Options, inputs: Sequence[Shape]) -> Layer:
    _one(o, inputs)
    most = o.number("max_value", None, 0.0) if o.given("max_value") else None
    o.value("max_value")
    slope = o.number("negative_slope", 0.0, 0.0)
    threshold = o.number("threshold", 0.0, 0.0)
    apply = bounded_relu(most, slope, threshold)
    return Layer(_unchanged(o), activation=Activation("relu", apply, slope == 0.0), fused=False)


def _leaky_relu(o: Options, inputs: Sequence[Shape]) -> Layer:
    """The slope is `alpha` in Keras 2, `negative_slope` in Keras 3."""
    _one(o, inputs)
    slope = o.number("negative_slope" if o.given("negative_slope") else "alpha", 0.3, 0.0)
    o.value("alpha"), o.value("negative_slope")
    return Layer(_unchanged(o), activation=Activation("leaky_relu", leaky_relu(slope)), fused=False)


def _elu(o: Options, inputs: Sequence[Shape]) -> Layer:
    _one(o, inputs)
    alpha = o.number("alpha", 1.0, 0.0)
    return Layer(_unchanged(o), activation=Activation("elu", elu(alpha)), fused=False)


# ---- sizes ----


def _upsampling(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Nearest is plain repetition; bilinear has half-pixel centres (align_corners=False)."""
    _one(o, inputs, n)
    o.channels_last()
    factors = o.sizes("size", n, 2)
    modes = ("nearest", "bilinear") if n == 2 else ("nearest",)
    mode = o.text("interpolation", "nearest", modes)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch.nn.functional as F

        x = tensors[0]
        size = [length * factor for length, factor in zip(x.shape[2:], factors, strict=True)]
        return F.interpolate(x, size, mode=mode)

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = _one(o, shapes, n)
        sizes = [
            None if size is None else size * f for size, f in zip(coming[:-1], factors, strict=True)
        ]
        return (*_positive(o, sizes, coming), coming[-1])

    return Layer(out, call)


def _bordered(o: Options, n: int, pairs: Pairs, sign: int) -> Callable[[Sequence[Shape]], Shape]:
    def out(shapes: Sequence[Shape]) -> Shape:
        coming = _one(o, shapes, n)
        sizes = [
            None if size is None else size + sign * sum(pair)
            for size, pair in zip(coming[:-1], pairs, strict=True)
        ]
        return (*_positive(o, sizes, coming), coming[-1])

    return out


def _zero_padding(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    _one(o, inputs, n)
    o.channels_last()
    pairs = o.pairs("padding", n, 1)
    flat = [amount for pair in reversed(pairs) for amount in pair]

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch.nn.functional as F

        return F.pad(tensors[0], flat)

    even = all(before == after for before, after in pairs)
    return Layer(
        _bordered(o, n, pairs, 1),
        call,
        zeros=tuple(before for before, _ in pairs) if even else None,
    )


def _cropping(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    _one(o, inputs, n)
    o.channels_last()
    pairs = o.pairs("cropping", n, 0 if n == 2 else 1)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[0]
        for axis, (before, after) in enumerate(pairs):
            x = x.narrow(axis + 2, before, x.shape[axis + 2] - before - after)
        return x

    return Layer(_bordered(o, n, pairs, -1), call)


def _flatten(o: Options, inputs: Sequence[Shape]) -> Layer:
    """In Keras's order, so that the weights of a Dense after it fit."""
    _one(o, inputs)
    o.channels_last()

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = _one(o, shapes)
        unknown = any(size is None for size in coming)
        return (None if unknown else _product(coming),)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[0]
        return x if x.dim() == 2 else x.movedim(1, -1).flatten(1)

    return Layer(out, call)


def _reshape(o: Options, inputs: Sequence[Shape]) -> Layer:
    """In Keras's order; one size may be -1."""
    _one(o, inputs)
    target = o.value("target_shape")
    plain = isinstance(target, list) and target and len(target) <= 4
    if not plain or any(
        isinstance(size, bool)
        or not isinstance(size, int)
        or size > LARGEST
        or (size < 1 and size != -1)
        for size in target
    ):
        raise o.fault("target_shape", f"found {shown(target)}", "a list of 1 to 4 whole numbers")
    if target.count(-1) > 1:
        raise o.fault("target_shape", f"found {shown(target)}", "-1 once")
    known = math.prod(size for size in target if size != -1)

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = _one(o, shapes)
        if any(size is None for size in coming):
            return tuple(None if size == -1 else size for size in target)
        total = _product(coming)
        if total % known or (-1 not in target and total != known):
            found = f"{shape_text(coming)}, {total} values, cannot become {target}"
            raise o.fault("target_shape", found, f"as many values: {total}")
        return tuple(total // known if size == -1 else size for size in target)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[0]
        x = x if x.dim() == 2 else x.movedim(1, -1)
        x = x.reshape(x.shape[0], *target)
        return x if x.dim() == 2 else x.movedim(-1, 1)

    return Layer(out, call)


# ---- several inputs ----


def _several(o: Options, shapes: Sequence[Shape], least: int = 2) -> None:
    if len(shapes) < least:
        raise o.fault("", f"has {len(shapes)} inputs", f"{least} or more")
    if len({len(shape) for shape in shapes}) > 1:
        found = "its inputs have the shapes " + ", ".join(shape_text(s) for s in shapes[:6])
        raise o.fault("", found, "the same number of axes")


def _merging(kind: str, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Element by element; a size of 1 is repeated."""
    _several(o, inputs)
    if kind == "subtract" and len(inputs) != 2:
        raise o.fault("", f"has {len(inputs)} inputs", "two")

    def out(shapes: Sequence[Shape]) -> Shape:
        _several(o, shapes)
        merged: list[int | None] = []
        for sizes in zip(*shapes, strict=True):
            known = {size for size in sizes if size not in (None, 1)}
            if len(known) > 1:
                found = ", ".join(shape_text(s) for s in shapes[:6])
                raise o.fault("", f"its inputs have the shapes {found}", "equal shapes")
            merged.append(known.pop() if known else None if None in sizes else 1)
        return tuple(merged)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch

        result = tensors[0]
        for other in tensors[1:]:
            if kind in ("add", "average"):
                result = result + other
            elif kind == "subtract":
                result = result - other
            elif kind == "multiply":
                result = result * other
            else:
                result = (torch.maximum if kind == "maximum" else torch.minimum)(result, other)
        return result / len(tensors) if kind == "average" else result

    return Layer(out, call, fresh=kind in ("add", "subtract", "average"))


def _concatenate(o: Options, inputs: Sequence[Shape]) -> Layer:
    _several(o, inputs)
    rank = len(inputs[0])
    value = o.value("axis", -1)
    if isinstance(value, bool) or not isinstance(value, int) or value == 0 or abs(value) > rank:
        raise o.fault("axis", f"found {shown(value)}", f"-1, or 1 to {rank}")
    axis = value - 1 if value > 0 else value + rank

    def out(shapes: Sequence[Shape]) -> Shape:
        _several(o, shapes)
        joined: list[int | None] = []
        for number, sizes in enumerate(zip(*shapes, strict=True)):
            if number == axis:
                joined.append(None if None in sizes else sum(size or 0 for size in sizes))
                continue
            known = {size for size in sizes if size is not None}
            if len(known) > 1:
                found = ", ".join(shape_text(s) for s in shapes[:6])
                accepted = "shapes that differ in the axis of the joint only"
                raise o.fault("", f"its inputs have the shapes {found}", accepted)
            joined.append(known.pop() if known else None)
        return _positive(o, joined, shapes[0])

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch

        return torch.cat(list(tensors), 1 if axis == rank - 1 else axis + 2)

    return Layer(out, call)


# ---- dropout ----


def _dropout(n: int | None, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Only in training. `n` dimensions: whole channels are dropped."""
    _one(o, inputs, n)
    rate = o.number("rate", None, 0.0, 1.0)
    o.must_be("noise_shape")
    if n is not None:
        o.channels_last()

    def build() -> Any:
        from torch import nn

        return getattr(nn, f"Dropout{n}d" if n else "Dropout")(rate)

    def call(module: Any, tensors: Any) -> Any:
        return module(tensors[0]) if module else tensors[0]

    return Layer(_unchanged(o, n), call, build if rate else None)


LAYERS: dict[str, Build] = {
    "Conv1D": partial(_convolution, 1),
    "Conv2D": partial(_convolution, 2),
    "Conv3D": partial(_convolution, 3),
    "DepthwiseConv1D": partial(_depthwise, 1),
    "DepthwiseConv2D": partial(_depthwise, 2),
    "DepthwiseConv3D": partial(_depthwise, 3),
    "SeparableConv1D": partial(_separable, 1),
    "SeparableConv2D": partial(_separable, 2),
    "SeparableConv3D": partial(_separable, 3),
    "Conv1DTranspose": partial(_transposed, 1),
    "Conv2DTranspose": partial(_transposed, 2),
    "Conv3DTranspose": partial(_transposed, 3),
    "MaxPooling1D": partial(_max_pool, 1),
    "MaxPooling2D": partial(_max_pool, 2),
    "MaxPooling3D": partial(_max_pool, 3),
    "AveragePooling1D": partial(_average_pool, 1),
    "AveragePooling2D": partial(_average_pool, 2),
    "AveragePooling3D": partial(_average_pool, 3),
    "GlobalMaxPooling1D": partial(_global_pool, 1, True),
    "GlobalMaxPooling2D": partial(_global_pool, 2, True),
    "GlobalMaxPooling3D": partial(_global_pool, 3, True),
    "GlobalAveragePooling1D": partial(_global_pool, 1, False),
    "GlobalAveragePooling2D": partial(_global_pool, 2, False),
    "GlobalAveragePooling3D": partial(_global_pool, 3, False),
    "UpSampling1D": partial(_upsampling, 1),
    "UpSampling2D": partial(_upsampling, 2),
    "UpSampling3D": partial(_upsampling, 3),
    "ZeroPadding1D": partial(_zero_padding, 1),
    "ZeroPadding2D": partial(_zero_padding, 2),
    "ZeroPadding3D": partial(_zero_padding, 3),
    "Cropping1D": partial(_cropping, 1),
    "Cropping2D": partial(_cropping, 2),
    "Cropping3D": partial(_cropping, 3),
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "Softmax": partial(_softmax, "softmax"),
    "Log_Softmax": partial(_softmax, "log_softmax"),
    "LogSoftmax": partial(_softmax, "log_softmax"),
    "Sigmoid": partial(_named, "sigmoid"),
    "Tanh": partial(_named, "tanh"),
    "Swish": partial(_named, "swish"),
    "Add": partial(_merging, "add"),
    "Subtract": partial(_merging, "subtract"),
    "Multiply": partial(_merging, "multiply"),
    "Average": partial(_merging, "average"),
    "Maximum": partial(_merging, "maximum"),
    "Minimum": partial(_merging, "minimum"),
    "Concatenate": _concatenate,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Dropout": partial(_dropout, None),
    "SpatialDropout1D": partial(_dropout, 1),
    "SpatialDropout2D": partial(_dropout, 2),
    "SpatialDropout3D": partial(_dropout, 3),
}
"""Every class but InputLayer, which graph.py reads."""
