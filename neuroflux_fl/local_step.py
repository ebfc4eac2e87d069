"""One training step of one window against the head at its end: the inner loop of everything, baselines included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroflux_fl.checkpointing import run_units
from neuroflux_fl.compute import PLAIN_COMPUTE, ComputeSettings
from neuroflux_fl.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Stochastic gradient descent with momentum; the learning rate belongs to the block."""

    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise UsageError(f"Momentum {self.momentum} is not allowed: give a number from 0 up to, not including, 1.")
        if not self.weight_decay >= 0:
            raise UsageError(f"Weight decay {self.weight_decay} is negative: give 0 or more.")


def make_optimizer(
    parameters: Iterable[nn.Parameter], settings: OptimizerSettings, learning_rate: float
) -> torch.optim.SGD:
    """A fresh optimizer, whose state lives exactly as long as the block that it trains.

    The fused kernel applies weight decay without a temporary as large as the weights: 9 MiB less at the peak of a
    late VGG unit.
    """
    return torch.optim.SGD(
        list(parameters),
        lr=learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def train_window(
    units: Sequence[nn.Module],
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    *,
    compute: ComputeSettings = PLAIN_COMPUTE,
    checkpoints: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Forward, local loss, backward and step; nothing of the graph survives.

    Args:
        units: the window's units in order, in training mode.
        head: the head of the last of them.
        optimizer: over the parameters of exactly these units and this head.
        inputs: ``(batch, channels, height, width)``, without gradient: no earlier window is reached.
        labels: ``(batch,)`` class numbers.
        compute: precision and layout.
        checkpoints: positions in ``units`` from which on activations are computed again (``Window.checkpoints``,
            counted from the window's first unit).

    Returns:
        The detached output ``(batch, channels, height, width)`` and the loss, a detached scalar.
    """
    outputs, loss = add_gradients(units, head, inputs, labels, compute=compute, checkpoints=checkpoints)
    apply_gradients(optimizer)
    return outputs, loss


def add_gradients(
    units: Sequence[nn.Module],
    head: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    compute: ComputeSettings = PLAIN_COMPUTE,
    checkpoints: Sequence[int] = (),
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``train_window`` without the step: gradients of ``share`` times the loss are added to those that are there."""
    with compute.running(inputs.device):
        outputs = run_units(units, inputs.detach(), checkpoints)
        scores = head(outputs)
    loss = nn.functional.cross_entropy(scores.float(), labels)
    outputs = outputs.detach()
    (loss * share if share != 1.0 else loss).backward()  # type: ignore[no-untyped-call]
    return outputs, loss.detach()


def apply_gradients(optimizer: torch.optim.Optimizer) -> None:
    """One step; gradients are then gone."""
    optimizer.step()
    # Gradients are dropped, not zeroed: a gradient that is zero but present would still move momentum and decay.
    optimizer.zero_grad(set_to_none=True)
