"""Gradients of large weights on maps of a few pixels, where oneDNN without AVX-512 has no good kernel."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neuroflux_fl.convolution_patches import Geometry, can_be_product

SMALL_MAP = 4
"""Pixels of an input map up to which the product is faster for all large weights."""

LARGEST_MAP, WIDE_BYTES = 16, 4 * 1024 * 1024
"""Up to so many pixels it is faster for weights of so many bytes; for smaller ones it is not, and on 8x8 it needs more
memory than oneDNN."""

_CAPABILITY = "AVX2"
"""Of the processor, as torch names it. With AVX-512 nothing was measured."""


class SmallMapConv2d(nn.Conv2d):
    """A convolution whose weight's gradient is one matrix product where maps are small; made by ``use_small_maps``.

    For 512 channels and maps of 2x2 oneDNN on AVX2 takes three times as long and reserves 36 MiB for every thread, of
    which it touches 9 (``benchmarks/small_maps.py``). Under a memory limit the reservation alone is refused.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pixels = input.shape[-2] * input.shape[-1]
        small = pixels <= (LARGEST_MAP if weight.nbytes >= WIDE_BYTES else SMALL_MAP)
        if not small or input.dim() != 4 or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return cast(Tensor, super()._conv_forward(input, weight, bias))
        geometry = cast(Geometry, (self.stride, self.padding))
        return cast(Tensor, _Convolve.apply(input, weight, bias, geometry))  # type: ignore[no-untyped-call]


def use_small_maps(module: nn.Module) -> None:
    """Turn, in place, each large convolution in ``module`` into a ``SmallMapConv2d`` on processors where that helps.

    Parameters and their names stay; what is grouped, dilated, padded otherwise than by zeros, or of one pixel's kernel
    is left alone.
    """
    if torch.backends.cpu.get_cpu_capability() != _CAPABILITY:
        return
    for part in module.modules():
        if type(part) is nn.Conv2d and can_be_product(part) and tuple(part.kernel_size) != (1, 1):
            part.__class__ = SmallMapConv2d


class _Convolve(torch.autograd.Function):
    """oneDNN's convolution and gradient by its input; the gradient by the weight as ``errors @ patches.T``."""

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        context.save_for_backward(images, weight)
        context.geometry = geometry
        return torch.nn.functional.conv2d(images, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = context.saved_tensors
        needs_images, needs_weight, needs_bias, _ = context.needs_input_grad
        by_images = None
        if needs_images:
            by_images, _, _ = torch.ops.aten.convolution_backward(
                gradient, images, weight, None, *context.geometry, (1, 1), False, (0, 0), 1, (True, False, False)
            )
        by_weight = weight_gradient(images, weight, gradient, context.geometry) if needs_weight else None
        return by_images, by_weight, gradient.sum((0, 2, 3)) if needs_bias else None, None


def weight_gradient(images: Tensor, weight: Tensor, gradient: Tensor, geometry: Geometry) -> Tensor:
    """Gradient of a loss by a convolution's weight, in the weight's own layout.

    Args:
        images: ``(samples, inputs, height, width)``.
        weight: ``(outputs, inputs, *kernel)``, of which only shape and layout count.
        gradient: of the loss by the convolution's output, ``(samples, outputs, *positions)``.
        geometry: stride and padding.
    """
    (down, right), (above, aside) = geometry
    outputs, inputs, height, width = weight.shape
    found = torch.empty_like(weight)
    errors = gradient.permute(1, 2, 3, 0).reshape(outputs, -1)
    # So many channels at a time that their patches are not larger than the images. How many does not depend on the
    # batch: a trace has the same operators at every size.
    step = max(1, inputs // (height * width))
    for first in range(0, inputs, step):
        # The samples are innermost, so that copies run over long stretches and one product serves the whole batch.
        chosen = images[:, first : first + step].permute(1, 2, 3, 0)
        padded = nn.functional.pad(chosen, (0, 0, aside, aside, above, above))
        windows = padded.unfold(1, height, down).unfold(2, width, right)  # channels, *positions, samples, *kernel
        if found.is_contiguous():
            patches = windows.permute(0, 4, 5, 1, 2, 3).reshape(-1, errors.shape[1])
            last = first * height * width + len(patches)
            torch.mm(errors, patches.T, out=found.view(outputs, -1)[:, first * height * width : last])
        else:
            patches = windows.permute(4, 5, 0, 1, 2, 3).reshape(-1, errors.shape[1])
            product = torch.empty((outputs, len(patches)), device=weight.device)
            torch.mm(errors, patches.T, out=product)  # by this name a trace knows that it takes buffers for good
            found[:, first : first + step].copy_(product.view(outputs, height, width, -1).permute(0, 3, 1, 2))
    return found
