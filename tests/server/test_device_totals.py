"""What a device has done adds up over rounds, and comes back from JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from neuroflux_fl.plan import Plan
from neuroflux_fl.wire import BlockReport, Capabilities, Seconds, TrainReport
from server.device_totals import BlockTotals, DeviceTotals


def make_block(first: int, last: int, batch: int, peak: int, loss: float = 0.5) -> BlockReport:
    return BlockReport(
        first_unit=first,
        last_unit=last,
        batch_size=batch,
        predicted_peak_bytes=peak + 1,
        measured_peak_bytes=peak,
        samples=100,
        seconds=2.0,
        oom_retries=1,
        final_loss=loss,
        losses=((last, loss),),
    )


def make_report(number: int, *blocks: BlockReport) -> TrainReport:
    return TrainReport(
        round=number,
        plan=Plan(budget_bytes=64, blocks=(), untrained_units=(3,)),
        updates=(),
        blocks=blocks,
        seconds=Seconds(profile=1.0, train=4.0, cache=0.5, evaluate=0.5),
        cache_hits=2,
        cache_bytes=10,
        cache_refusals=1,
        cache_writes=4,
        cache_held_bytes=20 + number,
        deadline_reached=True,
    )


def test_rounds_add_up() -> None:
    totals = DeviceTotals(node_id=4).sent(30).evaluated(1.5, 5)

    totals = totals.trained(make_report(1, make_block(2, 2, 8, 40), make_block(0, 1, 4, 50)), 7)
    totals = totals.trained(make_report(2, make_block(0, 1, 16, 45, loss=0.25)), 7)
    totals = totals.trained(make_report(3), 7)

    assert totals == DeviceTotals(
        node_id=4,
        rounds=3,
        evaluations=1,
        last_round=3,
        bytes_up=5 + 3 * 7,
        bytes_down=30,
        samples=200,
        train_seconds=6.0,
        device_seconds=1.5 + 3 * 6.0,
        profile_seconds=3.0,
        cache_seconds=1.5,
        evaluate_seconds=1.5 + 1.5,
        predicted_peak_bytes=51,
        measured_peak_bytes=50,
        blocks=(
            # Batch size and loss are the latest, peaks the largest.
            BlockTotals(
                first_unit=0,
                last_unit=1,
                batch_size=16,
                predicted_peak_bytes=51,
                measured_peak_bytes=50,
                samples=200,
                seconds=4.0,
                loss=0.25,
            ),
            BlockTotals(
                first_unit=2,
                last_unit=2,
                batch_size=8,
                predicted_peak_bytes=41,
                measured_peak_bytes=40,
                samples=100,
                seconds=2.0,
                loss=0.5,
            ),
        ),
        losses=((1, 0.25), (2, 0.5)),
        untrained_units=(3,),
        out_of_memory_retries=3,
        cache_bytes=30,
        cache_writes=12,
        cache_held_bytes=23,
        cache_hits=6,
        cache_refusals=3,
        deadlines_reached=3,
    )
    assert totals.samples_per_second == 200 / 6
    assert DeviceTotals(node_id=4).samples_per_second == 0
    assert DeviceTotals.from_fields(json.loads(json.dumps(asdict(totals)))) == totals


def test_description_comes_from_the_device() -> None:
    capabilities = Capabilities(
        device_class="pi", memory_budget_bytes=64, train_examples=10, validation_examples=2, metrics_address="pi:9100"
    )

    totals = DeviceTotals(node_id=4, samples=7).described(capabilities)

    assert totals == DeviceTotals(
        node_id=4, samples=7, device_class="pi", budget_bytes=64, train_examples=10, metrics_address="pi:9100"
    )
