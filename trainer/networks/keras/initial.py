"""What the tensors of a layer start from: the initializers of Keras, by its own formulas.

Torch-free. Fans are counted as Keras does, on the kernel as Keras lays it out (last axis: outputs,
the one before: inputs, the others: the window; https://keras.io/api/layers/initializers). For
transposed and depthwise kernels this is Keras's count too, though their last axes mean otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from trainer.networks.keras.options import Options, shown

TRUNCATED = 0.87962566103423978
"""Standard deviation of a standard normal distribution that is cut at two of them."""


@dataclass(frozen=True)
class Initial:
    """constant: (value, -); uniform: (low, high); normal and truncated: (mean, deviation)."""

    kind: Literal["constant", "uniform", "normal", "truncated"]
    first: float
    second: float = 0.0


ZEROS, ONES = Initial("constant", 0.0), Initial("constant", 1.0)

SCALINGS: dict[str, tuple[float, str, str]] = {
    "glorotuniform": (1.0, "fan_avg", "uniform"),
    "glorotnormal": (1.0, "fan_avg", "truncated_normal"),
    "heuniform": (2.0, "fan_in", "uniform"),
    "henormal": (2.0, "fan_in", "truncated_normal"),
    "lecununiform": (1.0, "fan_in", "uniform"),
    "lecunnormal": (1.0, "fan_in", "truncated_normal"),
}
"""Names for VarianceScaling: scale, mode, distribution."""

OTHERS = (
    *("zeros", "ones", "constant", "randomnormal", "randomuniform", "truncatednormal"),
    "variancescaling",
)


def initial(options: Options, key: str, default: str, keras_shape: tuple[int, ...]) -> Initial:
    """The initializer that an option names; raises InputError for one that is not known."""
    value: Any = options.value(key, default)
    config: Any = {}
    if isinstance(value, dict):
        config = value.get("config") or {}
        value = value.get("class_name")
    if not isinstance(config, dict):
        raise options.fault(key, f"found {shown(config)}", "an object")
    name = options.word(
        key, value.replace("_", "") if isinstance(value, str) else value, (*SCALINGS, *OTHERS)
    )
    own = Options(config, f"{options.where}, {key}")
    if name in ("zeros", "ones"):
        return ZEROS if name == "zeros" else ONES
    if name == "constant":
        return Initial("constant", own.number("value", 0.0))
    if name in ("randomnormal", "truncatednormal"):
        kind: Literal["normal", "truncated"] = "normal" if name == "randomnormal" else "truncated"
        return Initial(kind, own.number("mean", 0.0), own.number("stddev", 0.05, 0.0))
    if name == "randomuniform":
        low = own.number("minval", -0.05)
        return Initial("uniform", low, own.number("maxval", 0.05, low))
    if name in SCALINGS:
        return _scaled(*SCALINGS[name], keras_shape)
    scale = own.number("scale", 1.0, 1e-30)
    mode = own.text("mode", "fan_in", ("fan_in", "fan_out", "fan_avg"))
    known = ("truncated_normal", "untruncated_normal", "normal", "uniform")
    return _scaled(scale, mode, own.text("distribution", "truncated_normal", known), keras_shape)


def _scaled(scale: float, mode: str, distribution: str, keras_shape: tuple[int, ...]) -> Initial:
    window = math.prod(keras_shape[:-2])
    fan_in = fan_out = float(keras_shape[0])
    if len(keras_shape) > 1:
        fan_in, fan_out = float(window * keras_shape[-2]), float(window * keras_shape[-1])
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    variance = scale / max(1.0, fan)
    if distribution == "uniform":
        limit = math.sqrt(3 * variance)
        return Initial("uniform", -limit, limit)
    if distribution == "untruncated_normal":
        return Initial("normal", 0.0, math.sqrt(variance))
    return Initial("truncated", 0.0, math.sqrt(variance) / TRUNCATED)
