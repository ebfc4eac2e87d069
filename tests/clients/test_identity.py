"""What a node's configuration makes of a device."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from clients import identity
from clients.identity import Identity, identify
from neuroflux_fl.errors import ConfigError, UsageError
from neuroflux_fl.run_config import RunConfig, Value

CONFIG = RunConfig(budgets="1MiB,2MiB,3MiB")


def make(**node_config: Value) -> Identity:
    return identify({key.replace("_", "-"): value for key, value in node_config.items()}, CONFIG, run_id=5, node_id=9)


def test_simulated_node_gets_a_budget_in_turn() -> None:
    budgets = [make(partition_id=index, num_partitions=5).budget_bytes for index in range(5)]

    assert budgets == [2**20, 2 * 2**20, 3 * 2**20, 2**20, 2 * 2**20]


def test_own_budget_wins() -> None:
    assert make(partition_id=0, memory_budget="7MiB").budget_bytes == 7 * 2**20
    assert make(memory_budget=1_000_000).budget_bytes == 1_000_000


def test_real_device_without_a_budget_takes_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "available_memory_bytes", lambda: 1000)

    assert make().budget_bytes == 500


def test_place_class_and_folder() -> None:
    device = make(partition_id=2, num_partitions=4, device_class="pi", state_folder="/data/fl")
    unnamed = make()

    assert (device.partition_id, device.partitions, device.device_class) == (2, 4, "pi")
    assert device.folder == Path("/data/fl")
    assert (make(metrics_address="10.0.0.7:9465").metrics_address, device.metrics_address) == ("10.0.0.7:9465", "")
    assert (unnamed.partition_id, unnamed.partitions, unnamed.device_class) == (0, 1, "unknown")
    # Two nodes on one machine, and two runs on one node, must not share weights.
    assert unnamed.folder == Path(tempfile.gettempdir()) / "neuroflux-fl" / "run-5" / "node-9"


@pytest.mark.parametrize("value", ["0", 1.0, True])
def test_place_must_be_a_whole_number(value: Value) -> None:
    with pytest.raises(ConfigError, match=r"'partition-id' is .* it must be a whole number"):
        make(partition_id=value)


def test_budget_must_be_a_size() -> None:
    with pytest.raises(UsageError, match="Size 'much' is not a number of bytes"):
        make(memory_budget="much")
