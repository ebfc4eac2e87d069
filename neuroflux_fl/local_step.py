"""One training step of one window against the head at its end: the inner loop of everything, baselines included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    units: Sequence[nn.Module], head: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward, local loss, backward and step; nothing of the graph survives.

    Args:
        units: the window's units in order, in training mode.
        head: the head of the last of them.
        optimizer: over the parameters of exactly these units and this head.
        inputs: ``(batch, channels, height, width)``, without gradient: no earlier window is reached.
        labels: ``(batch,)`` class numbers.

    Returns:
        The detached output ``(batch, channels, height, width)`` and the loss, a detached scalar.
    """
    outputs = inputs.detach()
    for unit in units:
        outputs = unit(outputs)
    loss = nn.functional.cross_entropy(head(outputs), labels)
    outputs = outputs.detach()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    # Gradients are dropped, not zeroed: a gradient that is zero but present would still move momentum and decay.
    optimizer.zero_grad(set_to_none=True)
    return outputs, loss.detach()
