"""Folders of made-up runs, as servers write them: what the report page and the view in the terminal are tested on."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroflux_fl.device_report import BlockReading, DeviceReport, MachineReading, TrainingReading
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.sizes import MIB
from server.answer_log import Answer, append_answers
from server.device_registry import Device, write_registry
from server.device_totals import BlockTotals, DeviceTotals
from server.fleet_state import FleetState, RoundRecord
from server.run_folder import TELEMETRY_FILE
from server.run_setting import SETTING_FILE
from server.run_status import RunStatus, write_status
from server.schedule import ScheduleState
from server.state_folder import ServerState

BUDGETS = (6, 8, 12, 24)
UNITS = 8
STAGE_UNITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRun:
    """A fleet in which the second device is slow, the third misses a round, and the fourth is over its budget."""

    devices: int = 8
    rounds: int = 6
    planned: int = 6
    finished: bool = True
    tested: bool = True
    classes: tuple[str, ...] = ()
    """Device classes, dealt out in turn; empty: as a simulation names them."""
    names: tuple[str, ...] = ()
    """Under which the first devices were enrolled: written to ``devices.json`` beside the folder."""
    reporting: bool = False
    """With the last reports of the devices, all of which train but the last one, which is silent."""

    def write(self, out: Path) -> Path:
        """Write all files of the run into ``out`` and return it."""
        out.mkdir(parents=True, exist_ok=True)
        (out / SETTING_FILE).write_text(json.dumps(self.setting(out)))
        answers = [answer for number in range(1, self.rounds + 1) for answer in self.round_answers(number)]
        if self.rounds:
            append_answers(out, answers)
            FleetState(
                round=self.rounds,
                schedule=ScheduleState(stage_index=1),
                history=tuple(self.record(number) for number in range(1, self.rounds + 1)),
                devices=tuple(self.device(index) for index in range(self.devices)),
                seconds=30.0 * self.rounds,
            ).save(out, {"unit-000": np.zeros(1, np.float32)})
        last = self.record(self.rounds) if self.rounds else RoundRecord(round=0, stage=0)
        write_status(
            out,
            RunStatus(
                phase="finished" if self.finished else "training", round=self.rounds + (not self.finished),
                rounds=self.planned, stage=last.stage, nodes=self.devices, wanted=self.devices,
                answered=self.devices if self.finished else self.devices // 2, exits=last.exits, test=last.test,
            ),
        )  # fmt: skip
        if self.names:
            write_registry(ServerState(out.parent).devices_file, self.registry())
        if self.reporting:
            (out / TELEMETRY_FILE).write_text(json.dumps(self.telemetry()))
        if self.finished:
            (out / "run.json").write_text(json.dumps(self.summary()))
        return out

    def setting(self, out: Path) -> dict[str, Any]:
        """As ``setting.json`` has it."""
        config = RunConfig(num_server_rounds=self.planned, out=str(out), run_name="sample", poll_seconds=0.0, seed=7)
        return {
            "run": "sample",
            "started_at": time.time() - 30.0 * self.rounds - 20.0,
            "config": config.to_flat(),
            "data": {"name": "digits", "train": 1438, "test": 359, "classes": 10},
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "machine": "Linux",
            "units": [{"unit": unit, "exit_parameters": parameters(unit)} for unit in range(UNITS)],
        }

    def record(self, number: int) -> RoundRecord:
        """One finished round."""
        stage = 0 if number <= (self.planned + 1) // 2 else 1
        units = range(stage * STAGE_UNITS, (stage + 1) * STAGE_UNITS)
        return RoundRecord(
            round=number, stage=stage, exits={unit: accuracy(unit, number - 1) for unit in units},
            test={unit: accuracy(unit, number) for unit in units} if self.tested else {},
            contributors=dict.fromkeys(units, self.devices - (number == 2)), seconds=28.0,
            bytes_up=self.devices * 500_000, bytes_down=self.devices * (900_000 if number in (1, 4) else 500_000),
            tasks=self.devices, missing=int(number == 2 and self.devices > 2), late_used=int(number == 3),
            ended_at=time.time(), elapsed_seconds=30.0 * number, device_seconds=11.0 * self.devices,
            samples=600 * self.devices, rejected={"not_finite": 1} if number == 3 else {},
        )  # fmt: skip

    def round_answers(self, number: int) -> list[Answer]:
        """The answers of one round, in the order of the devices."""
        answers = []
        for index in range(self.devices):
            seconds = 27.0 if index == 1 else 10.0 + index % 5
            if index == 2 and number == 2:
                answers.append(Answer(round=number, node_id=index + 1, sent_at=30.0 * number - 29.0))
                continue
            if index == 2 and number == 3:
                late = Answer(
                    round=number, node_id=index + 1, sent_at=30.0 * (number - 1) - 29.0, seconds=34.0, fate="late_used",
                    train=30.0, samples=600, bytes_up=500_000,
                )  # fmt: skip
                answers.append(late)
                continue
            answers.append(
                Answer(
                    round=number, node_id=index + 1, sent_at=30.0 * number - 29.0, seconds=seconds, fate="answered",
                    profile=0.4, train=0.7 * seconds, cache=0.1 * seconds, evaluate=0.5, samples=600, bytes_up=500_000,
                )
            )  # fmt: skip
        return answers

    def device(self, index: int) -> DeviceTotals:
        """What a device has done."""
        budget = BUDGETS[index % 4] * MIB
        share = 1.07 if index == 3 else 0.9
        cuts = ((0, 0), (1, 1), (2, 3), (4, 7)) if index % 4 < 2 else ((0, 1), (2, 3), (4, 7))
        blocks = tuple(
            BlockTotals(
                first_unit=first, last_unit=last, batch_size=min(64, 8 * (index % 4 + 1) * (first + 1)),
                predicted_peak_bytes=int(budget * 0.97), measured_peak_bytes=int(budget * (share - 0.03 * first)),
                samples=3600, seconds=20.0 + index, loss=0.4,
            )
            for first, last in cuts
        )  # fmt: skip
        untrained = (0,) if index % 8 == 4 else ()
        return DeviceTotals(
            node_id=index + 1, budget_bytes=budget,
            device_class=self.classes[index % len(self.classes)] if self.classes else f"simulated-{index % 4}",
            train_examples=100 + index, rounds=self.rounds, bytes_up=500_000 * self.rounds,
            bytes_down=600_000 * self.rounds, samples=600 * self.rounds, train_seconds=9.0 * self.rounds,
            device_seconds=11.0 * self.rounds, profile_seconds=0.4, cache_seconds=1.0 * self.rounds,
            evaluate_seconds=0.5 * self.rounds, predicted_peak_bytes=int(budget * 0.97),
            measured_peak_bytes=int(budget * share), untrained_units=untrained,
            blocks=tuple(block for block in blocks if block.first_unit not in untrained), losses=((0, 0.5), (1, 0.4)),
        )  # fmt: skip

    def registry(self) -> dict[str, Device]:
        """The enrolled devices by name."""
        return {
            name: Device(
                name=name, node_id=index + 1, fingerprint="", public_key="", enrolled_at="2026-01-01T00:00:00Z"
            )
            for index, name in enumerate(self.names)
        }

    def telemetry(self) -> dict[str, Any]:
        """As ``telemetry.json`` has it."""
        rows = []
        for index in range(self.devices):
            totals = self.device(index)
            blocks = tuple(
                BlockReading(
                    first_unit=block.first_unit, last_unit=block.last_unit, batch_size=block.batch_size,
                    predicted_peak_bytes=block.predicted_peak_bytes, samples_per_second=480.0 if order == 0 else None,
                )
                for order, block in enumerate(totals.blocks)
            )  # fmt: skip
            budget = totals.budget_bytes or 0
            report = DeviceReport(
                device_class=totals.device_class, budget_bytes=budget,
                machine=MachineReading(board_celsius=51.0 + index),
                training=TrainingReading(
                    run="sample", round=self.rounds + 1, busy=True, training_bytes=budget * 3 // 4, blocks=blocks
                ),
            )  # fmt: skip
            rows.append(
                {
                    "device": self.names[index] if index < len(self.names) else f"device-{index + 1}",
                    "device_class": totals.device_class, "reporting": index < self.devices - 1,
                    "last_seen": time.time(), "report": asdict(report),
                }
            )  # fmt: skip
        return {"updated_at": time.time(), "devices": rows}

    def last_trained(self, unit: int) -> int:
        """Round after which a unit was frozen."""
        return min(self.rounds, (self.planned + 1) // 2) if unit < STAGE_UNITS else self.rounds

    def summary(self) -> dict[str, Any]:
        """As ``run.json`` has it, as far as readers use it."""
        exits = [
            {
                "unit": unit, "validation_accuracy": accuracy(unit, self.last_trained(unit)) - 0.02,
                "test_accuracy": accuracy(unit, self.last_trained(unit)) if self.tested else None,
                "parameters": parameters(unit),
            }
            for unit in range(UNITS)
        ]  # fmt: skip
        return {
            "exits": exits, "chosen_exit": exits[4], "seconds": 30.0 * self.rounds,
            "tasks": {"sent": 48, "answered": 47, "failed": 0, "late_used": 1, "late_dropped": 0, "never_answered": 0},
            "devices": [asdict(self.device(index)) for index in range(self.devices)],
        }  # fmt: skip


def accuracy(unit: int, after: int) -> float:
    """Of an exit after some rounds: deeper is better, and later is."""
    return 0.1 + 0.85 * (1 - 0.55**after) * (1 - 0.25 * 0.6**unit)


def parameters(unit: int) -> int:
    """Of the exit at a unit."""
    return int(4000 * 2**unit)
