"""One round as it goes: which devices were asked, what came back in time or late, and where every task ended up."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from neuroflux_fl.errors import WireError
from neuroflux_fl.wire import TrainReport
from server.fleet_state import RoundRecord
from server.outstanding_tasks import OutstandingTask, OutstandingTasks
from server.records import content_bytes, read_bytes
from server.roster import Device, Roster
from server.round_sums import RoundSums
from server.rounds import PhaseResult


class FleetRound:
    """Takes answers as they come. A device that was asked has answered, failed, or is missing: exactly one of them."""

    def __init__(
        self,
        number: int,
        sums: RoundSums,
        roster: Roster,
        outstanding: OutstandingTasks,
        staleness_discount: float,
    ) -> None:
        self.number = number
        self.received: set[int] = set()
        self.wanted = 0
        """Answers that the round wants."""
        self._sums = sums
        self._roster = roster
        self._outstanding = outstanding
        self._staleness_discount = staleness_discount
        self._started = time.monotonic()
        self._asked: set[int] = set()
        self._failed: set[int] = set()
        self._missing: set[int] = set()
        self._bytes_down = 0
        self._resent = 0
        self._late_used = 0
        self._late_dropped = 0

    def ask(self, cohort: Collection[int], size: int) -> int:
        """Note who is asked next and how many answers are wanted in all; returns how many of them are still to come."""
        self._resent += len(self._asked & set(cohort))
        self._asked |= set(cohort)
        self.wanted = self.wanted or size
        return max(1, self.wanted - len(self.received))

    def count_sent(self, node_id: int, size: int) -> None:
        """Count bytes sent to a device."""
        self._bytes_down += size
        self._roster.count(node_id, lambda totals: totals.sent(size))

    def take(self, reply: Message) -> None:
        """An answer to this round's task."""
        device = self._roster.devices[reply.metadata.src_node_id]
        report = self._read_report(device, reply)
        if report is not None:
            self.received.add(device.node_id)
            self._sums.take(report, reply, examples_held=device.capabilities.train_examples, round=self.number)

    def take_late(self, message_id: str, reply: Message) -> None:
        """What has come to an outstanding task: of an earlier round, or of this one where it has asked twice."""
        task = self._outstanding.pop(message_id)
        if task.round == self.number:
            self._missing.discard(task.node_id)
            if reply.has_error():
                self._failed.add(task.node_id)
            else:
                self.take(reply)
        elif not reply.has_error() and self._use_late(task, reply):
            self._late_used += 1
        else:
            self._late_dropped += 1

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
        self._failed = (self._failed | phase.failed.keys()) - set(phase.received)
        self._missing |= phase.missing.keys()
        expires_at = math.inf if lifetime_seconds is None else time.monotonic() + lifetime_seconds
        for node_id, message_id in phase.missing.items():
            task = OutstandingTask(node_id=node_id, round=self.number, base=base, expires_at=expires_at)
            self._outstanding.add(message_id, task)

    def record(self, test: dict[int, float]) -> RoundRecord:
        """The finished round; ``test`` is the accuracy of the exits that it ended with."""
        return RoundRecord(
            round=self.number,
            stage=self._sums.stage.index,
            exits={unit: score.accuracy for unit, score in sorted(self._sums.scores.items()) if score.total},
            test=test,
            contributors=self._sums.contributors(),
            seconds=time.monotonic() - self._started,
            bytes_up=self._sums.bytes_up,
            bytes_down=self._bytes_down,
            rejected=self._sums.rejected,
            tasks=len(self._asked),
            failed=len(self._failed),
            missing=len(self._missing),
            resent=self._resent,
            late_used=self._late_used,
            late_dropped=self._late_dropped,
        )

    def _read_report(self, device: Device, reply: Message) -> TrainReport | None:
        """The report of an answer, counted; None, also counted, where it cannot be understood."""
        size = content_bytes(reply.content)
        self._sums.bytes_up += size
        try:
            report = TrainReport.from_bytes(read_bytes(reply, "report"))
        except WireError:
            self._sums.reject("malformed")
            return None
        self._roster.count(device.node_id, lambda totals: totals.trained(report, size))
        device.held_prefix = report.prefix_version
        return report

    def _use_late(self, task: OutstandingTask, reply: Message) -> bool:
        """Use the answer to a task of an earlier round; False where it is of no use any more."""
        device = self._roster.devices[task.node_id]
        report = self._read_report(device, reply)
        discount = self._staleness_discount ** (self.number - task.round)
        if report is None or not task.base or not discount:
            return False
        added = self._sums.take_late(
            report,
            reply,
            examples_held=device.capabilities.train_examples,
            round=task.round,
            base=task.base,
            discount=discount,
        )
        return added > 0
