"""What a device does when it is asked: tell its capabilities, train a stage, score exits. No Flower in here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from clients.identity import Identity
from clients.reports import block_readings, exit_scores, with_block, with_costs
from clients.state_lock import state_folder_in_use
from clients.task_journal import TaskJournal, TaskProgress, stored_digest, task_key
from clients.task_weights import Arrays, coded_updates, receive_weights
from neuroflux_fl.block_training import BlockResult
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.device_memory import limit_cuda_memory
from neuroflux_fl.device_training import CacheSettings, DeviceTrainer
from neuroflux_fl.errors import BudgetError
from neuroflux_fl.fleet_model import device_data, run_network
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.machine_speed import MachineSpeed, measure_speed
from neuroflux_fl.plan import Plan
from neuroflux_fl.planning import plan_backpropagation, plan_units
from neuroflux_fl.profiling import NetworkProfile, profile_network
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.sizes import parse_bytes
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.unit_store import UnitStore
from neuroflux_fl.wire import (
    Capabilities,
    EvaluateReport,
    EvaluateTask,
    TrainReport,
    TrainTask,
    UnitMemory,
)

_USEFUL_BATCH = 8


@lru_cache(maxsize=1)
def machine_speed(device: torch.device) -> MachineSpeed:
    """Measured once in each process."""
    return measure_speed(device)


def run_profile(config: RunConfig, device: torch.device) -> NetworkProfile:
    """Traced once in each process."""
    speed = machine_speed(device) if config.measure_speed else MachineSpeed()
    settings = config.train_settings()
    return _profile(run_network(config), config.reach, settings.optimizer, settings.compute, speed)


@lru_cache(maxsize=4)
def _profile(
    network: LocalNetwork, reach: int, optimizer: OptimizerSettings, compute: ComputeSettings, speed: MachineSpeed
) -> NetworkProfile:
    return profile_network(network, speed=speed, reach=reach, optimizer=optimizer, compute=compute)


@dataclass(frozen=True, slots=True)
class Device:
    """One device in one run: configuration, identity, and a folder with its weights and caches."""

    config: RunConfig
    identity: Identity
    monitor: TrainingMonitor = field(default_factory=TrainingMonitor, compare=False)
    """Told what the device is at."""

    @property
    def network(self) -> LocalNetwork:
        """The run's network, without weights."""
        return run_network(self.config)

    def capabilities(self) -> Capabilities:
        """Class, budget, data and memory lines."""
        trainer = self._trainer()
        with trainer.stopwatch.running("profile"):
            profile = run_profile(self.config, self.identity.device)
        settings = trainer.planner
        backprop = settings.needed_budget(profile.whole.peak_bytes(_USEFUL_BATCH), profile.whole.window.reach)
        return Capabilities(
            device_class=self.identity.device_class,
            memory_budget_bytes=self.identity.budget_bytes,
            train_examples=len(trainer.data.train),
            validation_examples=len(trainer.data.validation),
            unit_memory=tuple(
                UnitMemory(
                    unit=unit,
                    fixed_bytes=profile.unit(unit).fixed_bytes,
                    bytes_per_sample=profile.unit(unit).bytes_per_sample,
                )
                for unit in range(len(profile.units))
            ),
            holds_backprop=backprop <= self.identity.budget_bytes,
            metrics_address=self.identity.metrics_address,
        )

    def train(self, task: TrainTask, arrays: Arrays) -> tuple[TrainReport, dict[str, NDArray[Any]]]:
        """Train the task's units inside the budget, or what was left of them when this task was interrupted.

        Args:
            task: stage, epochs, deadline.
            arrays: packed arrays of the stage's units, and of the prefix where ``task.sends_prefix``; emptied, since
                what is being trained need not be in memory twice.

        Returns:
            The report and one packed array for each unit that was trained, coded as the task asks.

        Raises:
            WireError: the arrays do not fit the model, or the device lacks the prefix.
        """
        began, started = time.time(), time.monotonic()
        limit_cuda_memory(self.identity.device, self.identity.budget_bytes)
        with state_folder_in_use(self.identity.folder):
            trainer = self._trainer()
            journal = TaskJournal(self.identity.folder / "task.json", self._task_key(task, arrays))
            progress = journal.read(trainer.store)
            finished = () if progress is None else progress.digests
            received = self._received(task)
            receive_weights(trainer.store, task, arrays, finished=finished, copies=received)
            if progress is None:
                progress = TaskProgress(report=self._prepared(task, trainer), started_at=began)
                journal.write(progress)
                earlier, deadline_from = None, started
            else:
                earlier, deadline_from = progress.report, time.monotonic() - progress.elapsed_seconds
            if not progress.finished:
                deadline = deadline_from + task.deadline_seconds if task.deadline_seconds else None
                progress = self._train_rest(task, trainer, journal, progress, earlier, deadline)
            updates, error = coded_updates(progress.report.updates, trainer.store, received, task.update_precision)
            return replace(progress.report, update_error=error), updates

    def evaluate(self, task: EvaluateTask, arrays: Arrays) -> EvaluateReport:
        """Score the exits of the task's units on this device's validation images.

        Raises:
            WireError: as ``train`` does.
        """
        started = time.monotonic()
        with state_folder_in_use(self.identity.folder):
            trainer = self._trainer()
            receive_weights(trainer.store, task, arrays)
            scores = trainer.score_exits(self._first_exit(task.first_unit, task.last_unit), task.last_unit)
        return EvaluateReport(exits=exit_scores(scores), seconds=time.monotonic() - started)

    def _task_key(self, task: TrainTask, arrays: Arrays) -> str:
        # Not the budget: where it is a share of the free memory, it is another one at every message. Nor the run:
        # a server that goes on with one is another to Flower, says so in the configuration, and asks for the same work.
        identity = replace(self.identity, budget_bytes=0, folder=Path(), metrics_address="")
        config = replace(self.config, resume=False, out="", run_name="")
        return task_key((config, identity), task.to_bytes(), arrays)

    def _prepared(self, task: TrainTask, trainer: DeviceTrainer) -> TrainReport:
        """The report before any training: scores of what was received, and the plan."""
        # What an earlier task left elsewhere would take the quota's room.
        trainer.keep_cached_only(task.first_unit)
        exits = trainer.score_exits(self._first_exit(task.first_unit, task.last_unit), task.last_unit)
        with trainer.stopwatch.running("profile"):
            plan = self._plan(task.first_unit, task.last_unit, trainer)
        report = TrainReport(
            round=task.round, plan=plan, updates=(), exits=exit_scores(exits), prefix_version=task.prefix_version
        )
        return with_costs(report, trainer, None)

    def _train_rest(
        self,
        task: TrainTask,
        trainer: DeviceTrainer,
        journal: TaskJournal,
        progress: TaskProgress,
        earlier: TrainReport | None,
        deadline: float | None,
    ) -> TaskProgress:
        """Train the blocks that are not finished, and journal each. ``earlier`` is an interrupted attempt's report."""
        done = len(progress.report.blocks)
        plan = self._fitting(progress.report.plan, done, task.last_unit, trainer)
        progress = replace(progress, report=replace(progress.report, plan=plan))
        self.monitor.plan_known(task.round, block_readings(plan, progress.report.blocks))
        last_and_next = [block.first_unit for block in plan.blocks[max(0, done - 1) : done + 1]]
        trainer.keep_cached_only(task.first_unit, *last_and_next)

        def on_block(result: BlockResult) -> None:
            nonlocal progress
            report = with_block(progress.report, result, len(trainer.data.train))
            digests = {unit: stored_digest(trainer.store, unit) for unit in result.block.units}
            progress = replace(
                progress, report=with_costs(report, trainer, earlier), digests={**progress.digests, **digests}
            )
            journal.write(progress)

        result = trainer.train(
            replace(plan, blocks=plan.blocks[done:]),
            epochs=task.epochs,
            first_epoch=task.first_epoch,
            known=task.first_unit,
            start=last_and_next[0] if done else None,
            learning_rate_scale=task.learning_rate_scale,
            deadline=deadline,
            on_block=on_block,
        )
        trainer.keep_cached_only(task.first_unit)
        if result.deadline_reached:
            self.monitor.deadline_reached()
        report = replace(progress.report, deadline_reached=result.deadline_reached)
        progress = replace(progress, report=with_costs(report, trainer, earlier), finished=True)
        journal.write(progress)
        return progress

    def _fitting(self, plan: Plan, done: int, last_unit: int, trainer: DeviceTrainer) -> Plan:
        """The plan; where the budget has shrunk since it was made, with other blocks after the ``done`` first ones."""
        budget, rest = self.identity.budget_bytes, plan.blocks[done:]
        if plan.budget_bytes is None or all(trainer.planner.budget_of(block) <= budget for block in rest):
            return plan
        first_unit = rest[0].first_unit
        anew = self._plan(first_unit, last_unit, trainer)
        untrained = (*(unit for unit in plan.untrained_units if unit < first_unit), *anew.untrained_units)
        return Plan(budget_bytes=budget, blocks=(*plan.blocks[:done], *anew.blocks), untrained_units=untrained)

    def _trainer(self) -> DeviceTrainer:
        identity, config = self.identity, self.config
        share = device_data(config, identity.data, identity.partition_id, identity.partitions)
        network = run_network(config)
        return DeviceTrainer(
            network,
            UnitStore(identity.folder / "weights", network),
            share,
            cache=CacheSettings(
                folder=identity.folder / "cache",
                quota_bytes=parse_bytes(config.cache_quota) if config.cache_quota else None,
                precision=config.cache_precision,
            ),
            settings=config.train_settings(),
            planner=config.planner_settings(examples=len(share.train)),
            memory_bytes=identity.budget_bytes,
            device=identity.device,
            monitor=self.monitor,
        )

    def _plan(self, first_unit: int, last_unit: int, trainer: DeviceTrainer) -> Plan:
        profile = run_profile(self.config, self.identity.device)
        budget = self.identity.budget_bytes
        if self.config.method == "backprop-all":
            return plan_backpropagation(profile, None, trainer.planner)
        try:
            if self.config.method == "backprop-fitting":
                return plan_backpropagation(profile, budget, trainer.planner)
            return plan_units(profile, budget, trainer.planner, first_unit=first_unit, last_unit=last_unit)
        except BudgetError:
            # Nothing of this stage fits: the device still scores the exits, and trains in other stages.
            units = tuple(range(first_unit, last_unit + 1))
            return Plan(budget_bytes=budget, blocks=(), untrained_units=units)

    def _first_exit(self, first_unit: int, last_unit: int) -> int:
        # Backpropagation trains no head but the last.
        return first_unit if self.config.method == "neuroflux" else last_unit

    def _received(self, task: TrainTask) -> UnitStore | None:
        """Where received weights are kept, on disk, for coding the update; in full precision there is no need."""
        if task.update_precision == "float32":
            return None
        return UnitStore(self.identity.folder / "received", self.network)
