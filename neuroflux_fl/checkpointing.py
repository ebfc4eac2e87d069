"""Run units with activation checkpointing: keep a few activations, compute the others again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_units(units: Sequence[nn.Module], inputs: Tensor, checkpoints: Sequence[int] = ()) -> Tensor:
    """Output of ``units`` for ``inputs``, ``(batch, channels, height, width)``.

    Args:
        units: in order.
        inputs: of the first unit.
        checkpoints: positions in ``units``, after 0, whose inputs are kept. The last piece is run as usual: its
            activations are needed at once.
    """
    values = inputs
    *again, last = pairwise((0, *checkpoints, len(units)))
    for start, end in again:
        piece = nn.Sequential(*units[start:end])
        values = checkpoint(piece, values, use_reentrant=False, context_fn=partial(_contexts, piece))
    for unit in units[slice(*last)]:
        values = unit(values)
    return values


def _contexts(piece: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(piece)


@contextmanager
def _statistics_kept(piece: nn.Module) -> Iterator[None]:
    """Running means and variances do not move: one batch must count once, though it passes twice."""
    norms = [(norm, norm.momentum) for norm in piece.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
