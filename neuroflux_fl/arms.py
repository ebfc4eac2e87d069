"""The methods that are compared: what each may choose from under a budget, and the smallest budget that it runs in.

A plan of any method is a ``Plan``: the same code trains them all, counts their memory and takes their time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate

from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.errors import UsageError
from neuroflux_fl.heads import HeadSettings, unit_activation_bytes
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.models import build_chain
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.planning import PlannerSettings, block_peak_bytes, full_budget
from neuroflux_fl.profiling import NetworkProfile, WindowProfile, profile_network, trace_window
from neuroflux_fl.window_step import WindowStep

NEUROFLUX, CLASSIC = "neuroflux", "classic"
ARMS = {
    NEUROFLUX: "NeuroFlux: blocks, each with its own batch size, and a cache between them",
    "backprop": "backpropagation",
    "backprop-checkpoints": "backpropagation that computes activations again instead of keeping them",
    "backprop-micro": "backpropagation that adds up the gradients of micro-batches",
    "backprop-both": "backpropagation with checkpoints and micro-batches",
    CLASSIC: "classic local learning: every unit on its own, heads of 256 filters, one batch size, no cache",
}
CLASSIC_HEADS = HeadSettings(kind="conv", rule="fixed", filters=256)
ACCUMULATED_BATCH = 64
"""Samples that one optimizer step is made from where micro-batches are used."""
_SEGMENTS = range(2, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSetting:
    """What all arms of a comparison have alike.

    Raises:
        UsageError: a method, model or precision that is not known.
    """

    model: str = "vgg16"
    image_shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    width: float = 1.0
    norm: str = "batch"
    head: HeadSettings = field(default_factory=HeadSettings)
    """Of NeuroFlux; classic local learning has its own."""
    planner: PlannerSettings = field(default_factory=lambda: PlannerSettings(maximum_batch=128))
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    similarity: float = 5.0
    """Weight of the similarity loss in NeuroFlux's local losses; the other methods have none."""
    precision: str = "float32"

    def layouts(self) -> tuple[ComputeSettings, ComputeSettings]:
        """The settings that every arm tries: contiguous and channels last."""
        plain = ComputeSettings(precision=self.precision)
        return plain, replace(plain, channels_last=True)

    def network(self, arm: str) -> LocalNetwork:
        """The model with the heads that the arm uses."""
        chain = build_chain(
            self.model, image_shape=self.image_shape, classes=self.classes, norm=self.norm, width=self.width
        )
        return build_network(chain, CLASSIC_HEADS if arm == CLASSIC else self.head, self.norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A block without its batch size."""

    windows: tuple[Window, ...]
    accumulates: bool = False
    """Whether a step adds up the gradients of micro-batches."""

    @property
    def unit_count(self) -> int:
        """Of all its windows."""
        return sum(window.reach for window in self.windows)


class Arm:
    """One method with one network: everything that can be said of it without running it. Traces are made once.

    Raises:
        UsageError: the name is not of ``ARMS``.
    """

    def __init__(self, name: str, setting: ArmSetting, speed: MachineSpeed | None = None) -> None:
        if name not in ARMS:
            raise UsageError(f"Method {name!r} is unknown: choose one of {', '.join(ARMS)}.")
        self.name = name
        self.setting = setting
        self.network = setting.network(name)
        similarity = setting.similarity if name == NEUROFLUX else 0.0
        self.optimizer = replace(setting.optimizer, similarity=similarity)
        self.speed = speed or MachineSpeed()
        self.traced = cache(self._trace)
        self.profile = cache(self._profile)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """What the arm may train as one block; NeuroFlux's blocks are the planner's business."""
        last = len(self.network) - 1
        if self.name == NEUROFLUX:
            return ()
        if self.name == CLASSIC:
            return (Shape(windows=tuple(Window(first_unit=unit, last_unit=unit) for unit in range(last + 1))),)
        accumulates = self.name in ("backprop-micro", "backprop-both")
        checkpoints: list[tuple[int, ...]] = [()]
        if self.name in ("backprop-checkpoints", "backprop-both"):
            unit_bytes = [unit_activation_bytes(self.network.chain, unit) for unit in range(last + 1)]
            checkpoints = [even_cuts(unit_bytes, segments) for segments in _SEGMENTS if segments <= last + 1]
        return tuple(
            Shape(windows=(Window(first_unit=0, last_unit=last, checkpoints=cuts),), accumulates=accumulates)
            for cuts in checkpoints
        )

    def smallest_budget(self, compute: ComputeSettings) -> int:
        """The smallest budget that trains the whole network."""
        planner = self.setting.planner
        if self.name == NEUROFLUX:
            return full_budget(self.profile(compute), planner)
        return min(self.needed_budget(shape, compute, planner.minimum_batch) for shape in self.shapes)

    def needed_budget(self, shape: Shape, compute: ComputeSettings, batch: int) -> int:
        """The smallest budget for a step with ``batch`` samples in memory."""
        return self.setting.planner.needed_budget(self._peak_bytes(shape, compute, batch), shape.unit_count)

    def predicted_peak(self, shape: Shape, compute: ComputeSettings, batch: int) -> int:
        """Of a step with ``batch`` samples in memory, margins included."""
        return self.setting.planner.predicted_peak(self._peak_bytes(shape, compute, batch), shape.unit_count)

    def largest_batch(self, shape: Shape, compute: ComputeSettings, budget_bytes: int | None) -> int | None:
        """The most samples in memory at once; None where even the fewest do not fit."""
        planner = self.setting.planner
        most = min(planner.maximum_batch, ACCUMULATED_BATCH // 2) if shape.accumulates else planner.maximum_batch
        sizes = range(planner.minimum_batch, most + 1)
        if budget_bytes is not None:
            fitting = bisect_right(sizes, budget_bytes, key=lambda batch: self.needed_budget(shape, compute, batch))
            sizes = sizes[:fitting]
        if not sizes:
            return None
        # Equal pieces of a batch of 64: the largest power of two.
        return 2 ** (sizes[-1].bit_length() - 1) if shape.accumulates else sizes[-1]

    def predicted_seconds(self, shape: Shape, compute: ComputeSettings, batch: int) -> float:
        """Seconds for one sample, by the machine's arithmetic alone."""
        profiles = self._profiles(shape, compute)
        return sum(profile.seconds_per_step(batch, self.speed) for profile in profiles) / batch

    def flops(self, shape: Shape, compute: ComputeSettings) -> float:
        """Arithmetic for one sample, what is computed again included."""
        return sum(profile.flops.per_sample for profile in self._profiles(shape, compute))

    def step(self, window: Window, compute: ComputeSettings, accumulates: bool) -> WindowStep:
        """A step of one window, to be traced or run."""
        return WindowStep(
            network=self.network,
            window=window,
            optimizer=self.optimizer,
            compute=compute,
            accumulate=accumulates,
        )

    def plan(
        self,
        shape: Shape,
        compute: ComputeSettings,
        batch: int,
        budget_bytes: int | None,
        seconds_per_sample: float | None = None,
    ) -> Plan:
        """The shape with ``batch`` samples in memory, as a plan of one block."""
        batch_size = ACCUMULATED_BATCH if shape.accumulates else batch
        if seconds_per_sample is None:
            seconds_per_sample = self.predicted_seconds(shape, compute, batch)
        block = Block(
            windows=shape.windows,
            batch_size=batch_size,
            micro_batch=batch if shape.accumulates else None,
            learning_rate=self.setting.planner.learning_rate_at(batch_size),
            predicted_peak_bytes=self.predicted_peak(shape, compute, batch),
            predicted_seconds_per_sample=seconds_per_sample,
        )
        return Plan(budget_bytes=budget_bytes, blocks=(block,), untrained_units=())

    def _peak_bytes(self, shape: Shape, compute: ComputeSettings, batch: int) -> int:
        return block_peak_bytes(self._profiles(shape, compute), batch)

    def _profiles(self, shape: Shape, compute: ComputeSettings) -> list[WindowProfile]:
        return [self.traced(window, compute, shape.accumulates) for window in shape.windows]

    def _trace(self, window: Window, compute: ComputeSettings, accumulates: bool) -> WindowProfile:
        return trace_window(self.step(window, compute, accumulates))

    def _profile(self, compute: ComputeSettings) -> NetworkProfile:
        return profile_network(
            self.network,
            speed=self.speed,
            reach=self.setting.planner.reach,
            optimizer=self.optimizer,
            compute=compute,
        )


def even_cuts(sizes: Sequence[int], segments: int) -> tuple[int, ...]:
    """Where ``segments`` runs of ``sizes`` begin, after the first, so that the largest sum of a run is least."""
    sums = [0, *accumulate(sizes)]

    @cache
    def best(start: int, runs: int) -> tuple[int, tuple[int, ...]]:
        if runs == 1:
            return sums[-1] - sums[start], ()
        options = []
        for end in range(start + 1, len(sizes) - runs + 2):
            largest, cuts = best(end, runs - 1)
            options.append((max(sums[end] - sums[start], largest), (end, *cuts)))
        return min(options)

    return best(0, segments)[1]
