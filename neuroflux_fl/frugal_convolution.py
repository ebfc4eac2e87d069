"""Train large convolutions with no gradient and no reordered copy of their weights: weights, momentum, one slice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neuroflux_fl.compute import layout_of
from neuroflux_fl.convolution_patches import SMALLEST_BYTES, Geometry, Patches, can_be_product
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.plan import SLICED, SLICED_BFLOAT16, WHOLE, Window
from neuroflux_fl.small_map_convolution import use_small_maps


class WeightUpdate:
    """Stochastic gradient descent on one weight, applied slice by slice during the backward pass itself.

    The rule is ``torch.optim.SGD``'s: ``velocity = momentum * velocity + gradient + decay * weight``, then ``weight -=
    learning_rate * velocity``. With float32 velocity the product that makes the gradient adds straight into it, so
    that not even a slice of the gradient exists. With bfloat16 velocity a slice is widened, updated, and rounded back.
    """

    def __init__(
        self, settings: OptimizerSettings, *, learning_rate: float = 0.0, momentum_dtype: torch.dtype = torch.float32
    ) -> None:
        self.settings = settings
        self.learning_rate = learning_rate
        """Read at every backward pass: set it before."""
        self.momentum_dtype = momentum_dtype
        self.velocity: Tensor | None = None
        """``(outputs, inputs * kernel)``, made at the first update; None without momentum."""
        self._scratch: Tensor | None = None

    def apply(self, weight: Tensor, columns: slice, errors: Tensor, images: Tensor) -> None:
        """Move ``weight[:, columns]``, whose gradient is ``errors @ images.T``.

        Args:
            weight: ``(outputs, inputs * kernel)``, float32, changed in place.
            columns: the slice to move.
            errors: ``(outputs, positions)``, gradient of the loss by the convolution's output.
            images: ``(width of the slice, positions)``.
        """
        momentum, decay = self.settings.momentum, self.settings.weight_decay
        part = weight[:, columns]
        if momentum == 0:
            _add_product(part, errors, images.T, keep=1 - self.learning_rate * decay, scale=-self.learning_rate)
            return
        if self.velocity is None:
            self.velocity = torch.zeros_like(weight, dtype=self.momentum_dtype)
        kept = self.velocity[:, columns]
        velocity = kept if kept.dtype == weight.dtype else self._widened(kept)
        _add_product(velocity, errors, images.T, keep=momentum)
        velocity.add_(part, alpha=decay)
        part.add_(velocity, alpha=-self.learning_rate)
        if velocity is not kept:
            kept.copy_(velocity)

    def end(self) -> None:
        """Let go of the scratch that the slices of one backward pass share."""
        self._scratch = None

    def _widened(self, kept: Tensor) -> Tensor:
        if self._scratch is None:
            self._scratch = torch.empty_like(kept, dtype=torch.float32)  # the first slice is as wide as any
        return self._scratch[:, : kept.shape[1]].copy_(kept)


class FrugalConv2d(nn.Conv2d):
    """A convolution whose weight moves during ``backward`` and never has a gradient; made by ``make_frugal``.

    One backward pass is one step, so gradients cannot be accumulated over several. Autograd refuses with "modified by
    an inplace operation" where a weight would be used twice in one step. A backward pass that is cut
    short, as by memory that ran out, leaves those weights moved that it had come to. The bias has an ordinary gradient.
    """

    update: WeightUpdate

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = cast(Geometry, (self.stride, self.padding))
        output = _Convolve.apply(input, weight, bias, self.update, geometry)  # type: ignore[no-untyped-call]
        return cast(Tensor, output)


MOMENTUM_DTYPES = {SLICED: torch.float32, SLICED_BFLOAT16: torch.bfloat16}


def make_frugal(
    module: nn.Module,
    settings: OptimizerSettings,
    *,
    smallest_bytes: int = SMALLEST_BYTES,
    momentum_dtype: torch.dtype = torch.float32,
) -> None:
    """Turn, in place, each large enough convolution in ``module`` into a ``FrugalConv2d``.

    Parameters and their names stay, except that a channels_last weight is replaced by one in the usual layout, which
    slices need. An ordinary optimizer may hold all of the module's parameters: it never sees a gradient of these
    weights, so it neither moves them nor keeps state for them.

    Args:
        module: may be a convolution itself.
        settings: momentum and weight decay.
        smallest_bytes: weights below this stay as they are, as do grouped, dilated and not zero-padded convolutions.
        momentum_dtype: float32, or bfloat16 for half the bytes.
    """
    for part in module.modules():
        if type(part) is nn.Conv2d and can_be_product(part, smallest_bytes):
            part.__class__ = FrugalConv2d
            frugal = cast(FrugalConv2d, part)
            if not frugal.weight.is_contiguous():
                usual = frugal.weight.detach().contiguous()
                frugal.weight = nn.Parameter(usual, requires_grad=frugal.weight.requires_grad)
            frugal.update = WeightUpdate(settings, momentum_dtype=momentum_dtype)


def prepare_updates(window: Window, modules: Iterable[nn.Module], settings: OptimizerSettings) -> None:
    """For the modules of a window: ``use_small_maps``, or ``make_frugal`` where its ``updates`` are sliced."""
    for module in modules:
        if window.updates == WHOLE:
            use_small_maps(module)
        else:
            make_frugal(module, settings, momentum_dtype=MOMENTUM_DTYPES[window.updates])


def weight_updates(modules: Iterable[nn.Module]) -> list[WeightUpdate]:
    """Those of all ``FrugalConv2d`` in the modules, to be given a learning rate before each step."""
    return [part.update for module in modules for part in module.modules() if isinstance(part, FrugalConv2d)]


class _Convolve(torch.autograd.Function):
    """Convolution as matrix products over slices of the input channels.

    A product with a slice reads the weight where it lies; the library packs it in pieces that fit its caches, where a
    convolution kernel would make a second, blocked copy of it. Products are of float32 under autocast too: narrow ones
    took 8 MiB of workspace (measured) and were not faster on these few positions.
    """

    @staticmethod
    def forward(
        context: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        update: WeightUpdate,
        geometry: Geometry,
    ) -> Tensor:
        context.save_for_backward(images, weight)
        context.update, context.geometry = update, geometry
        with torch.autocast(images.device.type, enabled=False):
            patches = Patches(images, weight, geometry)
            sums = weight.new_zeros(patches.output_shape).flatten(1)
            if bias is not None:
                sums.add_(bias[:, None])
            matrix = weight.view(len(weight), -1)
            for part in patches.slices():
                _add_product(sums, matrix[:, part.columns], patches.read(part))
            shape = patches.output_shape
            del patches  # before the output is laid out anew, so that the two are not held together
            return _laid_out(sums.view(shape).permute(3, 0, 1, 2), images.dtype, layout_of(images))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = context.saved_tensors
        patches = Patches(images, weight, context.geometry)
        errors = _laid_out(gradient.permute(1, 2, 3, 0), weight.dtype).flatten(1)
        bias_gradient = errors.sum(1) if context.needs_input_grad[2] else None
        image_gradient = torch.empty_like(images) if context.needs_input_grad[0] else None
        matrix = weight.view(len(weight), -1)
        for part in patches.slices():
            if image_gradient is not None:  # from the weights as they were in the forward pass
                torch.mm(matrix[:, part.columns].T, errors, out=patches.buffer(part))
                patches.add_up(part, image_gradient)
            if context.needs_input_grad[1]:
                context.update.apply(matrix, part.columns, errors, patches.read(part))
        context.update.end()
        return image_gradient, None, bias_gradient, None, None


def _laid_out(tensor: Tensor, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A copy that is no view; of a permuted tensor, ``Tensor.to`` may return the tensor itself."""
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device, memory_format=layout).copy_(tensor)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, keep: float = 1, scale: float = 1) -> None:
    """``total = keep * total + scale * left @ right``, in place."""
    torch.addmm(total, left, right, beta=keep, alpha=scale, out=total)
