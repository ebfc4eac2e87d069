"""How the learning rate of a block goes over its training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuroflux_fl.block_training import TrainSettings


def rate_share(settings: TrainSettings, epochs_done: float) -> float:
    """Share of the block's learning rate: linear warm-up, then a half cosine down to ``final_rate_share``."""
    progress = min(1.0, epochs_done / settings.epochs)
    if progress < settings.warmup_share:
        return max(0.02, progress / settings.warmup_share)
    falling = (progress - settings.warmup_share) / (1 - settings.warmup_share)
    return settings.final_rate_share + (1 - settings.final_rate_share) * 0.5 * (1 + math.cos(math.pi * falling))
