"""One round as it goes: which devices were asked, what came back in time or late, and where every task ended up."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from neuroflux_fl.errors import WireError
from neuroflux_fl.wire import TrainReport
from server.answer_log import Answer
from server.device_totals import samples_of, seconds_of
from server.fleet_state import RoundRecord
from server.outstanding_tasks import OutstandingTask, OutstandingTasks
from server.records import content_bytes, read_bytes
from server.roster import Device, Roster
from server.round_sums import RoundSums
from server.rounds import PhaseResult
from server.run_progress import RunProgress


class FleetRound:
    """Takes answers as they come. A device that was asked has answered, failed, or is missing: exactly one of them.

    Args:
        number: of the round, from 1.
        sums: what answers are added to.
        roster: devices and their totals.
        outstanding: tasks of earlier rounds; this round's are added as its phases end.
        staleness_discount: weight of a late answer for each round that it is late.
        progress: the run's clock.
    """

    def __init__(
        self,
        number: int,
        sums: RoundSums,
        roster: Roster,
        outstanding: OutstandingTasks,
        staleness_discount: float,
        progress: RunProgress,
    ) -> None:
        self.number = number
        self.received: set[int] = set()
        self.wanted = 0
        """Answers that the round wants."""
        self.below_quorum = False
        """A phase of the round ended with fewer answers than it needed."""
        self._sums = sums
        self._roster = roster
        self._outstanding = outstanding
        self._staleness_discount = staleness_discount
        self._progress = progress
        self._started = progress.seconds
        self._tasks: dict[int, Answer] = {}
        """By node: how the round's task stands."""
        self._late: list[Answer] = []
        self._bytes_down = 0
        self._resent = 0
        self._update_error = 0.0
        self._device_seconds = 0.0
        self._samples = 0

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What came of every task of this round, and what came late to earlier ones."""
        return (*(self._tasks[node] for node in sorted(self._tasks)), *self._late)

    def ask(self, cohort: Collection[int], size: int) -> int:
        """Note who is asked next and how many answers are wanted in all; returns how many of them are still to come."""
        self._resent += len(self._tasks.keys() & set(cohort))
        for node in cohort:
            self._tasks.setdefault(node, Answer(round=self.number, node_id=node, sent_at=self._progress.seconds))
        self.wanted = self.wanted or size
        return max(1, self.wanted - len(self.received))

    def count_sent(self, node_id: int, size: int) -> None:
        """Count bytes sent to a device."""
        self._bytes_down += size
        self._roster.count(node_id, lambda totals: totals.sent(size))

    def take(self, reply: Message) -> None:
        """An answer to this round's task."""
        device = self._roster.devices[reply.metadata.src_node_id]
        size = content_bytes(reply.content)
        report = self._read_report(device, reply, size)
        self._tasks[device.node_id] = self._came(self._tasks[device.node_id], "answered", size, report)
        if report is not None:
            self.received.add(device.node_id)
            self._sums.take(report, reply, examples_held=device.capabilities.train_examples, round=self.number)

    def take_late(self, message_id: str, reply: Message) -> None:
        """What has come to an outstanding task: of an earlier round, or of this one where it has asked twice."""
        task = self._outstanding.pop(message_id)
        if task.round == self.number:
            if reply.has_error():
                self._tasks[task.node_id] = replace(self._tasks[task.node_id], fate="failed")
            else:
                self.take(reply)
            return
        asked = Answer(round=self.number, node_id=task.node_id, sent_at=task.sent_at)
        if reply.has_error():
            self._late.append(self._came(asked, "late_dropped", 0, None))
            return
        size = content_bytes(reply.content)
        report = self._read_report(self._roster.devices[task.node_id], reply, size)
        used = report is not None and self._use_late(task, report, reply)
        self._late.append(self._came(asked, "late_used" if used else "late_dropped", size, report))

    def end_phase(
        self, phase: PhaseResult, base: Mapping[int, NDArray[np.float32]], lifetime_seconds: float | None
    ) -> None:
        """Account for everyone who was asked; what is missing may come later.

        Args:
            phase: how it went.
            base: the weights that the round began with; empty where late answers are not to be used.
            lifetime_seconds: time after which no answer can come any more; None is never.
        """
        self._resent += phase.resent
        for fate, nodes in (("failed", phase.failed), ("missing", phase.missing)):
            self._tasks |= {node: replace(self._tasks[node], fate=fate) for node in nodes}
        expires_at = math.inf if lifetime_seconds is None else time.monotonic() + lifetime_seconds
        for node_id, message_id in phase.missing.items():
            task = OutstandingTask(
                node_id=node_id,
                round=self.number,
                base=base,
                sent_at=self._tasks[node_id].sent_at,
                expires_at=expires_at,
            )
            self._outstanding.add(message_id, task)

    def record(self, test: dict[int, float], unit_quorum: int) -> RoundRecord:
        """The finished round.

        Args:
            test: accuracy of the exits that it ended with.
            unit_quorum: updates that a unit needs.
        """
        fates = [answer.fate for answer in self.answers]
        elapsed = self._progress.seconds
        return RoundRecord(
            round=self.number,
            stage=self._sums.stage.index,
            exits={unit: score.accuracy for unit, score in sorted(self._sums.scores.items()) if score.total},
            test=test,
            contributors=self._sums.contributors(),
            seconds=elapsed - self._started,
            bytes_up=self._sums.bytes_up,
            bytes_down=self._bytes_down,
            rejected=self._sums.rejected,
            tasks=len(self._tasks),
            failed=fates.count("failed"),
            missing=fates.count("missing"),
            resent=self._resent,
            late_used=fates.count("late_used"),
            late_dropped=fates.count("late_dropped"),
            ended_at=time.time(),
            elapsed_seconds=elapsed,
            aggregation_seconds=self._sums.seconds,
            device_seconds=self._device_seconds,
            samples=self._samples,
            below_quorum=self.below_quorum or self._sums.below(unit_quorum),
            update_error=self._update_error,
        )

    def _read_report(self, device: Device, reply: Message, size: int) -> TrainReport | None:
        """The report of an answer, counted; None, also counted, where it cannot be understood."""
        self._sums.bytes_up += size
        try:
            report = TrainReport.from_bytes(read_bytes(reply, "report"))
        except WireError:
            self._sums.reject("malformed")
            return None
        self._roster.count(device.node_id, lambda totals: totals.trained(report, size))
        self._samples += samples_of(report)
        self._device_seconds += seconds_of(report)
        self._update_error = max(self._update_error, report.update_error)
        device.held_prefix = report.prefix_version
        return report

    def _came(self, asked: Answer, fate: str, size: int, report: TrainReport | None) -> Answer:
        """The task as it stands now that something has come."""
        answer = replace(asked, fate=fate, seconds=self._progress.seconds - asked.sent_at, bytes_up=size)
        if report is None:
            return answer
        seconds = report.seconds
        return replace(
            answer,
            profile=seconds.profile,
            train=seconds.train,
            cache=seconds.cache,
            evaluate=seconds.evaluate,
            samples=samples_of(report),
        )

    def _use_late(self, task: OutstandingTask, report: TrainReport, reply: Message) -> bool:
        """Use the answer to a task of an earlier round; False where it is of no use any more."""
        discount = self._staleness_discount ** (self.number - task.round)
        if not task.base or not discount:
            return False
        added = self._sums.take_late(
            report,
            reply,
            examples_held=self._roster.devices[task.node_id].capabilities.train_examples,
            round=task.round,
            base=task.base,
            discount=discount,
        )
        return added > 0
