"""The U-Net and its options, and the network files for volumes, against their published numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.describe import described
from trainer.errors import InputError
from trainer.networks.build import SegmentationNetwork, build, parameter_counts
from trainer.networks.description import Network, check_size, parse_network

LAYERS = Path(__file__).resolve().parent.parent / "layers"


def network(name: str = "", **keys: Any) -> Network:
    """A file of layers/, or the unet, with other keys."""
    content = json.loads((LAYERS / f"{name}.json").read_text()) if name else {"network": "unet"}
    return parse_network({**content, **keys}, "layers.json")


def on_meta(description: Network) -> SegmentationNetwork:
    with torch.device("meta"):
        return build(description)


def convolutions(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, nn.modules.conv._ConvNd)]


def test_the_unet_for_images_is_what_it_was() -> None:
    """Names, order and first values of its parameters: checkpoints and seeds go on."""

    def double(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    torch.manual_seed(5)
    parts = {
        "down": nn.ModuleList([double(3, 4), double(4, 8), double(8, 16)]),
        "up": nn.ModuleList([nn.ConvTranspose2d(8, 4, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)]),
        "merge": nn.ModuleList([double(8, 4), double(16, 8)]),
        "head": nn.Conv2d(4, 1, 1),
    }
    torch.manual_seed(5)
    found = build(network(width=4, depth=2)).body.state_dict()
    expected = {
        f"{name}.{key}": value
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)

    x = torch.rand(2, 3, 8, 12)
    first = parts["down"][0](x)  # type: ignore[index]
    second = parts["down"][1](nn.functional.max_pool2d(first, 2))  # type: ignore[index]
    third = parts["down"][2](nn.functional.max_pool2d(second, 2))  # type: ignore[index]
    y = parts["merge"][1](torch.cat([second, parts["up"][1](third)], 1))  # type: ignore[index]
    y = parts["merge"][0](torch.cat([first, parts["up"][0](y)], 1))  # type: ignore[index]
    torch.manual_seed(5)
    torch.testing.assert_close(build(network(width=4, depth=2))(x), parts["head"](y))


COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("unet3d_mlperf", {"in_channels": 1, "classes": 3}, 31_190_243),
    ("unet3d_mlperf", {"in_channels": 1, "classes": 3, "nonlinearity": "leaky_relu"}, 31_190_243),
    ("unet3d_tensorflow", {"in_channels": 1, "classes": 3}, 19_073_795),
    ("unet3d_tensorflow", {"in_channels": 1, "classes": 3, "upsampling": "nearest"}, 16_320_387),
    ("unet3d_tensorflow", {"in_channels": 1, "classes": 3, "normalization": "none"}, 19_069_123),
    ("unet3d_brain", {"in_channels": 4}, 351_809),
    ("unet3d_brain", {"in_channels": 4, "normalization": "group"}, 351_809),
    ("unet2d_brain", {"in_channels": 1}, 7_759_521),
    ("unet2d_brain", {"in_channels": 4}, 7_760_385),
    ("unet2d_brain", {"in_channels": 1, "upsampling": "nearest"}, 7_846_081),
    ("unet2d_brain", {"in_channels": 1, "width": 16}, 1_940_817),
    ("unet2d_brain", {"in_channels": 1, "width": 16, "upsampling": "nearest"}, 1_962_337),
]


@pytest.mark.parametrize(("name", "keys", "count"), COUNTS)
def test_the_published_networks_have_their_parameters(
    name: str, keys: dict[str, Any], count: int
) -> None:
    assert parameter_counts(on_meta(network(name, **keys))) == (count, count)


def test_the_running_statistics_of_tensorflows_network() -> None:
    module = on_meta(network("unet3d_tensorflow", in_channels=1, classes=3))
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm3d)]
    assert sum(2 * norm.num_features for norm in norms) == 4_672
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}
    deeper = network("unet3d_tensorflow", depth=4)
    assert deeper.levels == [64, 128, 256, 512, 1024] and deeper.divisor == 16
    on_meta(deeper)


def test_biases_of_mlperfs_network() -> None:
    module = on_meta(network("unet3d_mlperf", in_channels=1, classes=3))
    biased = {type(part).__name__: part.bias is not None for part in convolutions(module)[:-1]}
    assert biased == {"Conv3d": False, "ConvTranspose3d": True}
    assert module.body.head.bias is not None
    strides = [part.stride for part in convolutions(module.body.down)]
    assert strides == [(1, 1, 1)] * 2 + [(2, 2, 2), (1, 1, 1)] * 5
    instances = [part for part in module.modules() if isinstance(part, nn.InstanceNorm3d)]
    assert len(instances) == 22 and all(part.affine for part in instances)


SIZES: list[tuple[str, int, int, int, tuple[int, ...]]] = [
    ("unet3d_mlperf", 1, 3, 32, (64, 32, 96)),
    ("unet3d_tensorflow", 1, 3, 8, (8, 24, 16)),
    ("unet3d_brain", 4, 1, 8, (16, 8, 24)),
    ("unet2d_brain", 1, 1, 16, (48, 32)),
    ("unet3d_small", 1, 3, 8, (24, 32, 16)),
    ("segresnet3d", 2, 3, 8, (16, 24, 8)),
    ("dynunet3d", 1, 2, 16, (32, 16, 48)),
]


@pytest.mark.parametrize(("name", "channels", "classes", "divisor", "sizes"), SIZES)
def test_files_of_layers_take_sizes_that_are_no_cubes(
    name: str, channels: int, classes: int, divisor: int, sizes: tuple[int, ...]
) -> None:
    description = network(name, in_channels=channels, classes=classes)
    assert description.divisor == divisor
    assert description.dimensions == description.output_axes == len(sizes)
    module = build(description).eval()
    with torch.inference_mode():
        logits = module(torch.rand(1, channels, *sizes))
    assert logits.shape == (1, classes, *sizes) and bool(logits.isfinite().all())
    wrong = (sizes[0] + divisor // 2, *sizes[1:])
    with pytest.raises(InputError, match=f"multiples of {divisor}"):
        module.check(wrong)


SMALL = {"dimensions": 3, "width": 4, "depth": 2, "in_channels": 1, "classes": 2}
OPTIONS: list[dict[str, Any]] = [
    {"downsampling": "stride", "normalization": "instance", "nonlinearity": "leaky_relu"},
    {"upsampling": "nearest", "normalization": "group", "groups": 2, "half_first": True},
    {"upsampling": "transpose_same", "normalization": "none", "convolution_bias": True},
    {"widths": [2, 6, 4], "dropout": [0, 0.5, 0]},
]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_trains_in_images_and_volumes(
    options: dict[str, Any], dimensions: int
) -> None:
    module = build(network(**{**SMALL, **options, "dimensions": dimensions}))
    sizes = (8, 12, 16)[-dimensions:]
    logits = module(torch.rand(2, 1, *sizes))
    assert logits.shape == (2, 2, *sizes)
    logits.square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_what_is_upsampled_comes_first_in_volumes() -> None:
    module = build(network(**SMALL, normalization="none")).eval()
    with torch.no_grad():
        module.body.up[0].weight.zero_()
        module.body.up[0].bias.fill_(1)
        module.body.merge[0][0].weight.zero_()
        module.body.merge[0][0].weight[:, :4, 1, 1, 1] = 1  # sums up the first half
    seen = []
    module.body.merge[0][0].register_forward_hook(lambda _, __, y: seen.append(y))
    module(torch.rand(1, 1, 4, 8, 4))
    assert torch.equal(seen[0], torch.full((1, 4, 4, 8, 4), 4.0))


def test_dropout_is_between_the_convolutions_of_its_levels() -> None:
    module = build(network("unet2d_brain"))
    places = [
        (level, index, part.p)
        for level, block in enumerate(module.body.down)
        for index, part in enumerate(block)
        if isinstance(part, nn.Dropout)
    ]
    assert places == [(2, 2, 0.2), (3, 2, 0.2)]
    assert not any(isinstance(part, nn.Dropout) for part in module.body.merge.modules())


def fans(convolution: Any) -> tuple[float, float]:
    """Inputs and outputs of a kernel as Keras counts them."""
    window = math.prod(convolution.kernel_size)
    inputs, outputs = convolution.in_channels, convolution.out_channels
    return (outputs if convolution.transposed else inputs) * window, (
        inputs if convolution.transposed else outputs
    ) * window


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", ["he_uniform", "glorot_uniform", "truncated_normal"])
def test_kernels_start_as_keras_starts_them(name: str, dimensions: int) -> None:
    torch.manual_seed(0)
    keys: dict[str, Any] = {**SMALL, "width": 8, "dimensions": dimensions}
    module = build(network(**keys, convolution_bias=True, initialization=name))
    for convolution in convolutions(module)[1:-1]:
        weight, (inputs, outputs) = convolution.weight.detach(), fans(convolution)
        limit = {
            "he_uniform": math.sqrt(6 / inputs),
            "glorot_uniform": math.sqrt(6 / (inputs + outputs)),
            "truncated_normal": 0.1,
        }[name]
        deviation = 0.05 * 0.8796 if name == "truncated_normal" else limit / math.sqrt(3)
        assert 0.9 * limit < float(weight.abs().max()) <= limit
        assert float(weight.std()) == pytest.approx(deviation, rel=0.12)
        assert float(weight.mean()) == pytest.approx(0, abs=0.12 * deviation)
        assert not bool(convolution.bias.any())


def test_one_voxel_has_no_instance_norm() -> None:
    mlperf = network("unet3d_mlperf", in_channels=1, classes=3)
    with pytest.raises(InputError) as caught:
        check_size(mlperf, (32, 32, 32), "data.patch")
    assert str(caught.value).startswith("data.patch: unet cannot take 32x32x32 voxels")
    assert "one side or more of at least 64" in str(caught.value)
    check_size(mlperf, (32, 32, 64), "data.patch")
    small = build(network(**SMALL, normalization="instance"))
    with pytest.raises(InputError, match="4x4x4 voxels"):
        small.check((4, 4, 4))
    small.check((4, 4, 8))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"network": "smp.Unet", "encoder": "resnet18", "dimensions": 3}, "smp.Unet has no 3 dim"),
    ({"network": "unet", "dimensions": 1}, "unet has no 1 dimensions; accepted: 2 or 3"),
    ({"network": "unet", "dimensions": 4}, "less than or equal to 3"),
    ({"network": "monai.UNet", "normalization": "group"}, "takes no 'normalization'; accepted: wi"),
    ({"network": "unet", "widths": [8, 16], "depth": 2}, "2 numbers for depth 2; accepted: 3"),
    ({"network": "unet", "widths": [8]}, "at least 2"),
    ({"network": "unet", "dropout": [0.1]}, "1 numbers for depth 4; accepted: 5: one a level"),
    ({"network": "unet", "dropout": [0, 0, 0, 0, 1]}, "less than 1"),
    ({"network": "unet", "widths": [3, 4], "half_first": True}, "3 channels have no half"),
    ({"network": "unet", "width": 6, "normalization": "group"}, "cannot be parted into 4 groups"),
    (
        {"network": "unet", "width": 4, "normalization": "group", "half_first": True},
        "into 4 groups in half of them; accepted: widths that are multiples of 8",
    ),
    ({"network": "unet", "upsampling": "bilinear"}, "'transpose', 'transpose_same' or 'nearest'"),
]


@pytest.mark.parametrize(("content", "words"), REFUSED)
def test_what_cannot_be_built_is_told(content: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_network(content, "layers.json")
    assert words in str(caught.value)


def test_a_network_of_images_for_volumes_is_told() -> None:
    flat = {"network": "monai.Quicknat", "dimensions": 3, "in_channels": 1, "classes": 2}
    module = build(parse_network(flat, "layers.json"))
    with pytest.raises(InputError, match="cannot take 32x32x32 voxels"):
        module.check((32, 32, 32))


def test_networks_are_described_at_a_size() -> None:
    facts = described(str(LAYERS / "unet3d_mlperf.json"), "64x32x96")
    assert facts["input_shape"] == [3, 64, 32, 96] and facts["output_shape"] == [1, 64, 32, 96]
    assert described(str(LAYERS / "unet3d_mlperf.json"))["input_shape"] == [3, None, None, None]
    first = 64 * 32 * 96 * 27 * 32 * (3 + 32)  # multiply-adds of the first two convolutions
    assert facts["multiply_adds"] > first and facts["divisor"] == 32
    with pytest.raises(InputError, match="32x32x32 voxels"):
        described(str(LAYERS / "unet3d_mlperf.json"), "32x32x32")
    with pytest.raises(InputError, match="of 3 dimensions"):
        described(str(LAYERS / "unet3d_mlperf.json"), "64x64")


def test_multiply_adds_of_a_volume_equal_their_sum() -> None:
    module = on_meta(network(**SMALL))
    expected = 0
    for name, convolution in module.body.named_modules():
        if isinstance(convolution, nn.modules.conv._ConvNd):
            part, _, level = name.partition(".")
            depth = int(level[0]) if level else 0
            voxels = 8 * 16 * 12 // 8**depth  # of what goes out; of a transposed one each once
            window = 1 if part == "up" else math.prod(convolution.kernel_size)
            expected += voxels * window * convolution.in_channels * convolution.out_channels
    from trainer.describe import _computed

    assert _computed(module.eval(), (8, 16, 12))["multiply_adds"] == expected


@pytest.mark.parametrize("name", ["unet3d_small", "unet3d_brain", "unet2d_brain"])
def test_a_checkpoint_keeps_the_whole_description(name: str) -> None:
    description = network(name, in_channels=1, classes=3)
    assert parse_network(description.for_checkpoint().model_dump(), "a checkpoint") == description


def only_conv_layouts(module: nn.Module) -> set[bool]:
    return {
        part.weight.is_contiguous(memory_format=torch.channels_last_3d)
        for part in convolutions(module)
    }


def test_volumes_are_computed_in_channels_last() -> None:
    assert only_conv_layouts(build(network(**SMALL))) == {True}


def test_an_own_network_is_told_its_dimensions(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, in_channels, classes, dimensions):\n"
        "        super().__init__()\n"
        "        kind = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]\n"
        "        self.convolution = kind(in_channels, classes, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        return self.convolution(x)\n"
    )

    def built(dimensions: int) -> SegmentationNetwork:
        content = {"module": "net.py:Net", "dimensions": dimensions, "in_channels": 1}
        return build(parse_network(content, "l.json"), folder=tmp_path, trust_code=True)

    def sizes(count: int) -> Sequence[int]:
        return (5, 7, 9)[:count]

    for dimensions in (2, 3):
        built(dimensions).check(sizes(dimensions))
