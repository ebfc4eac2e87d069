"""Carries a data set through the frozen prefix: gives the inputs of any cut, from the cache or by running units."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuroflux_fl.activation_cache import ActivationCache, CachedActivations, CacheKey
from neuroflux_fl.compute import PLAIN_COMPUTE, ComputeSettings
from neuroflux_fl.convolution_patches import SMALLEST_BYTES
from neuroflux_fl.frugal_convolution import make_frugal
from neuroflux_fl.heads import unit_activation_bytes
from neuroflux_fl.local_network import UnitWithHead
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.sample_source import CachedSource, ImageSource, RecomputedSource, SampleSource
from neuroflux_fl.sizes import MIB
from neuroflux_fl.unit_store import UnitStore

_LARGEST_PIECE = 256
_GROUP_SHARE = 4


class ActivationFlow:
    """One data set, one store of weights, one cache.

    Running forward is kept small: units are loaded in groups and samples go through in pieces, so that weights and
    activations together stay well under ``memory_bytes``.
    """

    def __init__(
        self,
        images: ImageSource,
        store: UnitStore,
        cache: ActivationCache,
        *,
        views: int,
        memory_bytes: int | None,
        device: torch.device,
        compute: ComputeSettings = PLAIN_COMPUTE,
    ) -> None:
        self.compute = compute
        self._images = images
        self._store = store
        self._cache = cache
        self._views = views
        self._memory_bytes = memory_bytes or 512 * MIB
        self._device = device
        self._data_version = images.version()

    def __len__(self) -> int:
        return len(self._images)

    def keys(self, cut: int) -> list[CacheKey]:
        """Keys of all views at ``cut``, for the weights now in the store."""
        version = self._store.prefix_version(cut)
        return [
            CacheKey(prefix_version=version, data_version=self._data_version, view=view) for view in range(self._views)
        ]

    def source_at(self, cut: int, *, known: int = 0, wanted: Collection[int] | None = None) -> SampleSource:
        """Inputs of unit ``cut``: the images at cut 0, else cached activations, else the prefix run for every batch.

        Args:
            cut: number of units before.
            known: an earlier cut whose activations are likely in the cache; running starts there.
            wanted: the views that will be read; by default all.
        """
        if cut == 0:
            return self._images
        stored: dict[int, CachedActivations] = {}
        for key in self.keys(cut):
            if wanted is not None and key.view not in wanted:
                continue
            entry = self._cache.find(key) or self._run(known, cut, key.view)
            if entry is None:
                return RecomputedSource(self._images, self._views, lambda value: self.forward(value, 0, cut))
            stored[key.view] = entry
        return CachedSource(stored, self._views, self._images.labels, self._device)

    def forward(self, value: Tensor, first_unit: int, end: int) -> Tensor:
        """Eval-mode output of units ``first_unit`` to ``end - 1`` for a batch, group by group and piece by piece."""
        for group in self._groups(first_unit, end):
            modules = [self.load(unit).unit for unit in group]
            piece = self.piece(group)
            with torch.no_grad(), self.compute.running(self._device):
                outputs = []
                for part in torch.split(value, piece):
                    part = self.compute.place(part)
                    for module in modules:
                        part = module(part)
                    outputs.append(part)
            del modules
            value = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
            outputs.clear()
        return value

    def pieces(self, source: SampleSource, view: int, group: list[int]) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Outputs of the units of ``group`` over a whole view in order, with the indices of each piece."""
        modules = [self.load(unit).unit for unit in group]
        for indices in split_in_order(len(self), self.piece(group)):
            with torch.no_grad(), self.compute.running(self._device):
                value = self.compute.place(source.read(indices, view))
                for module in modules:
                    value = module(value)
            yield value, indices

    def groups(self, first_unit: int, end: int) -> list[list[int]]:
        """Consecutive units whose weights fit a quarter of the memory together; a large unit stands alone."""
        return list(self._groups(first_unit, end))

    def _run(self, start: int, cut: int, view: int) -> CachedActivations | None:
        """Write one view at ``cut``, by way of temporary entries between groups; from ``start`` if that is cached."""
        source: SampleSource = self._images
        entry = self._cache.find(self.keys(start)[view]) if start else None
        if entry is not None:
            source = self._one_view(entry)
        else:
            start = 0
        previous: CacheKey | None = None
        entry = None
        for group in self._groups(start, cut):
            key = self.keys(group[-1] + 1)[view]
            shape = self._store.network.chain.output_shapes[group[-1]]
            pieces = (value for value, _ in self.pieces(source, view, group))
            entry = self._cache.write(key, shape, len(self), pieces)
            if previous is not None:
                self._cache.remove_all([previous])
            if entry is None:
                return None
            previous = key
            source = self._one_view(entry)
        return entry

    def _one_view(self, entry: CachedActivations) -> CachedSource:
        """A source that reads ``entry`` whatever view is asked for."""
        return CachedSource({0: entry}, 1, self._images.labels, self._device)

    def _groups(self, first_unit: int, end: int) -> Iterator[list[int]]:
        group: list[int] = []
        held = 0
        for unit in range(first_unit, end):
            weights = self._weight_bytes(unit)
            if group and held + weights > self._memory_bytes / _GROUP_SHARE:
                yield group
                group, held = [], 0
            group.append(unit)
            held += weights
        if group:
            yield group

    def piece(self, group: list[int]) -> int:
        """Samples that go through the units of ``group`` at once."""
        largest = max(unit_activation_bytes(self._store.network.chain, unit) for unit in group)
        # The kernels may copy weights, and a layer's input and output beside them, hence the 2 and the 4.
        left = max(self._memory_bytes / _GROUP_SHARE, self._memory_bytes - 2 * sum(map(self._weight_bytes, group)))
        return max(1, min(_LARGEST_PIECE, int(left / (4 * largest))))

    def _weight_bytes(self, unit: int) -> int:
        return 4 * self._store.network.layout(unit).size_without_head

    def load(self, unit: int, *, with_head: bool = False) -> UnitWithHead:
        """A unit to be run forward, in eval mode."""
        return self._store.load(unit, self._device, with_head=with_head, prepare=self._prepare).eval()

    def _prepare(self, pair: torch.nn.Module) -> None:
        self.compute.arrange(pair)
        # Of large weights the usual kernel makes a reordered copy.
        smallest = max(SMALLEST_BYTES, self._memory_bytes // _GROUP_SHARE)
        make_frugal(pair, OptimizerSettings(), smallest_bytes=smallest)


def split_in_order(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Indices 0 to ``count - 1`` in pieces of ``size``."""
    for start in range(0, count, size):
        yield np.arange(start, min(count, start + size))
