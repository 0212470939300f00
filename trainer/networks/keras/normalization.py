"""Normalisation layers of Keras: of batches, layers and instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.networks.keras.initial import initial
from trainer.networks.keras.layer import (
    Layer,
    Parameter,
    Shape,
    check_channels,
    known_channels,
    one_input,
    shape_text,
)
from trainer.networks.keras.options import Options, shown

if TYPE_CHECKING:
    from torch import Tensor


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


def batch_norm_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Always with a scale and a shift, whatever `center` and `scale` say, as rmldnn has them.

    A file of weights holds no gamma or beta that the option leaves out; they stay 1 and 0. torch
    keeps the unbiased variance, Keras the biased one. One value a channel has no variance: it
    becomes the shift, as in Keras.
    """
    shape = one_input(o, inputs)
    channels = known_channels(o, shape)
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
        coming = one_input(o, shapes, len(shape) - 1)
        check_channels(o, coming, channels)
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


def layer_norm_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Over the channels of each position."""
    shape = one_input(o, inputs)
    channels = known_channels(o, shape)
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
        coming = one_input(o, shapes)
        check_channels(o, coming, channels)
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


def instance_norm_layer(o: Options, inputs: Sequence[Shape]) -> Layer:
    """Over the positions of each image and channel; not a class of Keras itself.

    `affine` as in torch, or `scale` and `center` as in keras-contrib. One position becomes the
    shift. `momentum` is of no use without running statistics.
    """
    shape = one_input(o, inputs)
    channels = known_channels(o, shape)
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
        coming = one_input(o, shapes)
        check_channels(o, coming, channels)
        return coming

    parameters = (*((gamma,) if scale else ()), *((beta,) if center else ()))

    def build() -> Any:
        return _scale_and_shift(channels, scale, center)

    return Layer(out, call, build if parameters else None, parameters)
