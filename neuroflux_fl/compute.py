"""In which numbers and in which memory layout a device computes: levers that every method of training has alike."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroflux_fl.errors import UsageError

COMPUTE_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSettings:
    """Weights, gradients and optimizer state are float32 in any case."""

    precision: str = "float32"
    """What convolutions and activations are computed in: float32, bfloat16 or, on a GPU, float16 (mixed precision)."""
    channels_last: bool = False
    """Tensors lie in memory as (batch, height, width, channels); their shapes stay as they are."""

    def __post_init__(self) -> None:
        if self.precision not in COMPUTE_PRECISIONS:
            raise UsageError(f"Precision {self.precision!r} is unknown: choose one of {', '.join(COMPUTE_PRECISIONS)}.")

    @property
    def mixed(self) -> bool:
        """Whether activations are narrower than the weights."""
        return self.precision != "float32"

    @property
    def emulated(self) -> bool:
        """Whether oneDNN finds no arithmetic for the precision on this processor: it then takes ten times as long."""
        asked = self.precision == "bfloat16" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return asked and not torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def running(self, device: torch.device) -> AbstractContextManager[object]:
        """Around forward passes whose weights do not change within: narrow copies of them are kept inside.

        Raises:
            UsageError: float16 on a CPU, whose kernels have no use for it.
        """
        if self.precision == "float16" and device.type == "cpu":
            raise UsageError("Precision 'float16' is for GPUs: choose bfloat16 or float32 on a CPU.")
        return torch.autocast(device.type, COMPUTE_PRECISIONS[self.precision], enabled=self.mixed)

    def arrange(self, module: nn.Module) -> nn.Module:
        """The module itself, its convolutions' weights laid out as the settings say."""
        if self.channels_last:
            # Module.to would do, but not on the fake tensors of a trace.
            for part in module.modules():
                for name, weight in part.named_parameters(recurse=False):
                    if weight.dim() == 4:
                        laid_out = weight.detach().contiguous(memory_format=torch.channels_last)
                        setattr(part, name, nn.Parameter(laid_out, requires_grad=weight.requires_grad))
        return module

    def place(self, values: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` in the precision and layout that units want, copied only if need be."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return values.to(dtype=COMPUTE_PRECISIONS[self.precision], memory_format=layout)


def layout_of(tensor: Tensor) -> torch.memory_format:
    """channels_last only where it is not the usual layout as well, as with one channel or one pixel."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format


PLAIN_COMPUTE = ComputeSettings()
"""float32 in PyTorch's usual layout."""
