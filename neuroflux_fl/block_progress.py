"""How far the training of a block is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from neuroflux_fl.plan import Block
from neuroflux_fl.training_monitor import TrainingMonitor

_FIRST_STEPS = 3


@dataclass(slots=True, kw_only=True)
class BlockProgress:
    """Counts of one block's training, and the losses of its last pass; tells the monitor of each."""

    block: Block
    monitor: TrainingMonitor
    batch_size: int
    micro_batch: int | None = None
    """As in the block; None where the whole batch is in memory at once."""
    samples: int = 0
    steps: int = 0
    steps_of_size: int = 0
    """Since samples were last put together in another way."""
    effective_steps: float = 0.0
    retries: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    """Mean loss by the unit at each window's end."""
    _sums: list[Tensor] = field(default_factory=list)
    _batches: int = 0

    @property
    def final_loss(self) -> float:
        """Of the last window; NaN where no step was made."""
        return self.losses.get(self.block.last_unit, math.nan)

    @property
    def samples_at_once(self) -> int:
        """In memory."""
        return self.micro_batch or self.batch_size

    @property
    def is_new_size(self) -> bool:
        """Whether what a step holds is still being found out: the peak of the first few is that of all."""
        return self.steps_of_size <= _FIRST_STEPS

    def begin_epoch(self) -> None:
        """A pass begins."""
        self._sums, self._batches = [], 0
        self.monitor.epoch_began(self.block, self.batch_size)

    def add_step(self, losses: list[Tensor], samples: int, effective: float) -> None:
        """Count a step; ``losses`` has a scalar for each window, ``effective`` its weight."""
        # Added up where they are: to read a loss would make a GPU wait at every step.
        self._sums = losses if not self._sums else [one + other for one, other in zip(self._sums, losses, strict=True)]
        self._batches += 1
        self.samples += samples
        self.steps += 1
        self.steps_of_size += 1
        self.effective_steps += effective
        self.monitor.step(samples)

    def halve_batch(self, smallest: int) -> None:
        """Go on with half of the batch, or of the micro-batch where there is one, but not less than ``smallest``."""
        self.retries += 1
        if self.micro_batch is not None:
            self.micro_batch = max(smallest, self.micro_batch // 2)
        else:
            self.batch_size = max(smallest, self.batch_size // 2)
        self.monitor.batch_halved(self.block, self.batch_size)

    def end_epoch(self) -> None:
        """The pass is over: mean losses become known."""
        units = [window.last_unit for window in self.block.windows]
        self.losses = {unit: float(total) / self._batches for unit, total in zip(units, self._sums, strict=False)}
        self.monitor.epoch_ended(self.block, self.losses)
