"""Activations by the names that Keras gives them; torch is imported where one is applied.

Each is a function of (x, axis), where axis is the dimension of the channels. The formulas are those
of https://keras.io/api/layers/activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.networks.keras.options import Options

if TYPE_CHECKING:
    from torch import Tensor

Apply = Callable[["Tensor", int], "Tensor"]


@dataclass(frozen=True)
class Activation:
    """`positive`: its values are never below zero."""

    name: str
    apply: Apply
    positive: bool = False


def _functional(name: str) -> Apply:
    def apply(x: Tensor, axis: int) -> Tensor:
        import torch.nn.functional as F

        result: Tensor = getattr(F, name)(x)
        return result

    return apply


def _hard_sigmoid_2(x: Tensor, axis: int) -> Tensor:
    return (x * 0.2 + 0.5).clamp(0, 1)


def _leaky(slope: float) -> Apply:
    def apply(x: Tensor, axis: int) -> Tensor:
        import torch.nn.functional as F

        return F.leaky_relu(x, slope)

    return apply


def elu(alpha: float) -> Apply:
    """alpha * (exp(x) - 1) below zero."""

    def apply(x: Tensor, axis: int) -> Tensor:
        import torch.nn.functional as F

        return F.elu(x, alpha)

    return apply


leaky_relu = _leaky


def bounded_relu(most: float | None, slope: float, threshold: float) -> Apply:
    """x from the threshold up to `most`; below it slope * (x - threshold)."""

    def apply(x: Tensor, axis: int) -> Tensor:
        import torch
        import torch.nn.functional as F

        if (most, slope, threshold) == (6.0, 0.0, 0.0):
            return F.relu6(x)
        if threshold:
            y = torch.where(x >= threshold, x, slope * (x - threshold))
        else:
            y = F.leaky_relu(x, slope) if slope else x.relu()
        return y if most is None else y.clamp(max=most)

    return apply


def _softmax(x: Tensor, axis: int) -> Tensor:
    return x.softmax(axis)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    return x.log_softmax(axis)


LINEAR = Activation("linear", lambda x, axis: x)

ACTIVATIONS: dict[str, Activation] = {
    "linear": LINEAR,
    "relu": Activation("relu", lambda x, axis: x.relu(), positive=True),
    "relu6": Activation("relu6", _functional("relu6"), positive=True),
    "leaky_relu": Activation("leaky_relu", _leaky(0.2)),
    "elu": Activation("elu", _functional("elu")),
    "selu": Activation("selu", _functional("selu")),
    "gelu": Activation("gelu", _functional("gelu")),
    "silu": Activation("silu", _functional("silu")),
    "swish": Activation("silu", _functional("silu")),
    "mish": Activation("mish", _functional("mish")),
    "sigmoid": Activation("sigmoid", lambda x, axis: x.sigmoid(), positive=True),
    "hard_sigmoid": Activation("hard_sigmoid", _functional("hardsigmoid"), positive=True),
    "hard_silu": Activation("hard_silu", _functional("hardswish")),
    "hard_swish": Activation("hard_silu", _functional("hardswish")),
    "tanh": Activation("tanh", lambda x, axis: x.tanh()),
    "exponential": Activation("exponential", lambda x, axis: x.exp(), positive=True),
    "softplus": Activation("softplus", _functional("softplus"), positive=True),
    "softsign": Activation("softsign", _functional("softsign")),
    "softmax": Activation("softmax", _softmax, positive=True),
    "log_softmax": Activation("log_softmax", _log_softmax),
    "log_softmax_v2": Activation("log_softmax", _log_softmax),
}
"""In any case. The last is how TensorFlow writes log_softmax into a file."""

HARD_SIGMOID_2 = Activation("hard_sigmoid", _hard_sigmoid_2, positive=True)
"""Keras 2 had another slope (0.2) than Keras 3 (1/6)."""


def activation(options: Options, key: str = "activation", default: str = "linear") -> Activation:
    """The activation that an option names; raises InputError for one that is not known."""
    name = options.text(key, default, ACTIVATIONS)
    if name == "hard_sigmoid" and options.version < 3:
        return HARD_SIGMOID_2
    return ACTIVATIONS[name]
