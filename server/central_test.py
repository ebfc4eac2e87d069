"""Test accuracy on the server, where it has the data: only for reports, never for a decision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from neuroflux_fl.activation_cache import ActivationCache
from neuroflux_fl.activation_flow import ActivationFlow
from neuroflux_fl.data import ImageData
from neuroflux_fl.evaluation import score_exits
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.sample_source import ImageSource
from neuroflux_fl.unit_store import UnitStore


class CentralTest:
    """Scores exits on a data set's test split; keeps the frozen prefix's activations from round to round."""

    def __init__(self, network: LocalNetwork, data: ImageData) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="neuroflux-test-")
        device = torch.device("cpu")
        self._store = UnitStore(Path(self._folder.name) / "weights", network)
        self._cache = ActivationCache(Path(self._folder.name) / "cache", precision="float32")
        images = ImageSource(
            data.test, mean=data.mean, std=data.std, horizontal_flip=False, padding=0, seed=0, device=device
        )
        self._flow = ActivationFlow(images, self._store, self._cache, views=1, memory_bytes=None, device=device)

    def __call__(self, arrays: dict[int, NDArray[np.float32]], first_unit: int, last_unit: int) -> dict[int, float]:
        """Accuracy of exits ``first_unit`` to ``last_unit`` of packed ``arrays``, by unit."""
        for unit in range(last_unit + 1):
            self._store.write(unit, arrays[unit])
        scores = score_exits(self._flow, self._cache, first_unit=first_unit, last_unit=last_unit)
        self._cache.keep_only(self._flow.keys(first_unit) if first_unit else [])
        return {unit: score.accuracy for unit, score in scores.items()}

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()
