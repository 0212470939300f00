"""Writes Keras network files: `python -m trainer.networks.keras.write resunet --classes 2 > FILE`.

    resunet        U-Net with a ResNet-50 (pre-activation) as encoder; layers named as in published
                   weights, which fit therefore
    xception_unet  small U-Net of separable convolutions with residual connections
    unet3d         U-Net for volumes
    classifier     two convolutions and a dense layer, for small grey images of one size
    birds          ResNet-50, all frozen but the classes at its end
    satellite      ResNet-50 without biases; its normalisations and the classes learn
    inpainting     ResNet-50 as encoder, transposed convolutions back to the image
    inpainted      a classifier on that encoder, for images of 128x128 pixels

Each is a function below. The files in layers/ are what it writes; Keras reads them. Torch-free.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

RESNET50 = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Filters within a unit, and units, of the four stages; four times as many filters go out."""

NORMAL_EPSILON = 1.001e-5
RESNET_EPSILON = 2e-5
BOTTLENECK = 4
DECODER_FILTERS = (256, 128, 64, 32, 16)


class Writer:
    """Collects layers; `add` returns the name, which is the input of later ones."""

    def __init__(self, name: str, shape: Sequence[int | None]) -> None:
        self.name, self.layers, self._numbers = name, list[dict[str, Any]](), Counter[str]()
        self.last = self.add("InputLayer", "data", (), batch_input_shape=[None, *shape])

    def add(self, kind: str, name: str, inputs: str | Sequence[str], **config: Any) -> str:
        """A layer; `inputs` are the names of those before it."""
        names = [inputs] if isinstance(inputs, str) else list(inputs)
        self.layers.append(
            {
                "class_name": kind,
                "config": {"name": name, **config},
                "name": name,
                "inbound_nodes": [[[one, 0, 0, {}] for one in names]] if names else [],
            }
        )
        self.last = name
        return name

    def numbered(self, kind: str, stem: str, inputs: str | Sequence[str], **config: Any) -> str:
        """A layer named stem, stem_1, stem_2, … as Keras numbers those without a name."""
        number = self._numbers[stem]
        self._numbers[stem] += 1
        return self.add(kind, f"{stem}_{number}" if number else stem, inputs, **config)

    def content(self) -> dict[str, Any]:
        """The network file; its output is the layer that was added last."""
        model = {
            "name": self.name,
            "layers": self.layers,
            "input_layers": [[self.layers[0]["name"], 0, 0]],
            "output_layers": [[self.last, 0, 0]],
        }
        return {"class_name": "Functional", "config": model, "keras_version": "2.8.0"}

    def text(self) -> str:
        """As JSON, one line a layer."""
        whole = {**self.content(), "config": {**self.content()["config"], "layers": ["LAYERS"]}}
        lines = ",\n".join("   " + json.dumps(layer) for layer in self.layers)
        return json.dumps(whole, indent=1).replace('   "LAYERS"', lines) + "\n"


def _window(size: int, stride: int, dimensions: int = 2) -> dict[str, Any]:
    return {"kernel_size": [size] * dimensions, "strides": [stride] * dimensions}


def _he_uniform(use_bias: bool = False) -> dict[str, Any]:
    start = {"class_name": "HeUniform", "config": {"seed": None}}
    return {"use_bias": use_bias, "kernel_initializer": start}


def _end(classes: int) -> str:
    return "sigmoid" if classes == 1 else "softmax"


def resunet(classes: int, channels: int) -> Writer:
    """Residual units: normalise, activate, convolve (1x1, 3x3, 1x1); He et al. 2016.

    The decoder doubles the size five times and takes over what the encoder had at that size, before
    each stage (at the largest size nothing), with two convolutions each.
    """
    w = Writer("resunet", (None, None, channels))

    def normal(name: str, before: str, activated: str, **config: Any) -> str:
        before = w.add("BatchNormalization", name, before, axis=[3], **config)
        return w.add("Activation", activated, before, activation="relu")

    def padded(before: str, each: int) -> str:
        border = [[each, each], [each, each]]
        return w.numbered("ZeroPadding2D", "zero_padding2d", before, padding=border)

    def convolved(name: str, before: str, filters: int, size: int, stride: int = 1) -> str:
        options = {**_window(size, stride), "padding": "valid", **_he_uniform()}
        return w.add("Conv2D", name, before, filters=filters, **options)

    first = {"epsilon": RESNET_EPSILON, "scale": False}
    x = w.add("BatchNormalization", "bn_data", "data", axis=[3], **first)
    x = convolved("conv0", padded(x, 3), 64, 7, 2)
    x = skip = normal("bn0", x, "relu0", epsilon=RESNET_EPSILON)
    skips = [skip]
    pool = {"pool_size": [3, 3], "strides": [2, 2], "padding": "valid"}
    x = w.add("MaxPooling2D", "pooling0", padded(x, 1), **pool)
    for stage, (filters, units) in enumerate(RESNET50, start=1):
        for unit in range(1, units + 1):
            at = f"stage{stage}_unit{unit}_"
            stride = 2 if unit == 1 and stage > 1 else 1
            start = normal(f"{at}bn1", x, f"{at}relu1", epsilon=RESNET_EPSILON)
            y = convolved(f"{at}conv1", start, filters, 1)
            y = normal(f"{at}bn2", y, f"{at}relu2", epsilon=RESNET_EPSILON)
            y = convolved(f"{at}conv2", padded(y, 1), filters, 3, stride)
            y = normal(f"{at}bn3", y, f"{at}relu3", epsilon=RESNET_EPSILON)
            y = convolved(f"{at}conv3", y, BOTTLENECK * filters, 1)
            if unit == 1:
                x = convolved(f"{at}sc", start, BOTTLENECK * filters, 1, stride)
                skips += [start] if stage > 1 else []
            x = w.numbered("Add", "add", (y, x))
    x = normal("bn1", x, "relu1", epsilon=RESNET_EPSILON)
    for number, filters in enumerate(DECODER_FILTERS):
        at = f"decoder_stage{number}"
        x = w.add("UpSampling2D", f"{at}_upsampling", x, size=[2, 2], interpolation="nearest")
        if skips:
            x = w.add("Concatenate", f"{at}_concat", (x, skips.pop()), axis=3)
        for part in "ab":
            options = {**_window(3, 1), "padding": "same", **_he_uniform()}
            x = w.add("Conv2D", f"{at}{part}_conv", x, filters=filters, **options)
            x = normal(f"{at}{part}_bn", x, f"{at}{part}_relu", epsilon=1e-3)
    x = w.add("Conv2D", "final_conv", x, filters=classes, **_window(3, 1), padding="same")
    w.add("Activation", _end(classes), x, activation=_end(classes))
    return w


def xception_unet(classes: int, channels: int) -> Writer:
    """Separable convolutions on the way down, transposed ones on the way up; each block has a
    convolution around it (1x1), added at its end. There are no connections across."""
    w = Writer("xception_unet", (None, None, channels))
    same: dict[str, Any] = {"padding": "same"}

    def block(at: str, x: str, kind: str, filters: int, activated: bool = True) -> str:
        y = x
        for number in (1, 2):
            if activated or number == 2:
                y = w.add("Activation", f"{at}_relu{number}", y, activation="relu")
            y = w.add(kind, f"{at}_conv{number}", y, filters=filters, **_window(3, 1), **same)
            y = w.add("BatchNormalization", f"{at}_bn{number}", y)
        return y

    x = w.add("Conv2D", "stem_conv", "data", filters=32, **_window(3, 2), **same)
    x = w.add("BatchNormalization", "stem_bn", x)
    x = w.add("Activation", "stem_relu", x, activation="relu")
    for filters in (64, 128, 256):
        at = f"down{filters}"
        y = block(at, x, "SeparableConv2D", filters, activated=filters > 64)
        y = w.add("MaxPooling2D", f"{at}_pool", y, pool_size=[3, 3], strides=[2, 2], **same)
        x = w.add("Conv2D", f"{at}_around", x, filters=filters, **_window(1, 2), **same)
        x = w.add("Add", f"{at}_add", (y, x))
    for filters in (256, 128, 64, 32):
        at = f"up{filters}"
        y = block(at, x, "Conv2DTranspose", filters)
        y = w.add("UpSampling2D", f"{at}_double", y, size=[2, 2])
        x = w.add("UpSampling2D", f"{at}_around_double", x, size=[2, 2])
        x = w.add("Conv2D", f"{at}_around", x, filters=filters, **_window(1, 1), **same)
        x = w.add("Add", f"{at}_add", (y, x))
    end = {"activation": _end(classes), **same}
    w.add("Conv2D", "classes", x, filters=classes, **_window(3, 1), **end)
    return w


def unet3d(classes: int, channels: int) -> Writer:
    """Four levels; two convolutions with normalisation each; log-probabilities (for NLL)."""
    w = Writer("unet3d", (None, None, None, channels))
    widths = (16, 32, 64, 128)

    def double(at: str, x: str, filters: int) -> str:
        for number in (1, 2):
            options = {**_window(3, 1, 3), "padding": "same", "use_bias": False}
            x = w.add("Conv3D", f"{at}_conv{number}", x, filters=filters, **options)
            x = w.add("BatchNormalization", f"{at}_bn{number}", x)
            x = w.add("Activation", f"{at}_relu{number}", x, activation="relu")
        return x

    x, skips = "data", []
    for level, filters in enumerate(widths, start=1):
        x = double(f"down{level}", x, filters)
        if level < len(widths):
            skips.append(x)
            x = w.add("MaxPooling3D", f"pool{level}", x, pool_size=[2, 2, 2])
    for level, filters in reversed(list(enumerate(widths[:-1], start=1))):
        x = w.add("UpSampling3D", f"up{level}_double", x, size=[2, 2, 2])
        x = w.add("Concatenate", f"up{level}_join", (x, skips.pop()))
        x = double(f"up{level}", x, filters)
    end = "sigmoid" if classes == 1 else "log_softmax"
    w.add("Conv3D", "classes", x, filters=classes, **_window(1, 1, 3), activation=end)
    return w


def classifier(classes: int, channels: int) -> Writer:
    """For images of 28x28 pixels; log-probabilities (for NLL)."""
    w = Writer("classifier", (28, 28, channels))
    x = "data"
    for number, filters in enumerate((32, 64), start=1):
        options = {**_window(3, 1), "activation": "relu"}
        x = w.add("Conv2D", f"conv{number}", x, filters=filters, **options)
        x = w.add("MaxPooling2D", f"pool{number}", x, pool_size=[2, 2])
    x = w.add("Flatten", "flat", x)
    x = w.add("Dropout", "dropout", x, rate=0.5)
    w.add("Dense", "classes", x, units=classes, activation="log_softmax")
    return w


def _resnet50(w: Writer, use_bias: bool, convolutions: bool, normalisations: bool) -> str:
    """The encoder (He et al. 2015) with the layer names of keras.applications, whose weights fit;
    whether convolutions and normalisations learn."""

    def convolved(name: str, x: str, filters: int, size: int, stride: int, padding: str) -> str:
        options = {**_window(size, stride), "padding": padding, "trainable": convolutions}
        x = w.add("Conv2D", f"{name}_conv", x, filters=filters, use_bias=use_bias, **options)
        free = {"epsilon": NORMAL_EPSILON, "trainable": normalisations}
        return w.add("BatchNormalization", f"{name}_bn", x, axis=[3], **free)

    def activated(name: str, x: str) -> str:
        return w.add("Activation", name, x, activation="relu")

    x = w.add("ZeroPadding2D", "conv1_pad", "data", padding=[[3, 3], [3, 3]])
    x = activated("conv1_relu", convolved("conv1", x, 64, 7, 2, "valid"))
    x = w.add("ZeroPadding2D", "pool1_pad", x, padding=[[1, 1], [1, 1]])
    pool = {"pool_size": [3, 3], "strides": [2, 2], "padding": "valid"}
    x = w.add("MaxPooling2D", "pool1_pool", x, **pool)
    for stage, (filters, blocks) in enumerate(RESNET50, start=2):
        for block in range(1, blocks + 1):
            at = f"conv{stage}_block{block}"
            stride = 2 if block == 1 and stage > 2 else 1
            around = x
            if block == 1:
                around = convolved(f"{at}_0", x, BOTTLENECK * filters, 1, stride, "valid")
            y = activated(f"{at}_1_relu", convolved(f"{at}_1", x, filters, 1, stride, "valid"))
            y = activated(f"{at}_2_relu", convolved(f"{at}_2", y, filters, 3, 1, "same"))
            y = convolved(f"{at}_3", y, BOTTLENECK * filters, 1, 1, "valid")
            x = activated(f"{at}_out", w.add("Add", f"{at}_add", (around, y)))
    return x


def birds(classes: int, channels: int) -> Writer:
    """What the encoder knows already, told apart by a dense layer; log-probabilities (for NLL)."""
    w = Writer("birds", (None, None, channels))
    x = _resnet50(w, use_bias=True, convolutions=False, normalisations=False)
    x = w.add("GlobalAveragePooling2D", "avg_pool", x)
    w.add("Dense", "classes", x, units=classes, activation="log_softmax")
    return w


def satellite(classes: int, channels: int) -> Writer:
    """The convolutions stay, the normalisations adapt; log-probabilities (for NLL)."""
    w = Writer("satellite", (None, None, channels))
    x = _resnet50(w, use_bias=False, convolutions=False, normalisations=True)
    x = w.add("GlobalAveragePooling2D", "avg_pool", x)
    w.add("Dense", "classes", x, units=classes, use_bias=False, activation="log_softmax")
    return w


def inpainting(classes: int, channels: int) -> Writer:
    """Restores images; `classes` are the channels of what it restores."""
    w = Writer("inpainting", (None, None, channels))
    x = _resnet50(w, use_bias=True, convolutions=True, normalisations=True)
    for number, filters in enumerate((512, 256, 128, 64, classes), start=1):
        end = "sigmoid" if number == 5 else "relu"
        options = {**_window(4, 2), "padding": "same", "activation": end}
        x = w.add("Conv2DTranspose", f"up{number}", x, filters=filters, **options)
    return w


def inpainted(classes: int, channels: int) -> Writer:
    """Starts from the encoder that learned to restore; log-probabilities (for NLL)."""
    w = Writer("inpainted", (128, 128, channels))
    x = _resnet50(w, use_bias=True, convolutions=True, normalisations=False)
    x = w.add("Flatten", "flat", x)
    w.add("Dense", "classes", x, units=classes, activation="log_softmax")
    return w


NETWORKS: dict[str, Callable[[int, int], Writer]] = {
    "resunet": resunet,
    "xception_unet": xception_unet,
    "unet3d": unet3d,
    "classifier": classifier,
    "birds": birds,
    "satellite": satellite,
    "inpainting": inpainting,
    "inpainted": inpainted,
}

DEFAULTS = {
    "resunet": (1, 3),
    "xception_unet": (3, 3),
    "unet3d": (4, 1),
    "classifier": (10, 1),
    "birds": (400, 3),
    "satellite": (10, 3),
    "inpainting": (3, 3),
    "inpainted": (8, 3),
}
"""Classes and channels of the files in layers/."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="write", description="Writes a Keras network file.")
    parser.add_argument("name", choices=sorted(NETWORKS))
    parser.add_argument("--classes", type=int, help="channels of the output")
    parser.add_argument("--channels", type=int, help="1 grey, 3 colour")
    options = parser.parse_args(arguments)
    classes, channels = DEFAULTS[options.name]
    classes = classes if options.classes is None else options.classes
    channels = channels if options.channels is None else options.channels
    if min(classes, channels) < 1:
        parser.error("--classes and --channels are 1 or more")
    sys.stdout.write(NETWORKS[options.name](classes, channels).text())


if __name__ == "__main__":
    main()
