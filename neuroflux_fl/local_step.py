"""One training step of one window against the head at its end: the inner loop of everything, baselines included."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroflux_fl.checkpointing import run_units
from neuroflux_fl.compute import PLAIN_COMPUTE, ComputeSettings
from neuroflux_fl.errors import UsageError

_SIMILARITY_SIDE = 8
_SMALLEST_VARIANCE = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Stochastic gradient descent with momentum; the learning rate belongs to the block."""

    momentum: float = 0.9
    weight_decay: float = 5e-4
    similarity: float = 0.0
    """Weight of the similarity loss beside cross-entropy; for local losses, not for backpropagation."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise UsageError(f"Momentum {self.momentum} is not allowed: give a number from 0 up to, not including, 1.")
        if not self.weight_decay >= 0:
            raise UsageError(f"Weight decay {self.weight_decay} is negative: give 0 or more.")
        if not 0 <= self.similarity < math.inf:
            raise UsageError(f"Similarity {self.similarity} is not allowed: give 0 or more, and a finite number.")


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
    similarity: float = 0.0,
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
        similarity: weight of ``similarity_loss`` on the window's output.

    Returns:
        The detached output ``(batch, channels, height, width)`` and the cross-entropy, a detached scalar.
    """
    outputs, loss = add_gradients(
        units, head, inputs, labels, compute=compute, checkpoints=checkpoints, similarity=similarity
    )
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
    similarity: float = 0.0,
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``train_window`` without the step: gradients of ``share`` times the loss are added to those that are there."""
    with compute.running(inputs.device):
        outputs = run_units(units, inputs.detach(), checkpoints)
        scores = head(outputs)
    loss = nn.functional.cross_entropy(scores.float(), labels)
    total = loss + similarity * similarity_loss(outputs, labels, scores.shape[1]) if similarity else loss
    outputs = outputs.detach()
    (total * share if share != 1.0 else total).backward()  # type: ignore[no-untyped-call]
    return outputs, loss.detach()


def apply_gradients(optimizer: torch.optim.Optimizer) -> None:
    """One step; gradients are then gone."""
    optimizer.step()
    # Gradients are dropped, not zeroed: a gradient that is zero but present would still move momentum and decay.
    optimizer.zero_grad(set_to_none=True)


def similarity_loss(outputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean squared difference between the cosine similarities of samples' features and those of their labels.

    From Nokland and Eidnes 2019 (arXiv 1901.06656), there with a convolution of its own before the features, here
    directly on the output: a channel's feature is its standard deviation over the map, which is averaged down to at
    most 8x8 first, for the deviation of a large map is slow.

    Args:
        outputs: ``(batch, channels, height, width)``.
        labels: ``(batch,)`` class numbers.
        classes: number of classes.
    """
    height, width = outputs.shape[2:]
    if max(height, width) > _SIMILARITY_SIDE:
        outputs = nn.functional.adaptive_avg_pool2d(
            outputs, (min(height, _SIMILARITY_SIDE), min(width, _SIMILARITY_SIDE))
        )
    maps = outputs.float().flatten(2)
    features = _deviations(maps) if maps.shape[2] > 1 else maps.squeeze(2)
    features = nn.functional.normalize(features - features.mean(dim=1, keepdim=True), dim=1)
    # Cosine similarities of one-hot labels, centred likewise.
    wanted = torch.where(labels[:, None] == labels, 1.0, -1.0 / (classes - 1))
    return nn.functional.mse_loss(features @ features.T, wanted)


def _deviations(maps: Tensor) -> Tensor:
    """Standard deviation over the last dimension, in a fifth of ``torch.std``'s time on a CPU; of an even map no
    gradient."""
    squares = (maps - maps.mean(dim=2, keepdim=True)).square().sum(dim=2)
    return (squares / (maps.shape[2] - 1)).clamp_min(_SMALLEST_VARIANCE).sqrt()
