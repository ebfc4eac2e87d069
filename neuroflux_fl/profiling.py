"""What training costs: for every window, memory and time as functions of the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.convolution_patches import can_be_product
from neuroflux_fl.device_memory import PeakMeter, is_out_of_memory, run_keeping
from neuroflux_fl.heads import head_filters
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.memory_allocator import FreedMemory
from neuroflux_fl.plan import Window
from neuroflux_fl.sizes import MIB
from neuroflux_fl.tracing import trace_step
from neuroflux_fl.unit_chain import UnitChain, empty_copy
from neuroflux_fl.window_step import WindowStep, typical_seconds

_TRACED_BATCHES = (4, 12)
_NARROW_KERNEL_BYTES = 3 * MIB
"""What kernels of narrow numbers keep on a CPU, at every moment and batch size; fitted on resident peaks."""


@dataclass(frozen=True, slots=True)
class Line:
    """``fixed + per_sample * batch``."""

    fixed: float
    per_sample: float

    def at(self, batch_size: int) -> float:
        """Value at a batch size."""
        return self.fixed + self.per_sample * batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowProfile:
    """Cost of one training step of a window with its head."""

    window: Window
    resident_bytes: int
    """Weights, buffers and optimizer state: what stays between steps."""
    memory: tuple[Line, ...]
    """The peak of a step is the highest of these lines: each is a moment that is the peak for some batch sizes."""
    flops: Line
    traffic_bytes: Line
    operators: int
    timings: tuple[tuple[int, float], ...] = ()
    """Measured (batch size, seconds a step), by batch size; empty in a traced profile."""

    @property
    def fixed_bytes(self) -> int:
        """Peak bytes at batch 0, the highest over all moments."""
        return int(max(line.fixed for line in self.memory))

    @property
    def bytes_per_sample(self) -> int:
        """Slope of the peak at large batches."""
        return int(max(line.per_sample for line in self.memory))

    def peak_bytes(self, batch_size: int) -> int:
        """Peak bytes of a whole step."""
        return math.ceil(max(line.at(batch_size) for line in self.memory))

    def largest_batch(self, available_bytes: float) -> int:
        """The largest batch whose step fits; 0 where not even one sample does."""
        limits = []
        for line in self.memory:
            if line.fixed > available_bytes:
                return 0
            if line.per_sample > 0:
                limits.append(int((available_bytes - line.fixed) // line.per_sample))
        return min(limits)

    def seconds_per_step(self, batch_size: int, speed: MachineSpeed) -> float:
        """Measured seconds, interpolated for each sample between batch sizes, or else the machine's arithmetic."""
        if not self.timings:
            return speed.seconds(self.flops.at(batch_size), self.traffic_bytes.at(batch_size), self.operators)
        below = max((t for t in self.timings if t[0] <= batch_size), default=self.timings[0])
        above = min((t for t in self.timings if t[0] >= batch_size), default=self.timings[-1])
        low, high = below[1] / below[0], above[1] / above[0]
        share = 0.0 if above[0] == below[0] else (batch_size - below[0]) / (above[0] - below[0])
        return batch_size * (low + share * (high - low))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCost:
    """What a unit costs outside training, for one sample."""

    name: str
    head_filters: int
    forward_flops: float
    input_gradient_flops: float
    """What a gradient with respect to the unit's input adds to training it."""
    output_numbers: int


class WindowTable(dict[Window, WindowProfile]):
    """Profiles by window; one that is not there yet is traced when it is first asked for."""

    def __init__(self, trace: Callable[[Window], WindowProfile], known: Mapping[Window, WindowProfile]) -> None:
        super().__init__(known)
        self.trace = trace

    def __missing__(self, window: Window) -> WindowProfile:
        return self.setdefault(window, self.trace(window))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkProfile:
    """Profiles of all windows that a planner may use, with the speed of the machine."""

    units: tuple[UnitCost, ...]
    windows: dict[Window, WindowProfile]
    whole_window: Window
    """All units: backpropagation."""
    speed: MachineSpeed
    sliceable_units: frozenset[int] = frozenset()
    """Units with a convolution so large that sliced updates save memory; ``windows`` knows them so updated, too."""

    @property
    def whole(self) -> WindowProfile:
        """The network as one window."""
        return self.windows[self.whole_window]

    def unit(self, unit: int) -> WindowProfile:
        """The window that is this unit alone."""
        return self.windows[Window(first_unit=unit, last_unit=unit)]


def profile_network(
    network: LocalNetwork,
    *,
    speed: MachineSpeed,
    reach: int = 1,
    optimizer: OptimizerSettings | None = None,
    compute: ComputeSettings | None = None,
) -> NetworkProfile:
    """Trace every window of up to ``reach`` units without running anything on the device.

    Any other window, with reach 0 every one, is traced when a planner first asks for it.

    Returns:
        Memory lines of every moment's peak, arithmetic and traffic. Time follows from ``speed``.
    """
    optimizer, compute = optimizer or OptimizerSettings(), compute or ComputeSettings()
    count = len(network)
    windows = [
        Window(first_unit=first, last_unit=last)
        for first in range(count)
        for last in range(first, min(count, first + reach))
    ]
    alike: dict[Hashable, WindowProfile] = {}

    def trace(window: Window) -> WindowProfile:
        step = WindowStep(network=network, window=window, optimizer=optimizer, compute=compute)
        key = _description(step)
        if key not in alike:
            alike[key] = trace_window(step)
        return replace(alike[key], window=window)

    units = []
    for unit in range(count):
        channels, height, width = network.chain.output_shapes[unit]
        units.append(
            UnitCost(
                name=network.chain.unit_names[unit],
                head_filters=head_filters(network.chain, unit, network.head_settings),
                forward_flops=_forward_flops(network.chain, unit),
                input_gradient_flops=_input_gradient_flops(network.chain, unit),
                output_numbers=channels * height * width,
            )
        )
    return NetworkProfile(
        units=tuple(units),
        windows=WindowTable(trace, {window: trace(window) for window in windows}),
        whole_window=Window(first_unit=0, last_unit=count - 1),
        speed=speed,
        sliceable_units=frozenset(unit for unit in range(count) if _is_sliceable(network.chain.units[unit])),
    )


def _description(step: WindowStep) -> Hashable:
    """Equal for windows that cost the same: deep networks repeat themselves, and a trace takes its time."""
    window = step.window
    modules = step.modules
    known = all(type(part).__module__.startswith(("torch.", "torchvision.")) for m in modules for part in m.modules())
    return (repr(modules), step.input_shape, window.updates, window.checkpoint_positions) if known else window


def _forward_flops(chain: UnitChain, unit: int) -> float:
    """Operations for one sample."""
    inputs = torch.empty((1, *chain.input_shapes[unit]), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        empty_copy(chain.units[unit]).eval()(inputs)
    return float(counter.get_total_flops())


def _input_gradient_flops(chain: UnitChain, unit: int) -> float:
    """Operations for one sample."""

    def training_flops(input_gradient: bool) -> float:
        inputs = torch.empty((1, *chain.input_shapes[unit]), device="meta", requires_grad=input_gradient)
        with FlopCounterMode(display=False) as counter:
            empty_copy(chain.units[unit]).eval()(inputs).sum().backward()
        return float(counter.get_total_flops())

    return training_flops(True) - training_flops(False)


def _is_sliceable(module: nn.Module) -> bool:
    return any(type(part) is nn.Conv2d and can_be_product(part) for part in module.modules())


def trace_window(step: WindowStep) -> WindowProfile:
    """Memory, arithmetic and traffic of a step at two batch sizes, joined by lines moment by moment."""
    if step.compute.precision == "float16":
        # Fake tensors are on the CPU, which computes in the other narrow type: as wide, so as large.
        step = replace(step, compute=replace(step.compute, precision="bfloat16"))
    small, large = _TRACED_BATCHES
    low = trace_step(lambda: step.build(small, torch.device("cpu")))
    high = trace_step(lambda: step.build(large, torch.device("cpu")))

    def line(at_small: float, at_large: float) -> Line:
        slope = (at_large - at_small) / (large - small)
        return Line(at_small - slope * small, slope)

    kept = _NARROW_KERNEL_BYTES if step.compute.mixed else 0
    return WindowProfile(
        window=step.window,
        resident_bytes=step.resident_bytes(),
        memory=_upper_envelope(line(a + kept, b + kept) for a, b in zip(low.live_bytes, high.live_bytes, strict=True)),
        flops=line(low.flops, high.flops),
        traffic_bytes=line(low.traffic_bytes, high.traffic_bytes),
        operators=low.operators,
    )


def measure_profile(
    network: LocalNetwork,
    traced: NetworkProfile,
    *,
    windows: Iterable[Window],
    available_bytes: float,
    budget_bytes: int | None = None,
    maximum_batch: int,
    minimum_batch: int,
    device: torch.device,
    optimizer: OptimizerSettings | None = None,
    compute: ComputeSettings | None = None,
) -> NetworkProfile:
    """Run real steps of each window at up to three batch sizes, check the memory lines on them, and keep the times.

    The batch sizes stay inside ``available_bytes`` by the traced lines. Where the device holds more than the trace
    says, the lines are raised by the largest difference seen. Steps are timed while freed memory is kept up to
    ``budget_bytes``; a block keeps less of it, and may take up to a fifth longer (docs/methods.md).
    """
    optimizer, compute = optimizer or OptimizerSettings(), compute or ComputeSettings()
    profiles = WindowTable(traced.windows.__getitem__, traced.windows)
    for window in windows:
        profiles[window] = measure_window(
            WindowStep(network=network, window=window, optimizer=optimizer, compute=compute),
            profiles[window],
            available_bytes=available_bytes,
            budget_bytes=budget_bytes,
            maximum_batch=maximum_batch,
            minimum_batch=minimum_batch,
            device=device,
        )
    return replace(traced, windows=profiles)


def measure_window(
    step: WindowStep,
    traced: WindowProfile,
    *,
    available_bytes: float,
    budget_bytes: int | None,
    maximum_batch: int,
    minimum_batch: int,
    device: torch.device,
) -> WindowProfile:
    """The same for one window: times at several batch sizes, and lines raised where the device holds more."""
    largest = min(maximum_batch, traced.largest_batch(available_bytes))
    if largest < minimum_batch:
        return traced
    # Smaller ones are never the fastest, and would take the same time again.
    batches = sorted({max(minimum_batch, largest // share) for share in (4, 2, 1)})
    timings: list[tuple[int, float]] = []
    excess = 0.0
    for batch in batches:
        try:
            peak, seconds = _run_real_steps(step, batch, device, budget_bytes)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        timings.append((batch, seconds))
        if peak is not None:
            excess = max(excess, peak - traced.peak_bytes(batch))
    if device.type == "cuda" and timings:
        # Convolutions there take as workspace what an enforced budget has left, and do with less: what ran fits.
        excess = min(excess, max(0.0, available_bytes - traced.peak_bytes(timings[-1][0])))
    raised = tuple(Line(line.fixed + excess, line.per_sample) for line in traced.memory)
    return replace(traced, memory=raised, timings=tuple(timings))


def _run_real_steps(
    step: WindowStep, batch: int, device: torch.device, budget_bytes: int | None
) -> tuple[int | None, float]:
    """Peak bytes of two steps that keep no freed memory, and the typical seconds of steps that may.

    Without a budget no peak is too high, and none is measured.
    """
    meter = PeakMeter(device)
    meter.start()
    freed = FreedMemory(budget_bytes, device.type)
    run = step.timed(batch, device)
    run()
    peak = None
    if budget_bytes is not None:
        run()
        peak = meter.peak_bytes()
    return peak, run_keeping(freed, lambda: typical_seconds(run, at_least=3))


def _upper_envelope(lines: Iterable[Line]) -> tuple[Line, ...]:
    """The lines that are the highest for some batch size of one or more."""
    ordered = sorted({(line.fixed, line.per_sample) for line in lines}, key=lambda item: (item[1], item[0]))
    hull: list[tuple[float, float]] = []
    for fixed, slope in ordered:
        while hull and hull[-1][0] + hull[-1][1] <= fixed + slope:
            hull.pop()  # already lower at batch 1, and less steep
        while len(hull) > 1 and _meet(hull[-2], (fixed, slope)) <= _meet(hull[-2], hull[-1]):
            hull.pop()
        hull.append((fixed, slope))
    return tuple(Line(fixed, slope) for fixed, slope in hull)


def _meet(low: tuple[float, float], steep: tuple[float, float]) -> float:
    return (low[0] - steep[0]) / (steep[1] - low[1])
