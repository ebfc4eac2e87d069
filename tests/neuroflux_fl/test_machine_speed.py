"""Rates of this machine: sane, and turned into seconds by plain addition."""

from __future__ import annotations

import pytest
import torch

from neuroflux_fl.machine_speed import MachineSpeed, measure_speed


def test_seconds_add_up() -> None:
    speed = MachineSpeed(flops_per_second=100, traffic_bytes_per_second=10, seconds_per_operator=0.5)

    assert speed.seconds(flops=200, traffic_bytes=30, operators=4) == pytest.approx(2 + 3 + 2)


def test_measured_rates_are_possible_ones() -> None:
    speed = measure_speed(torch.device("cpu"))

    assert 1e8 < speed.flops_per_second < 1e14
    assert 1e7 < speed.traffic_bytes_per_second < 1e13
    assert 1e-8 < speed.seconds_per_operator < 1e-1
