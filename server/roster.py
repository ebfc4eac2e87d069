"""Who is in the fleet: what each device can do, which prefix it holds, and what it has done."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from neuroflux_fl.errors import FleetError, WireError
from neuroflux_fl.local_network import EMPTY_PREFIX
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.wire import Capabilities
from server.device_totals import DeviceTotals
from server.records import read_bytes
from server.rounds import run_phase, wait_for_nodes
from server.schedule import Stage

_NEWCOMER_SECONDS = 60.0
"""How long a round is held up by a device that joins and does not say what it can do."""
_NEWCOMER_PAUSE = 300.0
"""When it is asked again."""


@dataclass(slots=True)
class Device:
    """A device that has said what it can do."""

    node_id: int
    capabilities: Capabilities
    held_prefix: str = EMPTY_PREFIX
    """Version of the prefix that the device is known to hold."""


class Roster:
    """All devices that have joined so far, whether they are connected or not."""

    def __init__(self, grid: Grid, config: RunConfig) -> None:
        self._grid = grid
        self._config = config
        self._next_query: dict[int, float] = {}
        """When a device that has not said what it can do may be asked again."""
        self.devices: dict[int, Device] = {}
        self.totals: dict[int, DeviceTotals] = {}

    def found(self) -> None:
        """Wait for the first devices, and ask them what they can do.

        A SuperLink takes a device that is gone for connected for up to a minute: after a fault that hit everyone, the
        first answers are that all are lost, and they are asked again when they are back.

        Raises:
            FleetError: too few devices have come, or none of them gave an answer that can be understood.
        """
        config = self._config
        end = time.monotonic() + config.wait_seconds
        # They may have to load their data first; without a deadline they have all the time they need.
        bound = max(1.5 * config.deadline_seconds, config.wait_seconds) if config.deadline_seconds else None
        while True:
            left = max(0.0, end - time.monotonic())
            nodes = wait_for_nodes(self._grid, config.min_nodes, left, max(0.1, config.poll_seconds))
            reasons, lost = self._query(nodes, bound)
            if self.devices:
                return
            if lost < len(nodes) or time.monotonic() >= end:
                raise FleetError(f"None of {len(nodes)} devices answered the capability query: {'; '.join(reasons)}")
            time.sleep(max(0.1, config.poll_seconds))

    def admit_newcomers(self) -> set[int]:
        """Ask devices that have connected since what they can do; returns all nodes that are connected now."""
        connected = set(self._grid.get_node_ids())
        now = time.monotonic()
        newcomers = {node for node in connected - self.devices.keys() if self._next_query.get(node, now) <= now}
        if newcomers:
            self._query(newcomers, _NEWCOMER_SECONDS)
        return connected

    def able(self, stage: Stage) -> set[int]:
        """Devices, connected or not, that can do something for the stage.

        Raises:
            FleetError: there is none.
        """
        able = {node for node, device in self.devices.items() if self._may_train(device.capabilities, stage)}
        if able:
            return able
        if self._config.method == "backprop-fitting":
            raise FleetError(
                f"None of {len(self.devices)} devices has the memory for backpropagation: raise the budgets, "
                "choose a narrower model, or use method neuroflux."
            )
        raise FleetError(
            f"None of {len(self.devices)} devices has the memory for any of units {stage.first_unit} to "
            f"{stage.last_unit}: raise the budgets or choose a narrower model."
        )

    def count(self, node_id: int, change: Callable[[DeviceTotals], DeviceTotals]) -> None:
        """Replace a device's totals by what ``change`` makes of them."""
        self.totals[node_id] = change(self.totals[node_id])

    def totals_in_order(self) -> tuple[DeviceTotals, ...]:
        """Totals of all devices of the run, in the order of their node ids."""
        return tuple(self.totals[node] for node in sorted(self.totals))

    def _query(self, nodes: Collection[int], seconds: float | None) -> tuple[list[str], int]:
        """Ask and admit; returns why devices were not admitted, and how many were lost."""
        reasons: set[str] = set()

        def on_reply(reply: Message) -> None:
            node_id = reply.metadata.src_node_id
            try:
                capabilities = Capabilities.from_bytes(read_bytes(reply, "capabilities"))
            except WireError:
                reasons.add("answers that do not parse")
                return
            self.devices[node_id] = Device(node_id, capabilities)
            totals = self.totals.get(node_id, DeviceTotals(node_id=node_id))
            self.totals[node_id] = totals.described(capabilities)

        phase = run_phase(
            self._grid,
            [Message(RecordDict(), node, "query.capabilities", group_id="0") for node in sorted(nodes)],
            deadline_seconds=seconds,
            on_reply=on_reply,
            poll_seconds=self._config.poll_seconds,
        )
        reasons |= set(phase.failed.values()) | ({"no answer before the deadline"} if phase.missing else set())
        again = time.monotonic() + _NEWCOMER_PAUSE
        self._next_query |= {node: again for node in nodes if node not in self.devices}
        return sorted(reasons), len(phase.lost)

    def _may_train(self, capabilities: Capabilities, stage: Stage) -> bool:
        if self._config.method == "backprop-all":
            return True
        if self._config.method == "backprop-fitting":
            return capabilities.holds_backprop
        return _may_fit(capabilities, stage, self._config.planner_settings(examples=self._config.maximum_batch))


def _may_fit(capabilities: Capabilities, stage: Stage, planner: PlannerSettings) -> bool:
    """False where no unit of the stage can fit; the device's own plan, with its own profile, decides the rest."""
    budget = capabilities.memory_budget_bytes
    if budget is None or not capabilities.unit_memory:
        return True
    return any(
        # The highest fixed part and the steepest slope may be of different moments: each is a bound, their sum is not.
        planner.needed_budget(max(line.fixed_bytes, planner.minimum_batch * line.bytes_per_sample)) <= budget
        for line in capabilities.unit_memory
        if line.unit in stage.units
    )
