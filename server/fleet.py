"""A fleet's run from the first query to the chosen exit: the protocol, read from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from neuroflux_fl.errors import FleetError, StorageError, WireError
from neuroflux_fl.evaluation import Score
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.packing import PackLayout
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.wire import PREFIX_NEEDED, EvaluateReport, EvaluateTask, TrainTask
from server.aggregation import Rule
from server.answer_log import Answer
from server.cohort import draw_cohort
from server.device_totals import DeviceTotals
from server.fleet_round import FleetRound
from server.fleet_state import FleetState, RoundRecord
from server.outstanding_tasks import OutstandingTasks
from server.records import content_bytes, read_bytes
from server.roster import Roster
from server.round_sums import RoundSums, add_scores
from server.rounds import PhaseResult, Resending, pull_late, run_phase
from server.run_progress import RunProgress
from server.run_status import StatusListener
from server.schedule import Stage, advance, joint_stages, rounds_per_stage, stages_of
from server.task_messages import TaskMessages

logger = logging.getLogger(__name__)

Packed = NDArray[np.float32]

_SHORTEST_PAUSE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetResult:
    """What a run came to."""

    state: FleetState
    arrays: dict[int, Packed]
    """Global packed array of every unit, with head."""
    validation: dict[int, Score]
    """Exits of the final model on all devices' validation images."""


Observer = Callable[[RoundRecord, Sequence[DeviceTotals]], None]
"""Called after every round."""
Checkpoint = Callable[[FleetState, dict[int, Packed], Sequence[Answer]], None]
"""Called after every round with all that the server must remember, and with what came of the round's tasks."""
Tester = Callable[[dict[int, Packed], int, int], dict[int, float]]
"""Central test accuracy of exits ``first`` to ``last`` of the given weights."""


class Fleet:
    """One run. Made from a grid and a configuration; ``run`` does it all."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        network: LocalNetwork,
        *,
        observer: Observer | None = None,
        checkpoint: Checkpoint | None = None,
        tester: Tester | None = None,
        on_status: StatusListener | None = None,
    ) -> None:
        self._grid = grid
        self._config = config
        self._layouts: dict[int, PackLayout] = {unit: network.layout(unit) for unit in range(len(network))}
        self._observer = observer
        self._checkpoint = checkpoint
        self._tester = tester
        self._progress = RunProgress(config.num_server_rounds, on_status)
        self._roster = Roster(grid, config)
        self._outstanding = OutstandingTasks()
        self._trained_heads: set[int] = set()
        self._answers: tuple[Answer, ...] = ()
        """What came of the last round's tasks."""
        self._set_arrays({unit: network.initial(unit, config.seed) for unit in range(len(network))})

    def run(self, resume_from: tuple[FleetState, dict[int, Packed]] | None = None) -> FleetResult:
        """Query, train round after round, and score the exits of the result.

        Args:
            resume_from: state and weights of an interrupted run of the same configuration.

        Raises:
            FleetError: too few devices, none that can take part, or a round below the quorum.
            StorageError: ``resume_from`` is of another model or schedule.
        """
        config = self._config
        stages = self._stages()
        bounds = self._round_bounds(stages)
        state = FleetState()
        if resume_from is not None:
            self._require_same_run(*resume_from, stages)
            state, arrays = resume_from
            self._set_arrays(arrays)
            self._trained_heads = set(state.trained_exits)
            self._roster.totals = {totals.node_id: totals for totals in state.devices}
        self._progress.go_on_from(state.seconds)
        self._progress.tell(phase="waiting", round=state.round, stage=state.schedule.stage_index)
        self._roster.found()
        while not state.schedule.finished and state.round < config.num_server_rounds:
            stage = stages[state.schedule.stage_index]
            try:
                self._roster.able(stage)
            except FleetError as error:
                if not self._trained_heads:
                    raise
                logger.warning("%s Training ends with the units before them.", error)
                break
            record = self._round(state, stage, bounds[stage.index])
            rounds_left = config.num_server_rounds - record.round
            accuracy = record.exits.get(stage.last_unit)
            last_of_stage = state.schedule.rounds_in_stage + 1 >= bounds[stage.index] or rounds_left == 0
            if last_of_stage and rounds_left > 0:
                # Replies carry the accuracy of what the round began with; going deeper needs what it ended with.
                scores = self._evaluate(record.round, stage.first_unit, stage.last_unit)
                accuracy = scores[stage.last_unit].accuracy if stage.last_unit in scores else accuracy
            schedule = advance(
                state.schedule,
                stages,
                accuracy,
                patience=config.patience,
                max_rounds_per_stage=bounds,
                min_improvement=config.min_improvement,
                rounds_left=rounds_left,
            )
            state = replace(
                state,
                round=record.round,
                schedule=schedule,
                history=(*state.history, record),
                trained_exits=tuple(sorted(self._trained_heads)),
                devices=self._roster.totals_in_order(),
                seconds=self._progress.seconds,
            )
            if self._checkpoint is not None:
                self._checkpoint(state, self._arrays, self._answers)
            if self._observer is not None:
                self._observer(record, state.devices)
        exits = state.trained_exits
        scores = (
            self._evaluate(state.round, 0 if config.method == "neuroflux" else max(exits), max(exits)) if exits else {}
        )
        state = replace(
            state,
            devices=self._roster.totals_in_order(),
            seconds=self._progress.seconds,
        )
        self._progress.tell(phase="finished", wanted=0, answered=0)
        return FleetResult(
            state=state,
            arrays=self._arrays,
            validation={unit: score for unit, score in scores.items() if unit in self._trained_heads},
        )

    def _require_same_run(self, state: FleetState, arrays: dict[int, Packed], stages: Sequence[Stage]) -> None:
        shapes = {unit: (layout.size_with_head,) for unit, layout in self._layouts.items()}
        if {unit: array.shape for unit, array in arrays.items()} != shapes or state.schedule.stage_index >= len(stages):
            raise StorageError(
                "The saved state is of a run with another model or schedule: resume with the settings of that run, "
                "or start a new one in another folder."
            )

    def _stages(self) -> tuple[Stage, ...]:
        count = len(self._layouts)
        if self._config.method != "neuroflux" or self._config.schedule == "joint":
            return joint_stages(count)
        return stages_of(count, self._config.stage_units)

    def _round_bounds(self, stages: Sequence[Stage]) -> tuple[int, ...]:
        """Rounds for each stage, at least one each while rounds last."""
        spread = rounds_per_stage(self._config.num_server_rounds, len(stages))
        return tuple(max(1, rounds) for rounds in spread)

    def _set_arrays(self, arrays: dict[int, Packed]) -> None:
        self._arrays = arrays
        self._messages = TaskMessages(arrays, self._layouts, self._time_to_live())

    def _time_to_live(self) -> float | None:
        """Seconds after which Flower forgets a task: what comes later could not be used."""
        deadline = self._config.deadline_seconds
        return (2 + 1.5 * self._config.late_rounds) * deadline if deadline else None

    def _round(self, state: FleetState, stage: Stage, rounds_in_stage: int) -> RoundRecord:
        config, number = self._config, state.round + 1
        self._outstanding.forget_before(number - config.late_rounds)
        rule: Rule = "fednova" if config.aggregation == "fednova" else "fedavg"
        sums = RoundSums(stage, self._layouts, self._arrays, rule, config.update_precision)
        work = FleetRound(number, sums, self._roster, self._outstanding, config.staleness_discount, self._progress)
        rate_scale = _rate_scale(state.schedule.rounds_in_stage, rounds_in_stage)
        message_to = partial(self._train_message, work, stage, rate_scale)

        def on_reply(reply: Message) -> None:
            work.take(reply)
            self._progress.tell(answered=len(work.received))

        for attempt in range(config.task_attempts):
            free = self._free_devices(stage, work)
            size = min(config.cohort or len(free), len(free)) if attempt == 0 else len(free)
            cohort = draw_cohort(free, math.ceil(size * (1 + config.over_selection)), config.seed, number)
            enough = work.ask(cohort, size)
            self._progress.tell(
                phase="training", round=number, stage=stage.index, wanted=work.wanted, answered=len(work.received),
                failed=0, late=len(self._outstanding.message_ids),
            )  # fmt: skip
            phase = self._phase(cohort, message_to, on_reply, enough=enough, on_late=work.take_late)
            work.end_phase(phase, self._arrays if config.late_rounds else {}, self._time_to_live())
            if len(work.received) >= config.quorum:
                break
            work.below_quorum = True
            logger.warning("Round %d: %d good replies; the quorum is %d.", number, len(work.received), config.quorum)
        else:
            raise FleetError(
                f"Round {number} got {len(work.received)} good replies; the quorum is {config.quorum}. See the "
                "failures logged above, allow a longer deadline, or lower the quorum; the run can be resumed."
            )
        self._set_arrays(sums.result(config.unit_quorum))
        self._trained_heads |= sums.trained_heads(config.unit_quorum)
        record = work.record(self._test(stage), config.unit_quorum)
        self._answers = work.answers
        self._progress.tell(contributors=record.contributors, exits=record.exits, test=record.test)
        return record

    def _free_devices(self, stage: Stage, work: FleetRound) -> list[int]:
        """Connected devices that can work for the stage and have neither answered nor an old task to end.

        Waits until there are some; admits newcomers.

        Raises:
            FleetError: there were none, or fewer connected than ``min-nodes``, for ``wait-seconds``.
        """

        def ready() -> list[int]:
            connected = self._roster.admit_newcomers()
            self._progress.tell(nodes=len(connected))
            present = connected & self._roster.devices.keys()
            free = (self._roster.able(stage) & present) - self._outstanding.busy_nodes - work.received
            if len(present) < self._config.min_nodes or not free:
                # Old tasks may be what devices are busy with.
                pull_late(self._grid, self._outstanding.message_ids, work.take_late)
                return []
            return sorted(free)

        return self._wait_until(ready, f"{self._config.min_nodes} connected and one free to train")

    def _wait_until(self, ready: Callable[[], list[int]], wanted: str) -> list[int]:
        """What ``ready`` gives, as soon as it gives something."""
        end = time.monotonic() + self._config.wait_seconds
        while not (nodes := ready()):
            if time.monotonic() >= end:
                raise FleetError(
                    f"{len(set(self._grid.get_node_ids()))} devices were connected after "
                    f"{self._config.wait_seconds:g} s of waiting; needed: {wanted}. Start more devices, lower "
                    "min-nodes, or allow more time with wait-seconds; the run can be resumed."
                )
            self._progress.tell(phase="waiting")
            time.sleep(max(_SHORTEST_PAUSE, self._config.poll_seconds))
        return nodes

    def _test(self, stage: Stage) -> dict[int, float]:
        if self._tester is None:
            return {}
        first = stage.first_unit if self._config.method == "neuroflux" else stage.last_unit
        scores = self._tester(self._arrays, first, stage.last_unit)
        return {unit: accuracy for unit, accuracy in scores.items() if unit in self._trained_heads}

    def _train_message(self, work: FleetRound, stage: Stage, rate_scale: float, node_id: int) -> Message:
        config, device = self._config, self._roster.devices[node_id]
        version = self._messages.prefix_version(stage.first_unit)
        task = TrainTask(
            round=work.number,
            first_unit=stage.first_unit,
            last_unit=stage.last_unit,
            epochs=config.local_epochs,
            first_epoch=(work.number - 1) * config.local_epochs,
            deadline_seconds=config.deadline_seconds,
            prefix_version=version,
            sends_prefix=stage.first_unit > 0 and device.held_prefix != version,
            learning_rate_scale=rate_scale,
            update_precision=config.update_precision,
        )
        message = self._messages.make("train", task, node_id)
        work.count_sent(node_id, content_bytes(message.content))
        return message

    def _evaluate(self, round: int, first_unit: int, last_unit: int) -> dict[int, Score]:
        scores: dict[int, Score] = {}
        version = self._messages.prefix_version(first_unit)
        version_after = self._messages.prefix_version(last_unit + 1)

        def message_to(node_id: int) -> Message:
            task = EvaluateTask(
                round=round,
                first_unit=first_unit,
                last_unit=last_unit,
                prefix_version=version,
                sends_prefix=first_unit > 0 and self._roster.devices[node_id].held_prefix != version,
            )
            message = self._messages.make("evaluate", task, node_id)
            self._roster.count(node_id, lambda totals: totals.sent(content_bytes(message.content)))
            return message

        def on_reply(reply: Message) -> None:
            device = self._roster.devices[reply.metadata.src_node_id]
            try:
                report = EvaluateReport.from_bytes(read_bytes(reply, "report"))
            except WireError:
                return  # a device that cannot be understood has no say in the score
            size = content_bytes(reply.content)
            self._roster.count(device.node_id, lambda totals: totals.evaluated(report.seconds, size))
            device.held_prefix = version_after  # what it scored is the prefix of the next stage
            add_scores(scores, report.exits, range(first_unit, last_unit + 1))
            self._progress.tell(answered=self._progress.status.answered + 1)

        def ready() -> list[int]:
            connected = set(self._grid.get_node_ids()) & self._roster.devices.keys()
            return sorted(connected - self._outstanding.busy_nodes)

        nodes = self._wait_until(ready, "one that can score the model")
        self._progress.tell(phase="evaluating", wanted=len(nodes), answered=0, failed=0)
        self._phase(nodes, message_to, on_reply)
        return scores

    def _phase(
        self,
        nodes: Collection[int],
        message_to: Callable[[int], Message],
        on_reply: Callable[[Message], None],
        *,
        enough: int | None = None,
        on_late: Callable[[str, Message], None] | None = None,
    ) -> PhaseResult:
        """Send every node its message and handle the replies; a node that is lost gets its message again."""
        config = self._config

        def resend(node_id: int, reason: str) -> Message:
            if PREFIX_NEEDED in reason:
                self._roster.devices[node_id].held_prefix = ""  # it has lost its folder
            return message_to(node_id)

        phase = run_phase(
            self._grid,
            [message_to(node_id) for node_id in nodes],
            # Devices stop at the deadline and then still have to answer: the server allows them a half more.
            deadline_seconds=1.5 * config.deadline_seconds if config.deadline_seconds else None,
            on_reply=on_reply,
            poll_seconds=config.poll_seconds,
            enough=enough,
            resending=Resending(attempts=config.task_attempts, wait_seconds=config.reconnect_seconds, message=resend),
            late=self._outstanding.message_ids if on_late else (),
            on_late=on_late,
        )
        for node_id, reason in phase.failed.items():
            logger.warning("Device %d failed: %s", node_id, reason)
        return phase


def _rate_scale(rounds_done: int, rounds: int) -> float:
    """Half a cosine over the rounds of a stage, down to a twentieth."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, rounds_done / max(1, rounds))))
