"""Normalisation of instances, groups and batches that keeps channels last on a CPU, and is exact.

torch's instance normalisation copies such a batch into the plain order and gives it back so. Its
group and batch normalisation add up all places of a channel in one single-precision number: over
128x128x128 places the result is wrong by 0.003 to 0.007. torch's ordinary sums are exact, but take
twice as long. So its fast kernel adds up a channel in parts of 1024 places or more, and the parts
are added up by themselves. Formulas: Ioffe and Szegedy 2015 (batches), Ulyanov et al. 2016
(instances), Wu and He 2018 (groups).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

PART, LARGEST_PART = 1024, 8192
"""Places of a channel that are added up plainly."""

MANY = 2**15
"""Places of a batch from which its statistics are ours: torch's are wrong by 2e-5 there."""

FEW = 2**16
"""Numbers of a sample up to which torch's ordinary sums, of all samples at once, are as fast as its
kernels, which take one sample after the other: each operation starts threads."""


@lru_cache(maxsize=256)
def parts_of(samples: int, places: int, channels: int) -> int:
    """In how many parts torch's kernels shall add up each channel of (samples, places, channels);
    0: they are not used, because there is little, or no part divides the places."""
    if samples > 1 and places * channels <= FEW:
        return 0
    if places <= PART:
        return 1
    lengths = range(PART, min(LARGEST_PART, places) + 1)
    return next((places // length for length in lengths if places % length == 0), 0)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (n, C) over the places of (n, places, C)."""
    channels, parts = rows.shape[2], parts_of(*rows.shape)
    if not parts:
        mean = rows.mean(1, keepdim=True)
        return mean[:, 0], (rows - mean).square_().mean(1)
    means, variances = [], []
    for one in rows:  # a part of a channel is a channel to the kernel
        m, v = torch.batch_norm_update_stats(one.view(-1, parts * channels), None, None, 0.0)
        m = m.view(parts, channels)
        means.append(m.mean(0))
        variances.append(v.view(parts, channels).mean(0) + (m - means[-1]).square_().mean(0))
    return torch.stack(means), torch.stack(variances)


def _gradient_means(
    grad_output: Tensor, rows: Tensor, mean: Tensor, inverse_std: Tensor
) -> tuple[Tensor, Tensor]:
    """Means (n, C) over the places of gradients (n, places, C), and of their products with the
    normalised rows."""
    channels, parts = rows.shape[2], parts_of(*rows.shape)
    if not parts:
        normal = (rows - mean[:, None]).mul_(inverse_std[:, None])
        return grad_output.mean(1), normal.mul_(grad_output).mean(1)
    means, products = [], []
    for grad, one, m, s in zip(grad_output, rows, mean, inverse_std, strict=True):
        _, product, alone = torch.ops.aten.native_batch_norm_backward(
            grad.view(-1, parts * channels),
            one.view(-1, parts * channels),
            *(None, None, None),
            *(m.repeat(parts), s.repeat(parts)),
            *(True, 0.0, [False, True, True]),
        )
        means.append(alone.view(parts, channels).sum(0) / len(one))
        products.append(product.view(parts, channels).sum(0) / len(one))
    return torch.stack(means), torch.stack(products)


def _over_groups(values: Tensor, groups: int) -> Tensor:
    """(n, C) -> the means over the channels of each group, (n, C)."""
    if groups == values.shape[1]:
        return values
    parted = values.view(len(values), groups, -1)
    return parted.mean(2, keepdim=True).expand_as(parted).reshape(values.shape)


def _rows(x: Tensor, together: bool) -> Tensor:
    """(N, C, …) as (N, places, C), or (1, places, C) with all samples `together`; in channels last
    nothing is copied."""
    places = x.movedim(1, -1)
    return places.reshape(1 if together else len(x), -1, x.shape[1]).contiguous()


def _empty(x: Tensor) -> Tensor:
    """As x, in channels last."""
    return torch.empty_like(x, memory_format=LAYOUTS[x.dim()])


class _Normalize(torch.autograd.Function):
    """x normalised by mean and 1/deviation (n, C), which are those of its rows over `groups` of
    channels; times weight (C,), plus bias (C,). In channels last."""

    # Written into tensors, not made as views: after a view, ReLU in place copies backward.

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        groups: int,
        together: bool,
    ) -> Tensor:
        rows = _rows(x, together)
        scale = weight * inverse_std
        shift = bias - mean * scale
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.groups, ctx.together = groups, together
        out = _empty(x)
        torch.addcmul(shift[:, None], rows, scale[:, None], out=_rows(out, together))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # grad_input = (weight * grad - mean(weight * grad) - normal * mean(weight * grad * normal))
        # / std (Ioffe and Szegedy 2015, section 3), without a copy of the normal rows.
        x, weight, mean, inverse_std = ctx.saved_tensors
        rows, grad = _rows(x, ctx.together), _rows(gradients[0], ctx.together)
        grad_mean, product_mean = _gradient_means(grad, rows, mean, inverse_std)
        grad_bias = grad_mean.sum(0) * rows.shape[1]
        grad_weight = product_mean.sum(0) * rows.shape[1]
        grad_mean = _over_groups(weight * grad_mean, ctx.groups)
        product_mean = _over_groups(weight * product_mean, ctx.groups)
        of_rows = -inverse_std.square() * product_mean
        constant = -inverse_std * grad_mean - of_rows * mean
        grad_input = _empty(x)
        out = _rows(grad_input, ctx.together)
        torch.addcmul(constant[:, None], rows, of_rows[:, None], out=out)
        out.addcmul_(grad, (weight * inverse_std)[:, None])
        return grad_input, grad_weight, grad_bias, None, None, None, None


def _applies(x: Tensor, channels: int, weight: Tensor | None, axes: tuple[int, ...]) -> bool:
    """On a CPU, to what torch's layer takes (it tells what is wrong), not while the network is
    compiled or exported.

    The layout of x does not matter: torch's convolutions leave channels last for a small batch of
    one, and torch's instance normalisation takes gradients in channels last for plain ones then
    (2.13): it trains on wrong numbers.
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and (weight is None or weight.dtype == torch.float32)
        and x.dim() in axes
        and x.shape[1] == channels
        and len(x) > 0
        and x.shape[2:].numel() > 1
    )


def _scale_and_shift(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    weight = x.new_ones(channels) if module.weight is None else module.weight
    return weight, x.new_zeros(channels) if module.bias is None else module.bias


def _normalized(
    module: Any, x: Tensor, groups: int, *, together: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """x over groups of channels, each sample by itself or all `together`, in channels last; mean
    and variance (n, C)."""
    single = x.float().contiguous(memory_format=LAYOUTS[x.dim()])
    channels = x.shape[1]
    weight, bias = _scale_and_shift(module, single)
    with torch.no_grad():
        mean, var = _moments(_rows(single, together))
        if groups < channels:
            whole = _over_groups(mean, groups)
            mean, var = whole, _over_groups(var + (mean - whole).square(), groups)
        inverse_std = torch.rsqrt(var + module.eps)
    out: Tensor = _Normalize.apply(single, weight, bias, mean, inverse_std, groups, together)
    return out.to(x.dtype), mean, var


def _follow(module: Any, mean: Tensor, var: Tensor, count: int, momentum: float) -> None:
    """The running statistics take over a share of (n, C) of `count` numbers each."""
    kind = module.running_mean.dtype
    module.running_mean.lerp_(mean.mean(0).to(kind), momentum)
    module.running_var.lerp_((var.mean(0) * (count / (count - 1))).to(kind), momentum)


def _predicted(module: Any, x: Tensor) -> Tensor:
    """Instances of few numbers in half as many operations; without gradients."""
    weight, bias = _scale_and_shift(module, x)
    rows = _rows(x, together=False)
    rows = rows - rows.mean(1, keepdim=True)
    scale = torch.rsqrt(rows.square().mean(1, keepdim=True) + module.eps) * weight
    out = _empty(x)
    torch.addcmul(bias, rows, scale, out=_rows(out, together=False))
    return out


def _by_instance(module: nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor) -> Tensor:
    few = x.dtype == torch.float32 and x.numel() <= FEW * len(x)
    if few and not module.track_running_stats and not torch.is_grad_enabled():
        return _predicted(module, x)
    out, mean, var = _normalized(module, x, x.shape[1])
    if module.track_running_stats:
        _follow(module, mean, var, x.shape[2:].numel(), module.momentum or 0.0)
    return out


def _by_batch(module: nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor) -> Tensor:
    out, mean, var = _normalized(module, x, x.shape[1], together=True)
    if module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        momentum = module.momentum
        if momentum is None:  # the plain mean over batches
            momentum = 1.0 / float(module.num_batches_tracked)
        _follow(module, mean, var, x.numel() // x.shape[1], momentum)
    return out


def _of_instances(module: nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor, axes: int) -> bool:
    own = module.training or not module.track_running_stats
    return own and _applies(x, module.num_features, module.weight, (axes,))


def _of_batch(module: nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor, axes: int) -> bool:
    own = module.training and _applies(x, module.num_features, module.weight, (axes,))
    return own and x.numel() // x.shape[1] >= MANY


class InstanceNorm2d(nn.InstanceNorm2d):
    """(N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_instance(self, x) if _of_instances(self, x, 4) else super().forward(x)


class InstanceNorm3d(nn.InstanceNorm3d):
    """(N, C, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_instance(self, x) if _of_instances(self, x, 5) else super().forward(x)


class GroupNorm(nn.GroupNorm):
    """(N, C, H, W) or (N, C, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        if not _applies(x, self.num_channels, self.weight, (4, 5)):
            return super().forward(x)
        return _normalized(self, x, self.num_groups)[0]


class BatchNorm2d(nn.BatchNorm2d):
    """(N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_batch(self, x) if _of_batch(self, x, 4) else super().forward(x)


class BatchNorm3d(nn.BatchNorm3d):
    """(N, C, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_batch(self, x) if _of_batch(self, x, 5) else super().forward(x)


NORMALIZATIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.GroupNorm: GroupNorm,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
