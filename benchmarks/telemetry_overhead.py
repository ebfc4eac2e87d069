"""What telemetry costs training: the speed of a device agent with and without being asked and reported, in turn.

Run from the repository's root: ``python -m benchmarks.telemetry_overhead``. One agent trains the same task again and
again. In the arm ``off`` nobody asks it anything; in the others this process does what a supervisor does, with the
product's own code: it looks at the agent, reads the sensors, and pushes reports to a telemetry gateway beside it.
Speeds need a quiet machine; processor time for each sample is nearly the same on a busy one.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import tempfile
import threading
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.real_fleet import median
from benchmarks.report import describe_setting, print_setting, print_table, write_json
from clients.agent_client import agent_status, ask_agent
from clients.client_commands import ClientOptions, ClientState, agent_command
from clients.device_telemetry import DeviceTelemetry
from clients.request import Arrays, DeviceRequest
from clients.telemetry_options import TelemetryOptions
from neuroflux_fl.errors import NeurofluxError
from neuroflux_fl.fleet_model import run_network
from neuroflux_fl.local_network import EMPTY_PREFIX
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.wire import TrainReport, TrainTask
from neuroflux_fl.wire.telemetry import training_to_proto
from server.gateway_settings import GatewaySettings, gateway_command
from server.state_folder import ServerState
from server.superlink import Endpoint

ARMS: dict[str, float | None] = {"off": None, "every 5 s": 5.0, "every 0.25 s": 0.25}
"""Seconds between two reports."""
_START_SECONDS = 120.0
_TIMED_CALLS = 100_000


def main() -> None:
    options = _parse()
    setting = describe_setting(
        model=f"{options.model} width {options.width}, {options.budget}",
        task=f"{options.epochs} epochs of {options.samples} digits, {options.threads} threads",
        repeats=options.repeats,
    )
    print_setting(setting)
    passes: dict[str, list[_Pass]] = {arm: [] for arm in ARMS}
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with tempfile.TemporaryDirectory(prefix="nf-telemetry-") as folder, _Bench(Path(folder), options) as bench:
        bench.train()  # the first task traces the model and brings in the kernels' code
        for repeat in range(options.repeats):
            # Another order each time, so that no arm always has the warmer machine.
            arms = list(ARMS)[repeat % len(ARMS) :] + list(ARMS)[: repeat % len(ARMS)]
            for arm in arms:
                with bench.telemetry(ARMS[arm]):
                    passes[arm].append(bench.train())
    calls = _call_seconds()
    _print(passes, calls)
    figures = {arm: [asdict(one) for one in made] for arm, made in passes.items()}
    write_json(options.json, {"setting": setting, "arms": figures, "call_seconds": calls})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One task."""

    samples_per_second: float
    agent_milliseconds: float
    """Processor time of the agent for each sample, its answers to status calls included."""
    supervisor_share: float
    """Processor time of this process over wall-clock time: what looks, reads sensors and pushes."""


class _Bench:
    """One agent, and a gateway for each pace, in processes of their own."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._config = RunConfig(
            model=options.model, width=options.width, data="digits", train_limit=options.samples, test_limit=20,
            partition="iid", views=2, run_name="overhead",
        )  # fmt: skip
        self._options = options
        self._folder = folder
        self._socket = folder / "run" / "agent.sock"
        self._round = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._gateways: dict[float, str] = {}

    def __enter__(self) -> _Bench:
        threads = str(self._options.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        commands = [agent_command(self._socket)]
        for interval in (interval for interval in ARMS.values() if interval is not None):
            state = ServerState(self._folder / f"server-{len(self._gateways)}")
            state.root.mkdir()
            port, metrics_port = _free_ports(2)
            settings = GatewaySettings(
                endpoint=Endpoint(host="127.0.0.1", port=port, certificates=None), metrics_port=metrics_port,
                interval_seconds=interval,
            )  # fmt: skip
            self._gateways[interval] = f"127.0.0.1:{port}"
            commands.append(gateway_command(state, settings))
        for command in commands:
            quiet = subprocess.DEVNULL
            self._processes.append(subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet))
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with suppress(NeurofluxError):
                if agent_status(self._socket, 5.0).busy_with == "":
                    return self
            time.sleep(0.2)
        self.__exit__()
        raise SystemExit("error: the agent did not start")

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def train(self) -> _Pass:
        """One task."""
        self._round += 1  # or the answer would come from the journal
        task = TrainTask(
            round=self._round, first_unit=0, last_unit=len(run_network(self._config)) - 1,
            epochs=self._options.epochs, prefix_version=EMPTY_PREFIX,
        )  # fmt: skip
        network = run_network(self._config)
        arrays: Arrays = {f"unit-{unit:03d}": network.initial(unit, 0) for unit in range(len(network))}
        request = DeviceRequest(
            kind="train", run_id=1, node_id=1, run_config=self._config.to_flat(),
            node_config={"memory-budget": self._options.budget, "state-folder": str(self._folder / "device")},
            task=task.to_bytes(), arrays=arrays,
        )  # fmt: skip
        agent_before, own_before, began = self._agent_seconds(), time.process_time(), time.monotonic()
        answer = ask_agent(self._socket, request, wait_seconds=30.0)
        if answer is None:
            raise SystemExit("error: the agent is gone")
        report = TrainReport.from_bytes(answer.content)
        samples = sum(block.samples for block in report.blocks)
        return _Pass(
            samples_per_second=samples / sum(block.seconds for block in report.blocks),
            agent_milliseconds=1000 * (self._agent_seconds() - agent_before) / samples,
            supervisor_share=(time.process_time() - own_before) / (time.monotonic() - began),
        )

    def _agent_seconds(self) -> float:
        fields = Path(f"/proc/{self._processes[0].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def telemetry(self, interval: float | None) -> Iterator[None]:
        """What a supervisor does beside its agent, at the pace that the gateway wants."""
        if interval is None:
            yield
            return
        gateway = self._gateways[interval]
        telemetry = DeviceTelemetry(
            ClientOptions(
                state=ClientState(self._folder), server=gateway, bundle=None,
                node_config={"device-class": "benchmark", "memory-budget": self._options.budget},
                agent_socket=self._socket, telemetry=TelemetryOptions(gateways=(gateway,), name="benchmark"),
            )
        )  # fmt: skip
        over = threading.Event()

        def look() -> None:
            while not over.wait(telemetry.look_seconds):
                with suppress(NeurofluxError):  # a busy machine may be late with an answer
                    status = agent_status(self._socket, 3.0)
                    telemetry.tell(connected=True, agent_restarts=0, status=status)

        thread = threading.Thread(target=look)
        with telemetry.running():
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()


def _call_seconds() -> dict[str, float]:
    """What the calls cost by themselves."""
    monitor = TrainingMonitor()
    reading = timeit.timeit(lambda: training_to_proto(monitor.reading()).SerializeToString(), number=1000) / 1000
    return {
        "step": timeit.timeit(lambda: monitor.step(8), number=_TIMED_CALLS) / _TIMED_CALLS,
        "reading": reading,
    }


def _print(passes: dict[str, list[_Pass]], calls: dict[str, float]) -> None:
    rows = []
    for arm, made in passes.items():
        pairs = list(zip(made, passes["off"], strict=True))
        rows.append(
            [
                arm,
                f"{median([one.samples_per_second for one in made]):.1f}",
                f"{median([one.samples_per_second / off.samples_per_second for one, off in pairs]):.3f}",
                f"{median([one.agent_milliseconds for one in made]):.3f}",
                f"{median([one.agent_milliseconds / off.agent_milliseconds for one, off in pairs]):.3f}",
                f"{100 * median([one.supervisor_share for one in made]):.2f} %",
            ]
        )
    print_table(
        ["telemetry", "samples/s", "ratio to off", "agent ms/sample", "ratio to off", "supervisor, of a core"], rows
    )
    print(
        "Medians; ratios are of passes side by side. "
        f"A step's call of the monitor takes {calls['step'] * 1e9:.0f} ns, a reading of it, coded, "
        f"{calls['reading'] * 1e6:.0f} us."
    )


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--budget", default="24MiB")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
