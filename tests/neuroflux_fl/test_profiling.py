"""Memory lines: exact between and beyond the traced batches, and read the right way round."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from neuroflux_fl import profiling
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.models import build_chain
from neuroflux_fl.plan import Window
from neuroflux_fl.profiling import Line, WindowProfile, measure_profile, profile_network, trace_window
from neuroflux_fl.tracing import trace_step
from neuroflux_fl.window_step import WindowStep

CPU = torch.device("cpu")
SPEED = MachineSpeed()


def profile_of(*lines: Line) -> WindowProfile:
    return WindowProfile(
        window=Window(first_unit=0, last_unit=0), resident_bytes=0, memory=lines, flops=Line(0, 1),
        traffic_bytes=Line(0, 1), operators=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "first", "last"), [("vgg11", 0, 0), ("vgg11", 5, 5), ("vgg11", 1, 3), ("resnet18", 3, 3)]
)
@pytest.mark.parametrize("batch", [2, 7, 40])
def test_memory_at_other_batches_lies_on_the_lines(model: str, first: int, last: int, batch: int) -> None:
    network = build_network(build_chain(model, image_shape=(3, 32, 32), classes=10), HeadSettings())
    step = WindowStep(network=network, window=Window(first_unit=first, last_unit=last))

    profile = trace_window(step)

    third = trace_step(lambda: step.build(batch, torch.device("cpu")))
    assert profile.peak_bytes(batch) == max(third.live_bytes)
    assert profile.flops.at(batch) == pytest.approx(third.flops)
    assert profile.traffic_bytes.at(batch) == pytest.approx(third.traffic_bytes)


def test_resident_bytes_by_hand(small_network: LocalNetwork) -> None:
    window = Window(first_unit=0, last_unit=0)
    parameters = (8 * 9 + 8 + 16) + (8 * 8 * 9 + 16 + 3 * 32 + 3)
    buffers = 2 * (8 + 8 + 1)

    step = WindowStep(network=small_network, window=window)
    assert trace_window(step).resident_bytes == 4 * (2 * parameters + buffers)
    plain = trace_window(replace(step, optimizer=OptimizerSettings(momentum=0.0)))
    assert plain.resident_bytes == 4 * (parameters + buffers)


def test_largest_batch_is_where_the_peak_meets_the_budget() -> None:
    generator = random.Random(0)
    for _ in range(200):
        profile = profile_of(*(Line(generator.randint(0, 500), generator.randint(1, 90)) for _ in range(3)))
        available = generator.randint(0, 3000)
        largest = profile.largest_batch(available)
        assert largest == 0 or profile.peak_bytes(largest) <= available
        assert profile.peak_bytes(largest + 1) > available
    assert profile_of(Line(10, 0), Line(0, 4)).largest_batch(20) == 5


def test_peak_is_rounded_up() -> None:
    assert profile_of(Line(10, 0.25)).peak_bytes(3) == 11


def test_the_envelope_is_the_maximum_of_all_lines() -> None:
    generator = random.Random(0)
    for _ in range(200):
        lines = [Line(generator.randint(0, 60), generator.randint(0, 12)) for _ in range(9)]
        envelope = profiling._upper_envelope(lines)
        assert set(envelope) <= set(lines)
        for batch in range(1, 80):
            assert max(line.at(batch) for line in envelope) == max(line.at(batch) for line in lines)


def test_profile_of_a_network_has_every_window_up_to_the_reach(small_network: LocalNetwork) -> None:
    profile = profile_network(small_network, speed=SPEED, reach=2)

    windows = {(window.first_unit, window.last_unit) for window in profile.windows}
    assert windows == {(0, 0), (1, 1), (2, 2), (0, 1), (1, 2)}
    assert profile.whole.window == profile.whole_window == Window(first_unit=0, last_unit=2)
    assert [unit.output_numbers for unit in profile.units] == [128, 128, 64]
    assert [unit.head_filters for unit in profile.units] == [8, 8, 0]
    # Multiply and add, a 3x3 kernel, the maps before pooling.
    assert [unit.forward_flops for unit in profile.units] == [2 * 9 * 8 * 64, 2 * 9 * 8 * 8 * 16, 2 * 9 * 8 * 16 * 16]
    # As many again for the gradient of a convolution's input.
    assert [unit.input_gradient_flops for unit in profile.units] == [unit.forward_flops for unit in profile.units]
    pair = profile.windows[Window(first_unit=0, last_unit=1)]
    assert pair.peak_bytes(64) > profile.unit(1).peak_bytes(64)
    assert pair.peak_bytes(64) < profile.unit(0).peak_bytes(64) + profile.unit(1).peak_bytes(64)


def test_with_reach_zero_other_windows_are_traced_when_they_are_first_asked_for(
    small_network: LocalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[Window] = []

    def trace(step: WindowStep) -> WindowProfile:
        traced.append(step.window)
        return trace_window(step)

    monkeypatch.setattr(profiling, "trace_window", trace)
    pair = Window(first_unit=0, last_unit=1)

    profile = profile_network(small_network, speed=SPEED, reach=0)
    measured = measure_profile(
        small_network, profile, windows=[], available_bytes=0, maximum_batch=8, minimum_batch=2, device=CPU
    )
    assert traced == []
    assert profile.windows[pair] is profile.windows[pair]
    assert measured.windows[pair] == profile_network(small_network, speed=SPEED, reach=2).windows[pair]
    assert traced.count(pair) == 2, "once for each profile"


def test_real_steps_keep_times_and_raise_the_lines_to_what_was_seen(
    small_network: LocalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = profile_network(small_network, speed=SPEED)
    window = Window(first_unit=0, last_unit=0)
    seen: list[int] = []

    def steps(_step: object, batch: int, *_others: object) -> tuple[int, float]:
        seen.append(batch)
        if batch == 32:
            raise torch.OutOfMemoryError("no more")
        return traced.windows[window].peak_bytes(batch) + 10 * batch, batch / 100

    monkeypatch.setattr(profiling, "_run_real_steps", steps)
    measured = measure_profile(
        small_network, traced, windows=[window], available_bytes=2.0**40, maximum_batch=32, minimum_batch=2, device=CPU
    )

    assert seen == [8, 16, 32]
    assert measured.unit(0).timings == ((8, 0.08), (16, 0.16))
    assert measured.unit(0).peak_bytes(5) == traced.unit(0).peak_bytes(5) + 160
    assert measured.unit(0).seconds_per_step(12, SPEED) == pytest.approx(0.12)
    assert measured.unit(1) == traced.unit(1)


def test_without_a_budget_no_step_is_made_to_measure_a_peak(
    small_network: LocalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def timed(_step: WindowStep, batch: int, _device: torch.device) -> Callable[[], float]:
        def run() -> float:
            made.append(batch)
            return 1.0 / len(made)  # the second of the three that are timed is the median

        return run

    monkeypatch.setattr(WindowStep, "timed", timed)
    traced = profile_network(small_network, speed=SPEED)
    window = Window(first_unit=0, last_unit=0)

    def measured(budget_bytes: int | None) -> WindowProfile:
        made.clear()
        return measure_profile(
            small_network, traced, windows=[window], available_bytes=2.0**40, budget_bytes=budget_bytes,
            maximum_batch=2, minimum_batch=2, device=CPU,
        ).unit(0)  # fmt: skip

    assert (measured(None).timings, made) == (((2, 1 / 3),), [2, 2, 2, 2])
    assert measured(None).memory == traced.unit(0).memory
    assert (measured(2**40).timings, made) == (((2, 1 / 4),), [2, 2, 2, 2, 2])


@pytest.mark.parametrize(("device", "largest"), [("cuda", 16), ("cpu", 4)])
def test_workspace_that_a_gpu_took_because_it_was_there_lowers_no_batch(
    device: str, largest: int, small_network: LocalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = profile_network(small_network, speed=SPEED)
    window = Window(first_unit=0, last_unit=0)
    budget = traced.windows[window].peak_bytes(16)
    monkeypatch.setattr(profiling, "_run_real_steps", lambda *_: (budget, 0.1))

    measured = measure_profile(
        small_network, traced, windows=[window], available_bytes=budget, maximum_batch=64, minimum_batch=2,
        device=torch.device(device),
    )  # fmt: skip

    assert measured.unit(0).largest_batch(budget) == largest


def test_float16_is_traced_without_a_gpu(small_network: LocalNetwork) -> None:
    step = WindowStep(network=small_network, window=Window(first_unit=0, last_unit=1))

    narrow = [trace_window(replace(step, compute=ComputeSettings(precision=name))) for name in ("float16", "bfloat16")]

    assert narrow[0] == narrow[1]
    # Kernels of narrow numbers take a fixed workspace, which half as wide activations make up for in large batches.
    assert narrow[0].bytes_per_sample < trace_window(step).bytes_per_sample
    assert narrow[0].peak_bytes(4096) < trace_window(step).peak_bytes(4096)
    assert narrow[0].peak_bytes(1) > 3 * 1024**2


def test_a_window_is_really_measured(small_network: LocalNetwork) -> None:
    traced = profile_network(small_network, speed=SPEED)
    window = Window(first_unit=1, last_unit=1)

    measured = measure_profile(
        small_network, traced, windows=[window], available_bytes=2.0**26, maximum_batch=8, minimum_batch=2, device=CPU
    )

    timings = measured.unit(1).timings
    assert [batch for batch, _ in timings] == [2, 4, 8]
    assert all(0 < seconds < 5 for _, seconds in timings)
