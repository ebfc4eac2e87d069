"""A deployed fleet, with the warm agent and without: what each phase costs, what a device's processes hold in memory.

Run from the repository's root: ``python -m benchmarks.deployment``. One server and four devices of different budgets,
as real processes on this machine, started through ``neuroflux-fl certs``, ``server``, ``enroll`` and ``client``: TLS,
device keys, Flower's own SuperLink and SuperNodes. Every device trains its own share of real data on one thread.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fleet_watch import FleetWatch
from benchmarks.real_fleet import FleetDevice, RealFleet, median, set_arguments
from benchmarks.report import describe_setting, print_setting, print_table, write_json
from neuroflux_fl.sizes import MIB

ARMS = {"agent": True, "no-agent": False}
_PROGRAMS = ("agent", "supernode", "superexec", "clientapp")


def main() -> None:
    options = _parse()
    setting = describe_setting(
        model=f"{options.model} width {options.width}",
        data=options.data,
        devices=f"budgets {options.budgets}; each its own share of the data and one thread of torch",
        rounds=f"{options.rounds} with {options.local_epochs} local passes",
        settings=", ".join(options.set) or "defaults",
        seed=options.seed,
    )
    print_setting(setting)
    results = {arm: _measure(options, arm) for arm in options.arms or ARMS}
    _print_phases(results)
    _print_memory(results)
    _print_totals(results)
    write_json(options.json, {"setting": setting, "arms": results})


def _measure(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    budgets = options.budgets.split(",")
    devices = [
        FleetDevice(
            name=f"device-{index}",
            budget=budget,
            partition_id=index,
            partitions=len(budgets),
            data=options.data,
            agent=ARMS[arm],
        )
        for index, budget in enumerate(budgets)
    ]
    settings = [f"patience={options.rounds}", "min-improvement=0"]
    arguments = [
        "--min-nodes", str(len(budgets)), "--model", options.model, "--width", str(options.width),
        "--data", options.data, "--rounds", str(options.rounds), "--local-epochs", str(options.local_epochs),
        "--seed", str(options.seed), *set_arguments(settings), *set_arguments(options.set),
    ]  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="nf-", dir=options.keep))
    try:
        with RealFleet(folder, devices, arguments) as fleet:
            watch = FleetWatch(fleet)
            for device in devices:
                fleet.start_device(device.name)
            fleet.wait(lambda: fleet.server_exit() is not None, options.limit, "the end of the run", watch.look)
            if fleet.server_exit() != 0:
                raise SystemExit(f"The server failed:\n{fleet.log_of('server').read_text()[-2000:]}")
            result = _figures(fleet, watch)
        result["left_behind"] = fleet.left_behind
        return result
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _figures(fleet: RealFleet, watch: FleetWatch) -> dict[str, Any]:
    summary, runs = fleet.summary(), fleet.flower_runs()
    own = {
        record["round"]: max(
            (task.own_seconds for view in watch.devices.values() for task in view.finished_tasks
             if task.round == record["round"]), default=float("nan"),
        )
        for record in summary["rounds"]
    }  # fmt: skip
    return {
        "rounds": [
            {
                "round": record["round"],
                "stage": record["stage"],
                "seconds": record["seconds"],
                "slowest_device_seconds": own[record["round"]],
            }
            for record in summary["rounds"]
        ],
        "evaluations": watch.phase_seconds("evaluating"),
        "status": [run["status"] for run in runs],
        "traffic": [run["network-traffic"] for run in runs],
        "seconds": summary["seconds"],
        "device_seconds": summary["device_seconds"],
        "train_seconds": sum(device["train_seconds"] for device in summary["devices"]),
        "bytes_up": summary["bytes_up"],
        "bytes_down": summary["bytes_down"],
        "tasks": summary["tasks"],
        "chosen_exit": summary["chosen_exit"],
        "peaks": {
            device["device_class"]: (device["measured_peak_bytes"] or 0) / device["budget_bytes"]
            for device in summary["devices"]
        },
        "resident_bytes": {name: view.resident for name, view in watch.devices.items()},
    }


def _print_phases(results: dict[str, dict[str, Any]]) -> None:
    """Seconds of each kind of phase, with and without the agent."""
    stages = sorted({record["stage"] for result in results.values() for record in result["rounds"]})
    names = ["round 1", *(f"other rounds, stage {stage}" for stage in stages), "evaluations"]
    rows = []
    for name in names:
        cells, medians = [], []
        for result in results.values():
            records = _records(result, name)
            seconds = median([record["seconds"] for record in records])
            own = median([r["slowest_device_seconds"] for r in records if "slowest_device_seconds" in r])
            medians.append(seconds)
            cells += [f"{len(records)}", f"{seconds:.1f}", _number(own), _number(seconds - own)]
        ratio = f"{medians[1] / medians[0]:.2f}" if len(medians) == 2 else "-"
        rows.append([name, *cells, ratio])
    columns = [f"{arm}: {what}" for arm in results for what in ("n", "median s", "own work s", "rest s")]
    print("Phases. Own work: the slowest device's training, caching, scoring and profiling; rest: all else.")
    print_table(["phase", *columns, "ratio"], rows)


def _records(result: dict[str, Any], phase: str) -> list[dict[str, float]]:
    if phase == "evaluations":
        return [{"seconds": seconds} for seconds in result["evaluations"]]
    if phase == "round 1":
        return [record for record in result["rounds"] if record["round"] == 1]
    return [record for record in result["rounds"] if record["round"] > 1 and phase.endswith(f" {record['stage']}")]


def _print_memory(results: dict[str, dict[str, Any]]) -> None:
    """Largest resident size of each process of a device, over all devices."""
    rows = []
    largest = {
        arm: {
            program: max(device.get(program, 0) for device in result["resident_bytes"].values())
            for program in _PROGRAMS
        }
        for arm, result in results.items()
    }
    for program in _PROGRAMS:
        rows.append([program, *(_mib(largest[arm][program]) for arm in results)])
    rows.append(["together", *(_mib(sum(largest[arm].values())) for arm in results)])
    print("Resident memory of one device's processes, MiB: the largest seen on any device.")
    print_table(["process", *results], rows)


def _print_totals(results: dict[str, dict[str, Any]]) -> None:
    def row(name: str, cell: Any) -> list[str]:
        return [name, *(str(cell(result)) for result in results.values())]

    rows = [
        row("run status", lambda r: ", ".join(r["status"])),
        row("rounds", lambda r: len(r["rounds"])),
        row("run, s", lambda r: f"{r['seconds']:.0f}"),
        row("device-seconds", lambda r: f"{r['device_seconds']:.0f}"),
        row("of them in training itself", lambda r: f"{r['train_seconds']:.0f}"),
        row("chosen exit", lambda r: f"unit {r['chosen_exit']['unit']}"),
        row("its test accuracy, %", lambda r: f"{100 * r['chosen_exit']['test_accuracy']:.1f}"),
        row("largest peak, % of its budget", lambda r: f"{100 * max(r['peaks'].values()):.0f}"),
        row("devices over budget", lambda r: sum(share > 1 for share in r["peaks"].values())),
        row("SuperLink counted in, MiB", lambda r: _mib(sum(t["inbound-bytes"] for t in r["traffic"]))),
        row("SuperLink counted out, MiB", lambda r: _mib(sum(t["outbound-bytes"] for t in r["traffic"]))),
        row("updates up, MiB", lambda r: _mib(r["bytes_up"])),
        row("tasks down, MiB", lambda r: _mib(r["bytes_down"])),
        row("tasks sent / answered / failed", lambda r: "{sent} / {answered} / {failed}".format(**r["tasks"])),
        row("processes left behind", lambda r: len(r["left_behind"])),
    ]
    print_table(["figure", *results], rows)


def _mib(size: float) -> str:
    return f"{size / MIB:.0f}" if size >= 100 * MIB else f"{size / MIB:.1f}"


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.1f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--budgets", default="6MiB,8MiB,12MiB,24MiB", help="one for each device")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--local-epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="any run setting as key=value")
    parser.add_argument("--arms", action="append", choices=list(ARMS), help="only these; may be given several times")
    parser.add_argument("--limit", type=float, default=1500, help="seconds that one run may take")
    parser.add_argument("--keep", type=Path, help="existing folder; everything that was written stays in it")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
