"""Layers of Keras that change sizes or axes: upsampling, padding, cropping, Flatten, Reshape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trainer.networks.keras.layer import (
    Layer,
    Pairs,
    Shape,
    one_input,
    positive,
    product,
    shape_text,
)
from trainer.networks.keras.options import LARGEST, Options, shown

if TYPE_CHECKING:
    from torch import Tensor


def upsampling_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Nearest is plain repetition; bilinear has half-pixel centres (align_corners=False)."""
    one_input(o, inputs, n)
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
        coming = one_input(o, shapes, n)
        sizes = [
            None if size is None else size * f for size, f in zip(coming[:-1], factors, strict=True)
        ]
        return (*positive(o, sizes, coming), coming[-1])

    return Layer(out, call)


def _bordered(o: Options, n: int, pairs: Pairs, sign: int) -> Callable[[Sequence[Shape]], Shape]:
    def out(shapes: Sequence[Shape]) -> Shape:
        coming = one_input(o, shapes, n)
        sizes = [
            None if size is None else size + sign * sum(pair)
            for size, pair in zip(coming[:-1], pairs, strict=True)
        ]
        return (*positive(o, sizes, coming), coming[-1])

    return out


def zero_padding_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """ZeroPadding1D to 3D; a convolution behind it takes the zeros over."""
    one_input(o, inputs, n)
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


def cropping_layer(n: int, o: Options, inputs: Sequence[Shape]) -> Layer:
    """Cropping1D to 3D."""
    one_input(o, inputs, n)
    o.channels_last()
    pairs = o.pairs("cropping", n, 0 if n == 2 else 1)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[0]
        for axis, (before, after) in enumerate(pairs):
            x = x.narrow(axis + 2, before, x.shape[axis + 2] - before - after)
        return x

    return Layer(_bordered(o, n, pairs, -1), call)


def flatten_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """In Keras's order, so that the weights of a Dense after it fit."""
    one_input(o, inputs)
    o.channels_last()

    def out(shapes: Sequence[Shape]) -> Shape:
        coming = one_input(o, shapes)
        unknown = any(size is None for size in coming)
        return (None if unknown else product(coming),)

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[0]
        return x if x.dim() == 2 else x.movedim(1, -1).flatten(1)

    return Layer(out, call)


def reshape_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """In Keras's order; one size may be -1."""
    one_input(o, inputs)
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
        coming = one_input(o, shapes)
        if any(size is None for size in coming):
            return tuple(None if size == -1 else size for size in target)
        total = product(coming)
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
