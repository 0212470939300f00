"""Pooling layers of Keras, in 1 to 3 dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.networks.keras.convolution import Window, no_padding, with_border, with_padding
from trainer.networks.keras.layer import Layer, Shape, one_input
from trainer.networks.keras.options import Options

if TYPE_CHECKING:
    from torch import Tensor


def _pool_window(o: Options, n: int) -> Window:
    pool = o.sizes("pool_size", n, 2)
    strides = o.sizes("strides", n, list(pool))
    return Window(pool, strides, (1,) * n, o.text("padding", "valid", ("valid", "same")))


def max_pool_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """`same` pads with minus infinity. Zeros that stand before it are folded in by graph.py where
    nothing that comes in is below zero: then they never win either."""
    one_input(o, inputs, n)
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
            return pool(with_border(x, window, -math.inf), window.kernel, window.strides)

        def padded(more: tuple[int, ...]) -> Layer | None:
            wider = with_padding(window, more)
            fits = all(2 * p <= k for p, k in zip(more, window.kernel, strict=True))
            return layer(wider) if wider and fits and window.padding == "valid" else None

        return Layer(
            lambda shapes: (
                *window.outs(o, one_input(o, shapes, n)),
                shapes[0][-1],
            ),
            call,
            padded=padded,
        )

    return layer(_pool_window(o, n))


def average_pool_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """`same`: padding does not count in the divisor."""
    one_input(o, inputs, n)
    o.channels_last()
    window = _pool_window(o, n)
    fixed = window.fixed()

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch.nn.functional as F

        pool = getattr(F, f"avg_pool{n}d")
        x = tensors[0]
        pads = window.pads(x.shape[2:])
        if no_padding(pads):
            return pool(x, window.kernel, window.strides)
        if fixed is not None:
            return pool(x, window.kernel, window.strides, fixed, count_include_pad=False)
        share = pool(F.pad(x.new_ones(1, 1, *x.shape[2:]), pads), window.kernel, window.strides)
        return pool(F.pad(x, pads), window.kernel, window.strides) / share

    return Layer(lambda shapes: (*window.outs(o, one_input(o, shapes, n)), shapes[0][-1]), call)


def global_pool_layer(n: int, highest: bool, o: Options, inputs: Sequence[Shape]) -> Layer:
    """GlobalMaxPooling and GlobalAveragePooling: one value a channel."""
    one_input(o, inputs, n)
    o.channels_last()
    keep = o.flag("keepdims", False)
    axes = tuple(range(2, n + 2))

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        if highest:
            return tensors[0].amax(axes, keepdim=keep)
        return tensors[0].mean(axes, keepdim=keep)

    def out(shapes: Sequence[Shape]) -> Shape:
        return (*((1,) * n if keep else ()), one_input(o, shapes, n)[-1])

    return Layer(out, call)
