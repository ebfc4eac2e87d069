"""What a device intends to do: a plan is a list of blocks, a block is a list of windows with one batch size."""

from __future__ import annotations

from dataclasses import dataclass

from neuroflux_fl.errors import UsageError

WHOLE, SLICED, SLICED_BFLOAT16 = UPDATES = ("whole", "sliced", "sliced-bfloat16")
"""How large convolutions are updated. ``whole``: by the optimizer, from a whole gradient. ``sliced``: slice by slice
while the gradient is made, so that there is never a whole one. ``sliced-bfloat16``: likewise, with narrow momentum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Consecutive units trained end to end against the head of ``last_unit``. Both ends are included."""

    first_unit: int
    last_unit: int
    checkpoints: tuple[int, ...] = ()
    """Units, after the first, whose inputs are kept from the forward pass; what lies between two of them is computed
    again in the backward pass. Empty: every activation is kept."""
    updates: str = WHOLE
    """One of ``UPDATES``."""

    def __post_init__(self) -> None:
        inside = all(self.first_unit < unit <= self.last_unit for unit in self.checkpoints)
        if not inside or list(self.checkpoints) != sorted(set(self.checkpoints)):
            raise UsageError(
                f"Checkpoints {self.checkpoints} of the window of units {self.first_unit} to {self.last_unit} are not "
                "allowed: give rising numbers of units after its first one."
            )
        if self.updates not in UPDATES:
            raise UsageError(f"Updates {self.updates!r} are unknown: choose one of {', '.join(UPDATES)}.")
        if self.checkpoints and self.updates != WHOLE:
            raise UsageError(
                f"Updates {self.updates!r} do not go with checkpoints, which would compute again from moved weights: "
                "choose one of the two."
            )

    @property
    def reach(self) -> int:
        """Number of units that one gradient passes through."""
        return self.last_unit - self.first_unit + 1

    @property
    def units(self) -> range:
        """Numbers of its units."""
        return range(self.first_unit, self.last_unit + 1)

    @property
    def checkpoint_positions(self) -> tuple[int, ...]:
        """``checkpoints``, counted from the window's first unit."""
        return tuple(unit - self.first_unit for unit in self.checkpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive windows that are trained together with one batch size."""

    windows: tuple[Window, ...]
    batch_size: int
    """Samples that one optimizer step is made from."""
    learning_rate: float
    predicted_peak_bytes: int
    """Peak of a whole training step: weights, gradients, optimizer state, activations, heads, input, workspace."""
    predicted_seconds_per_sample: float
    """Training time for one sample of one pass, the cache's read and write included."""
    micro_batch: int | None = None
    """Samples in memory at once, where a step adds up the gradients of several such pieces; None: the whole batch."""

    def __post_init__(self) -> None:
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch_size:
            raise UsageError(
                f"Micro-batch {self.micro_batch} is not allowed with batch {self.batch_size}: give 1 to the batch size."
            )
        if self.micro_batch is not None and any(window.updates != WHOLE for window in self.windows):
            raise UsageError(
                "Micro-batches add up whole gradients, which sliced updates never have: choose one of the two."
            )

    @property
    def samples_at_once(self) -> int:
        """Samples in memory: the micro-batch, or the whole batch."""
        return self.micro_batch or self.batch_size

    @property
    def first_unit(self) -> int:
        """Start of the first window: the cut whose activations the block trains from."""
        return self.windows[0].first_unit

    @property
    def last_unit(self) -> int:
        """End of the last window: the unit whose exit the block is for."""
        return self.windows[-1].last_unit

    @property
    def units(self) -> range:
        """Numbers of the units of all its windows."""
        return range(self.first_unit, self.last_unit + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Blocks in the order of the unit chain. Units in no block are run forward only."""

    budget_bytes: int | None
    """None stands for no limit."""
    blocks: tuple[Block, ...]
    untrained_units: tuple[int, ...]
    """Units that do not fit the budget even at the smallest batch; never part of a block."""

    @property
    def predicted_peak_bytes(self) -> int:
        """The highest of the blocks' peaks: blocks are trained one after the other."""
        return max((block.predicted_peak_bytes for block in self.blocks), default=0)

    def block_of(self, unit: int) -> Block | None:
        """The block that trains ``unit``, or None where none does."""
        return next((block for block in self.blocks if unit in block.units), None)
