"""Layers of Keras that take several inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.networks.keras.layer import Layer, Shape, positive, shape_text
from trainer.networks.keras.options import Options, shown

if TYPE_CHECKING:
    from torch import Tensor


def _several(o: Options, shapes: Sequence[Shape], least: int = 2) -> None:
    if len(shapes) < least:
        raise o.fault("", f"has {len(shapes)} inputs", f"{least} or more")
    if len({len(shape) for shape in shapes}) > 1:
        found = "its inputs have the shapes " + ", ".join(shape_text(s) for s in shapes[:6])
        raise o.fault("", found, "the same number of axes")


def merging_layer(kind: str, o: Options, inputs: Sequence[Shape]) -> Layer:
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


def concatenate_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Concatenate: along the channels, or along any axis of what is no image."""
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
        return positive(o, joined, shapes[0])

    def call(module: Any, tensors: Sequence[Tensor]) -> Tensor:
        import torch

        return torch.cat(list(tensors), 1 if axis == rank - 1 else axis + 2)

    return Layer(out, call)
