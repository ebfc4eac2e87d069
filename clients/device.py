"""What a device does when it is asked: tell its capabilities, train a stage, score exits. No Flower in here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from clients.identity import Identity
from neuroflux_fl.block_training import BlockResult
from neuroflux_fl.device_memory import limit_cuda_memory
from neuroflux_fl.device_training import CacheSettings, DeviceTrainer
from neuroflux_fl.errors import BudgetError, WireError
from neuroflux_fl.evaluation import Score
from neuroflux_fl.fleet_model import device_share, run_data, run_network
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.machine_speed import MachineSpeed, measure_speed
from neuroflux_fl.packing import unit_key
from neuroflux_fl.plan import Plan
from neuroflux_fl.planning import plan_backpropagation, plan_units
from neuroflux_fl.profiling import NetworkProfile, profile_network
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.sizes import parse_bytes
from neuroflux_fl.unit_store import UnitStore
from neuroflux_fl.wire import (
    BlockReport,
    Capabilities,
    EvaluateReport,
    EvaluateTask,
    ExitScore,
    Seconds,
    TrainReport,
    TrainTask,
    UnitMemory,
    UnitUpdate,
)

Arrays = dict[str, NDArray[np.float32]]
_USEFUL_BATCH = 8
_LARGEST_LOSS = 1e9


@lru_cache(maxsize=1)
def machine_speed(device: torch.device) -> MachineSpeed:
    """Measured once in each process."""
    return measure_speed(device)


def run_profile(config: RunConfig, device: torch.device) -> NetworkProfile:
    """Traced once in each process."""
    speed = machine_speed(device) if config.measure_speed else MachineSpeed()
    return _profile(run_network(config, run_data(config)), config.reach, config.train_settings().optimizer, speed)


@lru_cache(maxsize=4)
def _profile(network: LocalNetwork, reach: int, optimizer: OptimizerSettings, speed: MachineSpeed) -> NetworkProfile:
    return profile_network(network, speed=speed, reach=reach, optimizer=optimizer)


@dataclass(frozen=True, slots=True)
class Device:
    """One device in one run: configuration, identity, and a folder with its weights and caches."""

    config: RunConfig
    identity: Identity

    @property
    def network(self) -> LocalNetwork:
        """The run's network, without weights."""
        return run_network(self.config, run_data(self.config))

    def capabilities(self) -> Capabilities:
        """Class, budget, data and memory lines."""
        trainer = self._trainer()
        profile = run_profile(self.config, self.identity.device)
        settings = trainer.planner
        backprop = settings.with_margin(profile.whole.peak_bytes(_USEFUL_BATCH))
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
        )

    def train(self, task: TrainTask, arrays: Arrays) -> tuple[TrainReport, dict[str, NDArray[np.float32]]]:
        """Train the task's units inside the budget.

        Args:
            task: stage, epochs, deadline.
            arrays: packed arrays of the stage's units, and of the prefix where ``task.sends_prefix``; emptied, since
                what is being trained need not be in memory twice.

        Returns:
            The report and one packed array for each unit that was trained.

        Raises:
            WireError: the arrays do not fit the model, or the device lacks the prefix.
        """
        started = time.monotonic()
        deadline = started + task.deadline_seconds if task.deadline_seconds else None
        limit_cuda_memory(self.identity.device, self.identity.budget_bytes)
        trainer = self._trainer()
        self._receive(trainer, task.first_unit, task.last_unit, task.prefix_version, arrays)
        exits = trainer.score_exits(self._first_exit(task.first_unit, task.last_unit), task.last_unit)
        with trainer.stopwatch.running("profile"):
            plan = self._plan(task, trainer)
        result = trainer.train(
            plan,
            epochs=task.epochs,
            first_epoch=task.first_epoch,
            known=task.first_unit,
            learning_rate_scale=task.learning_rate_scale,
            deadline=deadline,
        )
        trainer.keep_cached_only(task.first_unit)
        examples = len(trainer.data.train)
        updates = tuple(update for block in result.blocks for update in _unit_updates(block, examples))
        report = TrainReport(
            round=task.round,
            plan=plan,
            updates=updates,
            exits=_exit_scores(exits),
            blocks=tuple(_block_report(block) for block in result.blocks),
            seconds=Seconds(**trainer.stopwatch.seconds),
            cache_hits=trainer.cache.hits,
            cache_bytes=trainer.cache.written_bytes,
            cache_refusals=len(trainer.cache.refusals),
            prefix_version=task.prefix_version,
            deadline_reached=result.deadline_reached,
        )
        return report, {unit_key(update.unit): self._packed(trainer.store, update) for update in updates}

    def evaluate(self, task: EvaluateTask, arrays: Arrays) -> EvaluateReport:
        """Score the exits of the task's units on this device's validation images.

        Raises:
            WireError: as ``train`` does.
        """
        started = time.monotonic()
        trainer = self._trainer()
        self._receive(trainer, task.first_unit, task.last_unit, task.prefix_version, arrays)
        first = self._first_exit(task.first_unit, task.last_unit)
        scores = trainer.score_exits(first, task.last_unit)
        return EvaluateReport(exits=_exit_scores(scores), seconds=time.monotonic() - started)

    def _trainer(self) -> DeviceTrainer:
        data = run_data(self.config)
        identity, config = self.identity, self.config
        share = device_share(config, data, identity.partition_id, identity.partitions)
        network = run_network(config, data)
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
        )

    def _plan(self, task: TrainTask, trainer: DeviceTrainer) -> Plan:
        profile = run_profile(self.config, self.identity.device)
        budget = self.identity.budget_bytes
        if self.config.method == "backprop-all":
            return plan_backpropagation(profile, None, trainer.planner)
        try:
            if self.config.method == "backprop-fitting":
                return plan_backpropagation(profile, budget, trainer.planner)
            return plan_units(profile, budget, trainer.planner, first_unit=task.first_unit, last_unit=task.last_unit)
        except BudgetError:
            # Nothing of this stage fits: the device still scores the exits, and trains in other stages.
            units = tuple(range(task.first_unit, task.last_unit + 1))
            return Plan(budget_bytes=budget, blocks=(), untrained_units=units)

    def _first_exit(self, first_unit: int, last_unit: int) -> int:
        # Backpropagation trains no head but the last.
        return first_unit if self.config.method == "neuroflux" else last_unit

    def _receive(
        self, trainer: DeviceTrainer, first_unit: int, last_unit: int, prefix_version: str, arrays: Arrays
    ) -> None:
        """Store what came; refuse a task whose units or prefix are not here."""
        if last_unit >= len(trainer.network):
            raise WireError(f"Task is for unit {last_unit}; the model has units 0 to {len(trainer.network) - 1}.")
        for unit in range(last_unit + 1):
            array = arrays.pop(unit_key(unit), None)
            if array is not None:
                size = trainer.network.layout(unit).size_with_head
                if array.dtype != np.float32 or array.shape != (size,):
                    raise WireError(f"Array of unit {unit} is {array.dtype} {array.shape}; needed: float32 ({size},).")
                trainer.store.write(unit, array)
            elif unit >= first_unit:
                raise WireError(f"Task for units {first_unit} to {last_unit} came without the array of unit {unit}.")
        if first_unit and any(not trainer.store.holds(unit) for unit in range(first_unit)):
            raise WireError(f"Prefix of {first_unit} units is not on this device: send it with the task.")
        held = trainer.store.prefix_version(first_unit)
        if held != prefix_version:
            raise WireError(f"Prefix of {first_unit} units is at another version on this device: send it again.")

    def _packed(self, store: UnitStore, update: UnitUpdate) -> NDArray[np.float32]:
        packed = store.read(update.unit)
        return packed if update.has_head else packed[: self.network.layout(update.unit).size_without_head]


def _unit_updates(result: BlockResult, examples: int) -> list[UnitUpdate]:
    heads = {window.last_unit for window in result.block.windows}
    return [
        UnitUpdate(
            unit=unit,
            examples=examples,
            steps=result.steps,
            effective_steps=result.effective_steps,
            has_head=unit in heads,
        )
        for unit in result.block.units
    ]


def _block_report(result: BlockResult) -> BlockReport:
    return BlockReport(
        first_unit=result.block.first_unit,
        last_unit=result.block.last_unit,
        batch_size=result.final_batch_size,
        predicted_peak_bytes=result.block.predicted_peak_bytes,
        measured_peak_bytes=result.measured_peak_bytes or 0,
        samples=result.samples,
        seconds=result.seconds,
        oom_retries=result.out_of_memory_retries,
        # A diverged loss is not a number that the protocol knows; the server rejects the weights by themselves.
        final_loss=float(np.nan_to_num(result.final_loss, nan=_LARGEST_LOSS, posinf=_LARGEST_LOSS)),
    )


def _exit_scores(scores: Mapping[int, Score]) -> tuple[ExitScore, ...]:
    return tuple(ExitScore(unit=unit, correct=s.correct, total=s.total) for unit, s in sorted(scores.items()))
