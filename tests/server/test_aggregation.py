"""Per-unit averages against hand-computed numbers and against Flower's own FedAvg; memory stays at one model."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from neuroflux_fl.errors import UsageError, WireError
from neuroflux_fl.wire import PackLayout, UnitUpdate, unit_key
from server.aggregation import UnitAggregator

# Packed: one unit parameter, one unit buffer, one head parameter, one head buffer.
LAYOUT = PackLayout(
    unit_parameters=(("unit.weight", (1,)),),
    unit_buffers=(("unit.running_mean", (1,)),),
    head_parameters=(("head.weight", (1,)),),
    head_buffers=(("head.running_mean", (1,)),),
)


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def make_update(unit: int, examples: int, *, steps: float = 1.0, has_head: bool = True) -> UnitUpdate:
    return UnitUpdate(unit=unit, examples=examples, steps=1, effective_steps=steps, has_head=has_head)


def test_devices_that_trained_different_units_count_only_where_they_trained() -> None:
    # Prepare: three units; device A trained 0 with head and 1 without, device B trained 1 with head, nobody 2.
    current = {unit: floats(1, 2, 3, 4) for unit in range(3)}
    aggregator = UnitAggregator(dict.fromkeys(range(3), LAYOUT), current)

    # Execute
    aggregator.add(make_update(0, 10), floats(5, 6, 7, 8))
    aggregator.add(make_update(1, 10, has_head=False), floats(10, 20))
    aggregator.add(make_update(1, 30), floats(50, 60, 70, 80))
    result = aggregator.result()

    # Assert: (10 * 10 + 30 * 50) / 40 = 40, (10 * 20 + 30 * 60) / 40 = 50; the head is device B's alone.
    assert result[0].tolist() == [5, 6, 7, 8]
    assert result[1].tolist() == [40, 50, 70, 80]
    assert result[2].tolist() == [1, 2, 3, 4]
    assert aggregator.contributors == {0: 1, 1: 2, 2: 0}
    assert aggregator.head_contributors == {0: 1, 1: 1, 2: 0}


def test_head_that_nobody_sent_keeps_its_value() -> None:
    aggregator = UnitAggregator({0: LAYOUT}, {0: floats(1, 2, 3, 4)})

    aggregator.add(make_update(0, 10, has_head=False), floats(9, 9))

    assert aggregator.result()[0].tolist() == [9, 9, 3, 4]


def test_fednova_normalises_parameters_by_steps_but_not_buffers() -> None:
    # Prepare: g = 1; A: 10 examples, 2 steps, x = 3; B: 30 examples, 8 steps, x = 17.
    aggregator = UnitAggregator({0: LAYOUT}, {0: floats(1, 1, 1, 1)}, "fednova")

    # Execute
    aggregator.add(make_update(0, 10, steps=2), floats(3, 3, 3, 3))
    aggregator.add(make_update(0, 30, steps=8, has_head=False), floats(17, 17))
    result = aggregator.result()[0]

    # Assert: tau_eff = (2 + 3 * 8) / 4 = 6.5; 1 + 6.5 * (2/2 + 3 * 16/8) / 4 = 12.375; plain: (3 + 3 * 17) / 4 = 13.5.
    # The head has device A alone: 1 + 2 * 2/2 = 3.
    assert result.tolist() == [12.375, 13.5, 3, 3]


def test_fednova_with_equal_steps_is_fedavg() -> None:
    rng = np.random.default_rng(0)
    current = {0: rng.normal(size=4).astype(np.float32)}
    arrays = [rng.normal(size=4).astype(np.float32) for _ in range(3)]
    results = {}

    for rule in ("fedavg", "fednova"):
        aggregator = UnitAggregator({0: LAYOUT}, current, rule)
        for examples, array in zip((5, 70, 25), arrays, strict=True):
            aggregator.add(make_update(0, examples, steps=7), array)
        results[rule] = aggregator.result()[0]

    np.testing.assert_allclose(results["fednova"], results["fedavg"], rtol=1e-5, atol=1e-6)


def test_equals_flowers_fedavg_on_the_same_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    # Prepare: three units of odd size (more than one chunk), five replies.
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    rng = np.random.default_rng(7)
    layout = PackLayout(
        unit_parameters=(("unit.weight", (70_001,)),),
        unit_buffers=(("unit.running_var", (13,)),),
        head_parameters=(("head.weight", (301, 3)),),
    )
    examples = (17, 501, 3, 1, 44)
    arrays = [
        {unit: rng.normal(3.0, 2.0, layout.size_with_head).astype(np.float32) for unit in range(3)} for _ in examples
    ]
    current = {unit: rng.normal(size=layout.size_with_head).astype(np.float32) for unit in range(3)}

    # Execute
    aggregator = UnitAggregator(dict.fromkeys(range(3), layout), current)
    for count, device in zip(examples, arrays, strict=True):
        for unit, array in device.items():
            aggregator.add(make_update(unit, count), array)
    ours = aggregator.result()
    task = Message(RecordDict(), 1, "train")
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({unit_key(unit): Array(array) for unit, array in device.items()}),
                    "metrics": MetricRecord({"num-examples": count}),
                }
            ),
            reply_to=task,
        )
        for count, device in zip(examples, arrays, strict=True)
    ]
    theirs, _ = FedAvg().aggregate_train(1, replies)

    # Assert
    assert theirs is not None
    for unit, array in ours.items():
        np.testing.assert_allclose(array, theirs[unit_key(unit)].numpy(), rtol=2e-6, atol=2e-6)


def test_update_is_not_kept_and_current_is_not_written_to() -> None:
    current = {0: floats(1, 2, 3, 4)}
    aggregator = UnitAggregator({0: LAYOUT}, current)
    array = floats(5, 6, 7, 8)

    aggregator.add(make_update(0, 1), array)
    array[:] = 99
    result = aggregator.result()

    assert result[0].tolist() == [5, 6, 7, 8]
    assert current[0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("update", "array", "complaint"),
    [
        (make_update(5, 1), floats(1, 2, 3, 4), "unit 5"),
        (make_update(0, 1), floats(1, 2), r"shape \(4,\)"),
        (make_update(0, 1), np.zeros(4), "must be float32"),
        (make_update(0, 0), floats(1, 2, 3, 4), "0 examples"),
        (make_update(0, 1, steps=0.0), floats(1, 2, 3, 4), r"0\.0 effective steps"),
    ],
)
def test_unfit_update_raises_and_adds_nothing(update: UnitUpdate, array: NDArray[np.float32], complaint: str) -> None:
    aggregator = UnitAggregator({0: LAYOUT}, {0: floats(1, 2, 3, 4)}, "fednova")

    with pytest.raises(WireError, match=complaint):
        aggregator.add(update, array)

    assert aggregator.contributors == {0: 0}


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="fedavg, fednova"):
        UnitAggregator({}, {}, "median")  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_server_memory_does_not_grow_with_the_cohort() -> None:
    # Prepare: 5 units of 3 million float32, 60 MB in all; every update is made in the one buffer.
    script = """
        from pathlib import Path
        import numpy as np
        from neuroflux_fl.wire import PackLayout, UnitUpdate
        from server.aggregation import UnitAggregator

        def peak():
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0])

        size = 3_000_000
        layout = PackLayout(
            unit_parameters=(("unit.weight", (size - 100,)),), head_parameters=(("head.weight", (100,)),)
        )
        current = {unit: np.ones(size, np.float32) for unit in range(5)}
        received = np.empty(size, np.float32)
        received[:] = 0
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        aggregator = UnitAggregator(dict.fromkeys(range(5), layout), current, "fednova")
        for device in range(200):
            received[::1000] = device
            for unit in range(5):
                aggregator.add(
                    UnitUpdate(unit=unit, examples=1 + device, steps=3, effective_steps=2.0 + device, has_head=True),
                    received,
                )
        result = aggregator.result()
        print((peak() - before) / (5 * size * 4))
    """

    # Execute
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(__file__).resolve().parents[2],
    )

    # Assert: the sums themselves are one model; the requirement is below four.
    growth = float(done.stdout)
    assert 0.9 < growth < 1.5
