"""Convolution of a batch of one: torch's numbers, from the faster kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainer.networks.convolution import Conv3d


def test_a_kernel_of_one_voxel_keeps_channels_last() -> None:
    last = torch.channels_last_3d
    ours = Conv3d(8, 4, 1).to(memory_format=last)  # type: ignore[call-overload]
    x = torch.randn(2, 8, 6, 6, 6).contiguous(memory_format=last)
    found = ours(x)
    assert found.is_contiguous(memory_format=last)
    expected = torch.einsum("oc,ncdhw->nodhw", ours.weight[:, :, 0, 0, 0], x)
    torch.testing.assert_close(found, expected + ours.bias.view(-1, 1, 1, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 1, "stride": 2, "bias": False},
        {"padding": (2, 0, 1), "dilation": 2, "groups": 2},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_values_and_gradients_are_those_of_double_precision(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours = Conv3d(4, 6, 3, **options)
    theirs = nn.Conv3d(4, 6, 3, **options).double()
    theirs.load_state_dict(ours.state_dict())
    ours.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.randn(1, 4, 10, 9, 8, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    found, expected = ours(x), theirs(exact)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert x.grad is not None and exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        torch.testing.assert_close(own.grad.double(), other.grad, atol=1e-2, rtol=1e-4)


def test_the_faster_kernel_is_taken_for_one_volume_alone() -> None:
    ours = Conv3d(2, 3, 3)
    one, two = (torch.randn(n, 2, 5, 5, 5) for n in (1, 2))
    for batch, kernel in ((one, "MkldnnConvolutionBackward0"), (two, "ConvolutionBackward0")):
        found = ours(batch)
        assert found.grad_fn is not None and found.grad_fn.name() == kernel
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(one), ours(one), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("depth", "kernel"), [(2, 3), (4, 5), (8, 3)])
def test_gradients_in_half_precision_are_near_those_in_single(
    depth: int, kernel: int, last: bool
) -> None:
    """torch's own are infinite where the volume is shorter than the kernel."""
    torch.manual_seed(0)
    ours = Conv3d(16, 16, kernel, padding=kernel // 2)
    kind = torch.channels_last_3d if last else torch.contiguous_format
    ours.to(memory_format=kind)  # type: ignore[call-overload]
    for _ in range(4):
        x = torch.randn(2, 16, depth, 8, 8).contiguous(memory_format=kind)
        with torch.autocast("cpu", torch.bfloat16):
            found = ours(x)
        over = torch.randn(found.shape)
        (own,) = torch.autograd.grad(found, ours.weight, over.to(found.dtype))
        (single,) = torch.autograd.grad(ours(x), ours.weight, over)
        assert float((own - single).norm() / single.norm()) < 0.02


def test_half_precision_and_other_batches_are_left_to_torch() -> None:
    ours = Conv3d(2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(torch.randn(1, 2, 5, 5, 5)).dtype == torch.bfloat16
    assert ours(torch.randn(3, 2, 5, 5, 5)).shape == (3, 3, 3, 3, 3)
    assert ours(torch.randn(2, 5, 5, 5)).shape == (3, 3, 3, 3)
