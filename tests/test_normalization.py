"""Normalisation in channels last on a CPU: exact values, exact gradients, the layout stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.networks.build import CPU_LAYERS, build, replace_layers
from trainer.networks.description import parse_network
from trainer.networks.normalization import (
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm2d,
    InstanceNorm3d,
    parts_of,
)

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

SHAPES = [
    (3, 8, 7, 6, 5),
    (1, 4, 12, 12, 12),
    (2, 4, 9, 40),
    (1, 6, 40, 40),
    (2, 8, 32, 32, 32),  # added up in parts
    (1, 8, 32, 32, 40),
    (2, 4, 63, 33, 31),  # does not divide
    (4, 4, 256, 256),
]
KINDS = {
    "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
    "group": (lambda channels, affine=True: nn.GroupNorm(2, channels, affine=affine),) * 2,
    "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
}


def drawn(*shape: int) -> Tensor:
    """Channels last, far from a mean of 0."""
    torch.manual_seed(0)
    return (torch.randn(shape) * 2 + 3).contiguous(memory_format=LAST[len(shape)])


def pair(kind: str, shape: tuple[int, ...], **options: bool) -> tuple[nn.Module, nn.Module]:
    """Ours, and torch's in double precision, with the same values."""
    theirs = KINDS[kind][len(shape) - 4](shape[1], **options).double()
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter)
    ours = copy.deepcopy(theirs).float()
    replace_layers(ours, CPU_LAYERS)
    assert type(ours) in CPU_LAYERS.values()
    return ours, theirs


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_exact_and_the_layout_stays(
    shape: tuple[int, ...], kind: str, affine: bool
) -> None:
    ours, theirs = pair(kind, shape, affine=affine)
    x = drawn(*shape).requires_grad_()
    exact = x.detach().double().contiguous().requires_grad_()
    found, expected = ours(x), theirs(exact)
    assert found.is_contiguous(memory_format=LAST[len(shape)])
    torch.testing.assert_close(found.double(), expected, atol=4e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), found, atol=4e-6, rtol=0)
    over = torch.randn(shape)
    found.backward(over.contiguous(memory_format=LAST[len(shape)]))
    expected.backward(over.double())
    assert x.grad is not None and exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=4e-6, rtol=0)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        wide = (x.numel() / shape[1]) ** 0.5  # of a sum of so many random numbers
        torch.testing.assert_close(own.grad.double(), other.grad, atol=4e-6 * wide, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_many_voxels_far_from_zero_stay_exact(kind: str) -> None:
    """torch's are wrong by 0.001 or more here, but for instances."""
    shape = (1, 2, 128, 128, 64)
    ours, theirs = pair(kind, shape)
    x = drawn(*shape)
    with torch.no_grad():
        assert float((ours(x) - theirs(x.double().contiguous())).abs().max()) < 5e-6


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32, 16), (2, 3, 4, 4, 4), (8, 3, 64, 64)])
def test_running_statistics_follow_as_torch_s(
    shape: tuple[int, ...], momentum: float | None
) -> None:
    for kind in ("batch", "instance"):
        ours, theirs = pair(kind, shape, track_running_stats=True)
        ours.momentum = theirs.momentum = momentum  # type: ignore[assignment]
        for number in range(3):
            x = drawn(*shape) * (number + 1)
            ours(x)
            theirs(x.double().contiguous())
        for own, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(own.double(), other.double(), atol=1e-5, rtol=1e-5)
        x = drawn(*shape)
        torch.testing.assert_close(
            ours.eval()(x).double(), theirs.eval()(x.double()), atol=1e-5, rtol=1e-5
        )


def test_a_batch_of_one_has_the_gradients_of_the_plain_order() -> None:
    """torch's instance normalisation takes gradients in channels last for plain ones there."""
    layers = {"network": "unet", "dimensions": 3, "width": 8, "depth": 1, "in_channels": 1}
    network = build(parse_network({**layers, "normalization": "instance", "classes": 2}, "x"))
    exact = copy.deepcopy(network).to(memory_format=torch.contiguous_format).double()  # type: ignore[call-overload]
    x = torch.randn(1, 1, 32, 32, 32)
    network(x).square().mean().backward()
    exact(x.double()).square().mean().backward()
    for (name, own), other in zip(network.named_parameters(), exact.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        apart = (own.grad - other.grad).norm() / (other.grad.norm() + 1e-6)
        assert float(apart) < 1e-3, name


def test_half_precision_is_computed_in_single() -> None:
    x = drawn(1, 4, 16, 16, 16).bfloat16()
    found = InstanceNorm3d(4)(x)
    assert found.dtype == torch.bfloat16
    expected = nn.InstanceNorm3d(4)(x.double().contiguous())
    assert float((found - expected).abs().max()) < 0.02


def test_networks_have_it_and_their_names_stay() -> None:
    for normalization, kind in (
        ("instance", InstanceNorm3d),
        ("group", GroupNorm),
        ("batch", BatchNorm3d),
    ):
        layers = {"network": "unet", "dimensions": 3, "width": 8, "depth": 2}
        network = build(parse_network({**layers, "normalization": normalization}, "x"))
        kinds = {type(one) for one in network.modules()}
        assert kind in kinds and not kinds & set(CPU_LAYERS)
        plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        replace_layers(plain, {own: theirs for theirs, own in CPU_LAYERS.items()})
        assert not {type(one) for one in plain.modules()} & set(CPU_LAYERS.values())
        x = drawn(2, 3, 16, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(network(x), plain(x.contiguous()), atol=1e-5, rtol=1e-5)
        assert "down.0.1.weight" in network.body.state_dict()


OWN = "_NormalizeBackward"
LAYERS = {
    "instance 2D": (InstanceNorm2d(4), (2, 4, 8, 8)),
    "instance 3D": (InstanceNorm3d(4), (2, 4, 4, 4, 4)),
    "group 2D": (GroupNorm(2, 4), (2, 4, 8, 8)),
    "group 3D": (GroupNorm(2, 4), (2, 4, 4, 4, 4)),
    "batch 2D": (BatchNorm2d(4), (2, 4, 128, 128)),
    "batch 3D": (BatchNorm3d(4), (2, 4, 32, 32, 16)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_work_is_ours_where_it_should_be(name: str) -> None:
    layer, shape = LAYERS[name]
    x = drawn(*shape).requires_grad_()

    def node(found: Tensor) -> str:
        assert found.grad_fn is not None
        return found.grad_fn.name()

    assert node(layer(x)) == OWN
    half = layer(x.bfloat16())
    assert half.grad_fn is not None and half.grad_fn.next_functions[0][0].name() == OWN
    assert node(layer.double()(x.double())) != OWN
    layer.float()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        slope.sum().backward()


def test_small_batches_and_evaluation_are_left_to_torch() -> None:
    x = drawn(2, 4, 8, 8, 8).requires_grad_()
    for found in (BatchNorm3d(4)(x), BatchNorm3d(4).eval()(drawn(2, 4, 32, 32, 16))):
        assert found.grad_fn is not None and found.grad_fn.name() != OWN
    single = GroupNorm(2, 4)(drawn(2, 4, 1, 1))
    assert single.grad_fn is not None and single.grad_fn.name() != OWN


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (InstanceNorm3d(4, affine=True), (2, 1, 16, 16, 16)),
        (InstanceNorm3d(4, affine=True), (2, 6, 16, 16, 16)),
        (InstanceNorm2d(4), (2, 4, 6, 6, 6)),
        (GroupNorm(2, 4), (2, 1, 16, 16)),
        (BatchNorm3d(4), (2, 4, 256, 256)),
    ],
)
def test_another_input_is_refused_as_torch_does(layer: nn.Module, shape: tuple[int, ...]) -> None:
    theirs = next(kind for kind, own in CPU_LAYERS.items() if own is type(layer))
    plain = copy.deepcopy(layer)
    plain.__class__ = theirs
    x = drawn(*shape)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        plain(x)
    with pytest.raises(expected.type) as found:
        layer(x)
    assert str(found.value) == str(expected.value)


def test_volumes_without_a_batch_and_empty_batches_are_torch_s() -> None:
    x = drawn(4, 9, 16, 16)  # (C, D, H, W)
    torch.testing.assert_close(InstanceNorm3d(4)(x), nn.InstanceNorm3d(4)(x))
    for layer in (InstanceNorm3d(4), GroupNorm(2, 4)):
        assert layer(torch.zeros(0, 4, 8, 8, 8)).shape == (0, 4, 8, 8, 8)


def test_a_layer_in_half_precision_keeps_its_statistics() -> None:
    x = drawn(2, 4, 32, 32, 16)
    ours, theirs = BatchNorm3d(4, affine=False).bfloat16(), nn.BatchNorm3d(4, affine=False)
    ours(x.bfloat16())
    theirs(x.contiguous())
    assert ours.running_mean is not None and theirs.running_mean is not None
    torch.testing.assert_close(ours.running_mean.float(), theirs.running_mean, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((1, 500, 8), 1),
        ((4, 500, 8), 0),  # little
        ((1, 2**15, 16), 32),
        ((2, 64**3, 32), 256),
        ((1, 15 * 65 * 65, 32), 39),  # of 1625
        ((1, 8 * 225 * 225, 32), 375),  # of 1080
        ((2, 99991, 16), 0),  # a prime number
    ],
)
def test_in_how_many_parts_a_channel_is_added_up(shape: tuple[int, int, int], parts: int) -> None:
    assert parts_of(*shape) == parts
