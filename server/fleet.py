"""A fleet's run from the first query to the chosen exit: the protocol, read from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from neuroflux_fl.errors import FleetError, StorageError, WireError
from neuroflux_fl.evaluation import Score
from neuroflux_fl.local_network import EMPTY_PREFIX, LocalNetwork, prefix_version, unit_digest
from neuroflux_fl.packing import PackLayout, unit_key
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.wire import Capabilities, EvaluateReport, EvaluateTask, ExitScore, TrainReport, TrainTask
from server.aggregation import UnitAggregator
from server.cohort import draw_cohort
from server.device_totals import DeviceTotals
from server.fleet_state import FleetState, RoundRecord
from server.rounds import PhaseResult, require_quorum, run_phase, wait_for_nodes
from server.schedule import Stage, advance, joint_stages, rounds_per_stage, stages_of
from server.update_checks import check_update

logger = logging.getLogger(__name__)

Packed = NDArray[np.float32]


@dataclass(slots=True)
class _Device:
    """A connected device, as far as the protocol needs it."""

    node_id: int
    capabilities: Capabilities
    held_prefix: str = EMPTY_PREFIX
    """Version of the prefix that the device is known to hold."""


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
Checkpoint = Callable[[FleetState, dict[int, Packed]], None]
"""Called after every round with all that the server must remember."""
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
    ) -> None:
        self._grid = grid
        self._config = config
        self._layouts: dict[int, PackLayout] = {unit: network.layout(unit) for unit in range(len(network))}
        self._observer = observer
        self._checkpoint = checkpoint
        self._tester = tester
        self._arrays: dict[int, Packed] = {unit: network.initial(unit, config.seed) for unit in range(len(network))}
        self._on_the_wire: dict[int, Array] = {}
        self._digests: dict[int, str] = {}
        self._devices: dict[int, _Device] = {}
        self._totals: dict[int, DeviceTotals] = {}
        self._trained_heads: set[int] = set()

    def run(self, resume_from: tuple[FleetState, dict[int, Packed]] | None = None) -> FleetResult:
        """Query, train round after round, and score the exits of the result.

        Args:
            resume_from: state and weights of an interrupted run of the same configuration.

        Raises:
            FleetError: too few devices, none that can take part, or a round below the quorum.
            StorageError: ``resume_from`` is of another model or schedule.
        """
        started = time.monotonic()
        config = self._config
        stages = self._stages()
        bounds = self._round_bounds(stages)
        state = FleetState()
        if resume_from is not None:
            self._require_same_run(*resume_from, stages)
            state, self._arrays = resume_from
            self._trained_heads = set(state.trained_exits)
            self._totals = {totals.node_id: totals for totals in state.devices}
        seconds_before = state.seconds
        nodes = wait_for_nodes(self._grid, config.min_nodes, config.wait_seconds, max(0.1, config.poll_seconds))
        self._query(nodes)
        while not state.schedule.finished and state.round < config.num_server_rounds:
            stage = stages[state.schedule.stage_index]
            try:
                eligible = self._eligible(stage)
            except FleetError as error:
                if not self._trained_heads:
                    raise
                logger.warning("%s Training ends with the units before them.", error)
                break
            record = self._round(state, stage, bounds[stage.index], eligible)
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
                devices=tuple(self._totals[node] for node in sorted(self._totals)),
                seconds=seconds_before + time.monotonic() - started,
            )
            if self._checkpoint is not None:
                self._checkpoint(state, self._arrays)
            if self._observer is not None:
                self._observer(record, state.devices)
        exits = state.trained_exits
        scores = (
            self._evaluate(state.round, 0 if config.method == "neuroflux" else max(exits), max(exits)) if exits else {}
        )
        state = replace(
            state,
            devices=tuple(self._totals[node] for node in sorted(self._totals)),
            seconds=seconds_before + time.monotonic() - started,
        )
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

    def _query(self, nodes: Sequence[int]) -> None:
        malformed: list[int] = []

        def on_reply(reply: Message) -> None:
            node_id = reply.metadata.src_node_id
            try:
                data = reply.content.config_records["config"]["capabilities"]
                capabilities = Capabilities.from_bytes(_as_bytes(data))
            except (WireError, KeyError):
                malformed.append(node_id)
                return
            self._devices[node_id] = _Device(node_id, capabilities)
            totals = self._totals.get(node_id, DeviceTotals(node_id=node_id))
            self._totals[node_id] = totals.described(capabilities)

        messages = [Message(RecordDict(), node, "query.capabilities", group_id="0") for node in nodes]
        phase = self._phase(messages, on_reply, least_seconds=self._config.wait_seconds)
        if not self._devices:
            reasons = "; ".join(sorted(set(phase.failed.values()))) or (
                "answers that do not parse" if malformed else "no answer before the deadline"
            )
            raise FleetError(f"None of {len(nodes)} devices answered the capability query: {reasons}")

    def _stages(self) -> tuple[Stage, ...]:
        count = len(self._layouts)
        if self._config.method != "neuroflux" or self._config.schedule == "joint":
            return joint_stages(count)
        return stages_of(count, self._config.stage_units)

    def _round_bounds(self, stages: Sequence[Stage]) -> tuple[int, ...]:
        """Rounds for each stage, at least one each while rounds last."""
        spread = rounds_per_stage(self._config.num_server_rounds, len(stages))
        return tuple(max(1, rounds) for rounds in spread)

    def _eligible(self, stage: Stage) -> list[int]:
        """Devices that can do something for the stage."""
        if self._config.method == "backprop-all":
            return sorted(self._devices)
        if self._config.method == "backprop-fitting":
            able = [node for node, device in self._devices.items() if device.capabilities.holds_backprop]
            if not able:
                raise FleetError(
                    f"None of {len(self._devices)} devices has the memory for backpropagation: raise the budgets, "
                    "choose a narrower model, or use method neuroflux."
                )
            return sorted(able)
        planner = self._config.planner_settings(examples=self._config.maximum_batch)
        able = [node for node, device in self._devices.items() if _may_train(device.capabilities, stage, planner)]
        if not able:
            raise FleetError(
                f"None of {len(self._devices)} devices has the memory for any of units {stage.first_unit} to "
                f"{stage.last_unit}: raise the budgets or choose a narrower model."
            )
        return sorted(able)

    def _round(self, state: FleetState, stage: Stage, rounds_in_stage: int, eligible: Sequence[int]) -> RoundRecord:
        config, number = self._config, state.round + 1
        started = time.monotonic()
        cohort = draw_cohort(eligible, config.cohort or len(eligible), config.seed, number)
        aggregator = UnitAggregator(
            self._layouts, self._arrays, "fednova" if config.aggregation == "fednova" else "fedavg"
        )
        scores: dict[int, Score] = {}
        rejected: dict[str, int] = {}
        bytes_up = bytes_down = 0
        messages = []
        for node in cohort:
            message, size = self._train_message(self._devices[node], stage, state, rounds_in_stage)
            self._totals[node] = self._totals[node].sent(size)
            bytes_down += size
            messages.append(message)

        def on_reply(reply: Message) -> None:
            nonlocal bytes_up
            device = self._devices[reply.metadata.src_node_id]
            size = _content_bytes(reply.content)
            bytes_up += size
            try:
                report = TrainReport.from_bytes(_as_bytes(reply.content.config_records["config"]["report"]))
            except (WireError, KeyError):
                rejected["malformed"] = rejected.get("malformed", 0) + 1
                return
            self._totals[device.node_id] = self._totals[device.node_id].trained(report, size)
            device.held_prefix = report.prefix_version
            _add_scores(scores, report.exits, stage.units)
            self._take_updates(device, report, reply, number, stage, aggregator, rejected)

        phase = self._phase(messages, on_reply)
        require_quorum(len(phase.received), config.quorum, number)
        self._arrays = aggregator.result()
        self._on_the_wire.clear()
        self._digests.clear()
        self._trained_heads |= {unit for unit, count in aggregator.head_contributors.items() if count}
        exits = {unit: score.accuracy for unit, score in sorted(scores.items()) if score.total}
        return RoundRecord(
            round=number,
            stage=stage.index,
            exits=exits,
            test=self._test(stage),
            contributors={unit: count for unit, count in aggregator.contributors.items() if count},
            seconds=time.monotonic() - started,
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            rejected=rejected,
            failed=len(phase.failed),
            missing=len(phase.missing),
        )

    def _test(self, stage: Stage) -> dict[int, float]:
        if self._tester is None:
            return {}
        first = stage.first_unit if self._config.method == "neuroflux" else stage.last_unit
        return self._tester(self._arrays, first, stage.last_unit)

    def _train_message(
        self, device: _Device, stage: Stage, state: FleetState, rounds_in_stage: int
    ) -> tuple[Message, int]:
        config = self._config
        version = self._prefix_version(stage.first_unit)
        sends_prefix = stage.first_unit > 0 and device.held_prefix != version
        task = TrainTask(
            round=state.round + 1,
            first_unit=stage.first_unit,
            last_unit=stage.last_unit,
            epochs=config.local_epochs,
            first_epoch=state.round * config.local_epochs,
            deadline_seconds=config.deadline_seconds,
            prefix_version=version,
            sends_prefix=sends_prefix,
            learning_rate_scale=_rate_scale(state.schedule.rounds_in_stage, rounds_in_stage),
        )
        units = range(0 if sends_prefix else stage.first_unit, stage.last_unit + 1)
        content = self._content(units, task.to_bytes())
        return self._message(content, device.node_id, "train", task.round), _content_bytes(content)

    def _evaluate(self, round: int, first_unit: int, last_unit: int) -> dict[int, Score]:
        scores: dict[int, Score] = {}
        version = self._prefix_version(first_unit)
        version_after = self._prefix_version(last_unit + 1)
        units = range(first_unit, last_unit + 1)
        messages = []
        for device in self._devices.values():
            sends_prefix = first_unit > 0 and device.held_prefix != version
            task = EvaluateTask(
                round=round,
                first_unit=first_unit,
                last_unit=last_unit,
                prefix_version=version,
                sends_prefix=sends_prefix,
            )
            content = self._content(range(0 if sends_prefix else first_unit, last_unit + 1), task.to_bytes())
            self._totals[device.node_id] = self._totals[device.node_id].sent(_content_bytes(content))
            messages.append(self._message(content, device.node_id, "evaluate", round))

        def on_reply(reply: Message) -> None:
            device = self._devices[reply.metadata.src_node_id]
            try:
                report = EvaluateReport.from_bytes(_as_bytes(reply.content.config_records["config"]["report"]))
            except (WireError, KeyError):
                return  # a device that cannot be understood has no say in the score
            size = _content_bytes(reply.content)
            self._totals[device.node_id] = self._totals[device.node_id].evaluated(report.seconds, size)
            device.held_prefix = version_after  # what it scored is the prefix of the next stage
            _add_scores(scores, report.exits, units)

        self._phase(messages, on_reply)
        return scores

    def _take_updates(
        self,
        device: _Device,
        report: TrainReport,
        reply: Message,
        number: int,
        stage: Stage,
        aggregator: UnitAggregator,
        rejected: dict[str, int],
    ) -> None:
        """Add every sound update to the aggregate; count the others by reason."""
        arrays = reply.content.array_records.get("arrays", ArrayRecord())
        seen: set[int] = set()
        for update in report.updates:
            array = arrays.pop(unit_key(update.unit), None)
            values = None if array is None else _as_numpy(array)
            if values is None:
                reason: str | None = "missing_array" if array is None else "unreadable"
            else:
                reason = check_update(
                    update,
                    values,
                    self._layouts.get(update.unit),
                    report_round=report.round,
                    expected_round=number,
                    stage_units=stage.units,
                    seen_units=seen,
                    current=self._arrays.get(update.unit),
                    examples_held=device.capabilities.train_examples,
                )
                if reason is None:
                    aggregator.add(update, values.astype(np.float32, copy=False))
                    seen.add(update.unit)
            if reason is not None:
                rejected[reason] = rejected.get(reason, 0) + 1

    def _phase(
        self, messages: list[Message], on_reply: Callable[[Message], None], *, least_seconds: float = 0.0
    ) -> PhaseResult:
        deadline = self._config.deadline_seconds or None
        # Devices stop at the deadline and then still have to answer: the server allows them a half more.
        phase = run_phase(
            self._grid,
            messages,
            deadline_seconds=None if deadline is None else max(1.5 * deadline, least_seconds),
            on_reply=on_reply,
            poll_seconds=self._config.poll_seconds,
        )
        for node, reason in phase.failed.items():
            logger.warning("Device %d failed: %s", node, reason)
            if node in self._devices:
                self._devices[node].held_prefix = ""  # it may have lost its folder: send the prefix again
        return phase

    def _content(self, units: range, task: bytes) -> RecordDict:
        for unit in units:
            if unit not in self._on_the_wire:
                self._on_the_wire[unit] = Array(self._arrays[unit])
        # Every message of a round shares the same immutable bytes: O(model), not O(cohort).
        record = ArrayRecord({unit_key(unit): self._on_the_wire[unit] for unit in units})
        return RecordDict({"arrays": record, "config": ConfigRecord({"task": task})})

    def _message(self, content: RecordDict, node_id: int, kind: str, round: int) -> Message:
        ttl = 2 * self._config.deadline_seconds or None
        return Message(content, node_id, kind, group_id=str(round), ttl=ttl)

    def _prefix_version(self, units: int) -> str:
        for unit in range(units):
            if unit not in self._digests:
                self._digests[unit] = unit_digest(self._arrays[unit][: self._layouts[unit].size_without_head])
        return prefix_version(self._digests[unit] for unit in range(units))


def _may_train(capabilities: Capabilities, stage: Stage, planner: PlannerSettings) -> bool:
    """False where no unit of the stage can fit; the device's own plan, with its own profile, decides the rest."""
    budget = capabilities.memory_budget_bytes
    if budget is None or not capabilities.unit_memory:
        return True
    return any(
        # The highest fixed part and the steepest slope may be of different moments: each is a bound, their sum is not.
        planner.with_margin(max(line.fixed_bytes, planner.minimum_batch * line.bytes_per_sample)) <= budget
        for line in capabilities.unit_memory
        if line.unit in stage.units
    )


def _add_scores(scores: dict[int, Score], reported: Sequence[ExitScore], units: range) -> None:
    """Add a device's scores to the fleet's; those of exits that nobody asked for are left out."""
    for score in reported:
        if score.unit in units:
            scores[score.unit] = scores.get(score.unit, Score(0, 0)) + Score(score.correct, score.total)


def _rate_scale(rounds_done: int, rounds: int) -> float:
    """Half a cosine over the rounds of a stage, down to a twentieth."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, rounds_done / max(1, rounds))))


def _content_bytes(content: RecordDict) -> int:
    """Bytes of arrays and configuration, as they travel; Flower's framing comes on top."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    values = sum(
        len(value)
        for record in content.config_records.values()
        for value in record.values()
        if isinstance(value, bytes)
    )
    return arrays + values


def _as_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise WireError(f"Record holds {type(value).__name__} where bytes are due.")
    return value


def _as_numpy(array: Array) -> NDArray[np.generic] | None:
    try:
        values = array.numpy()
    except Exception:  # a stranger's bytes: NumPy has a dozen ways to say that they are no array
        return None
    return values if isinstance(values, np.ndarray) else None  # an archive of arrays is none
