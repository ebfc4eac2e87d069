"""Faults injected into a real fleet in the middle of a round: what was seen, how long it took, where every task went.

Run from the repository's root: ``python -m benchmarks.faults``. Each fault has a fleet of its own: a server and three
devices as real processes, with TLS and device keys. It hits in round 2, when the first device has finished some of its
blocks and not all of them. Exit code 1 where any verdict is bad.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fault_kinds import FAULTS, VICTIM, Fault, Trial
from benchmarks.fleet_watch import FleetWatch
from benchmarks.real_fleet import FleetDevice, RealFleet, set_arguments
from benchmarks.report import describe_setting, print_setting, print_table, write_json

_HIT_ROUND = 2
_TASKS = ("sent", "answered", "failed", "late_used", "late_dropped", "never_answered", "resent")


def main() -> None:
    options = _parse()
    setting = describe_setting(
        model=f"{options.model} width {options.width}",
        data=options.data,
        devices=f"budgets {options.budgets}; each its own share of the data and one thread of torch",
        rounds=f"{options.rounds} with {options.local_epochs} local passes; the fault is in round {_HIT_ROUND}",
        settings=", ".join(options.set) or "defaults",
        seed=options.seed,
    )
    print_setting(setting)
    results = {}
    for name in options.only or FAULTS:
        began = time.monotonic()
        reason = FAULTS[name].impossible()
        try:
            results[name] = {"skipped": reason} if reason else _try(options, FAULTS[name])
        except (OSError, RuntimeError) as error:
            results[name] = {"complaints": [f"no fleet: {error}"]}
        print(f"{name}: {_verdict(results[name])} ({time.monotonic() - began:.0f} s in all)", flush=True)
    print()
    _print_results(results)
    _print_events(results)
    write_json(options.json, {"setting": setting, "faults": results})
    if any(result.get("complaints") for result in results.values()):
        sys.exit(1)


def _try(options: argparse.Namespace, fault: Fault) -> dict[str, Any]:
    """One fault, on a fleet of its own."""
    folder = Path(tempfile.mkdtemp(prefix="nf-", dir=options.keep))
    try:
        with fault.surroundings(folder) as around:
            fleet = RealFleet(
                folder,
                _devices(options, around.victim_state, around.victim_launcher),
                _server_arguments(options, fault),
                host=around.host,
            )
            with fleet:
                watch = FleetWatch(fleet)
                trial = Trial(
                    fleet=fleet,
                    watch=watch,
                    around=around,
                    cut_seconds=options.cut_seconds,
                    away_seconds=options.away_seconds,
                )
                result = _drive(options, fault, trial)
            complaints = result["complaints"]
            if fleet.left_behind:
                complaints.append(f"{len(fleet.left_behind)} processes left behind: {fleet.left_behind[0][:60]}")
            return result
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _drive(options: argparse.Namespace, fault: Fault, trial: Trial) -> dict[str, Any]:
    fleet, watch = trial.fleet, trial.watch
    began = time.monotonic()
    for name in fleet.devices:
        fleet.start_device(name)
    trouble, hit, end_fault = "", "-", None
    try:
        fleet.wait(lambda: _in_the_middle(watch), options.limit, "the middle of a round", watch.look)
        journal = watch.devices[VICTIM].journal
        hit = f"{len(journal.blocks)} of {journal.planned}" if journal is not None else "-"
        end_fault = fault.inject(trial)
        left = options.limit - (time.monotonic() - began)
        fleet.wait(lambda: fleet.server_exit() is not None, left, "the end of the run", watch.look)
    except (TimeoutError, RuntimeError) as error:
        trouble = str(error)
    finally:
        if end_fault is not None:
            end_fault()
    result = _figures(trial, hit)
    result["complaints"] = ([trouble] if trouble else []) + _complaints(result, fault, options)
    return result


def _in_the_middle(watch: FleetWatch) -> bool:
    journal, status = watch.devices[VICTIM].journal, watch.status
    return (
        status.get("phase") == "training"
        and status.get("round") == _HIT_ROUND
        and journal is not None
        and journal.round == _HIT_ROUND
        and journal.in_the_middle
        and watch.devices[VICTIM].at_work is not None
    )


def _figures(trial: Trial, hit: str) -> dict[str, Any]:
    fleet, watch = trial.fleet, trial.watch
    events = watch.events()  # before devices tell that the server has gone home
    ended = fleet.server_exit() is not None
    summary = fleet.summary() if ended else {}
    devices = summary.get("devices", [])
    rejected: dict[str, int] = {}
    for record in summary.get("rounds", []):
        for reason, count in record["rejected"].items():
            rejected[reason] = rejected.get(reason, 0) + count
    return {
        "hit": hit,
        "lasted": trial.lasted,
        "trained_again": watch.trained_again,
        "server_exit": fleet.server_exit(),
        "status": [run["status"] for run in fleet.flower_runs()] if ended else ["not over"],
        "rounds": len(summary.get("rounds", [])),
        "round_seconds": watch.round_seconds(),
        "contributors": [record["contributors"] for record in summary.get("rounds", [])],
        "tasks": summary.get("tasks", {}),
        "rejected": rejected,
        "device_rounds": [device["rounds"] for device in devices],
        "memory_retries": sum(device["out_of_memory_retries"] for device in devices),
        "peaks": [(device["measured_peak_bytes"] or 0) / device["budget_bytes"] for device in devices],
        "retrained": [
            {"device": again.device, "round": again.round, "block": again.block} for again in watch.retrainings
        ],
        "chosen_exit": summary.get("chosen_exit"),
        "events": events,
        "warnings": watch.serverapp_warnings(),
    }


def _complaints(result: dict[str, Any], fault: Fault, options: argparse.Namespace) -> list[str]:
    """What is not as it must be."""
    found = []
    tasks, count = result["tasks"], len(options.budgets.split(","))
    again = result["trained_again"]
    if result["server_exit"] != 0:
        found.append(f"server ended with {result['server_exit']}")
    # The list is the newest first: a resumed run is another one in Flower's eyes.
    if result["status"][0] != "finished:completed":
        found.append(f"run is {result['status'][0]}")
    if result["rounds"] != options.rounds:
        found.append(f"{result['rounds']} rounds of {options.rounds}")
    if not tasks or tasks["sent"] != sum(tasks[key] for key in _TASKS if key not in ("sent", "resent")):
        found.append("tasks do not add up")
    if any(value < 0 for value in tasks.values()):
        found.append("a task count is negative")
    if any(number > count for contributors in result["contributors"] for number in contributors.values()):
        found.append("a unit has more contributors than there are devices")
    if any(rounds > options.rounds for rounds in result["device_rounds"]):
        found.append("a device was counted twice in a round")
    if result["retrained"]:
        found.append("a finished block was trained again")
    if any(peak > 1 for peak in result["peaks"]):
        found.append("a device was over its budget")
    if fault.concerned == "any" and not again:
        found.append("no device trained again")
    wanted = {"all": [f"device-{index}" for index in range(count)], VICTIM: [VICTIM]}.get(fault.concerned, [])
    found += [f"{name} was not seen to train again" for name in wanted if name not in again]
    return found


def _print_results(results: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, result in results.items():
        if "tasks" not in result:
            rows.append([name, *["-"] * 15, _verdict(result)])
            continue
        tasks = result["tasks"]
        chosen = result["chosen_exit"]
        rows.append(
            [
                name,
                result["hit"],
                f"{result['lasted']:.0f}" if result["lasted"] else "-",
                _seconds_again(result, FAULTS[name]),
                str(result["rounds"]),
                " ".join(f"{seconds:.0f}" for seconds in result["round_seconds"]),
                *(str(tasks.get(key, "-")) for key in _TASKS),
                str(sum(result["rejected"].values())),
                str(len(result["retrained"])),
                f"{100 * chosen['test_accuracy']:.1f} ({chosen['unit']})" if chosen else "-",
                _verdict(result),
            ]
        )
    print(
        "Hit: blocks that the first device had finished in the round, of its plan. Lasted: seconds until the cause was"
    )
    print(
        "mended by hand. Again: seconds from the fault until every device concerned (after a fault of the server: the"
    )
    print("first one) had a training task in hand in processes that had not been at it before; for disk-full from the")
    print("moment of free space. Wall: seconds of each round, evaluations included. Block again: blocks that a device")
    print("had finished and trained again in the same round.")
    header = ["fault", "hit", "lasted", "again", "rounds", "wall", "sent", "answered", "failed", "late used"]
    header += ["late dropped", "never", "resent", "rejected", "block again", "test % (exit)", "verdict"]
    print_table(header, rows)


def _seconds_again(result: dict[str, Any], fault: Fault) -> str:
    again = result["trained_again"]
    if not again or not fault.concerned:
        return "-"
    if fault.concerned == "any":
        return f"{min(again.values()):.0f}"
    if fault.concerned == "all":
        return f"{max(again.values()):.0f}"
    return f"{again[fault.concerned]:.0f}" if fault.concerned in again else "never"


def _verdict(result: dict[str, Any]) -> str:
    if "skipped" in result:
        return f"skipped: {result['skipped']}"
    return "BAD: " + "; ".join(result["complaints"]) if result["complaints"] else "good"


def _print_events(results: dict[str, dict[str, Any]]) -> None:
    print("What server and devices told their users from the fault on, and what the ServerApp warned of.")
    for name, result in results.items():
        if "events" in result:
            print(f"\n{name}: {FAULTS[name].what}")
            for line in [*result["events"], *result["warnings"]]:
                print(f"  {line}")


def _devices(options: argparse.Namespace, victim_state: Path | None, launcher: tuple[str, ...]) -> list[FleetDevice]:
    budgets = options.budgets.split(",")
    return [
        FleetDevice(
            name=f"device-{index}",
            budget=budget,
            partition_id=index,
            partitions=len(budgets),
            data=options.data,
            state=victim_state if index == 0 else None,
            launcher=launcher if index == 0 else (),
        )
        for index, budget in enumerate(budgets)
    ]


def _server_arguments(options: argparse.Namespace, fault: Fault) -> list[str]:
    settings = [f"patience={options.rounds}", "min-improvement=0", *fault.settings, *options.set]
    return [
        "--min-nodes", str(len(options.budgets.split(","))), "--model", options.model, "--width", str(options.width),
        "--data", options.data, "--rounds", str(options.rounds), "--local-epochs", str(options.local_epochs),
        "--seed", str(options.seed), *set_arguments(settings),
    ]  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(FAULTS), help="only this; may be given several times")
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--budgets", default="6MiB,8MiB,12MiB", help="one for each device; faults hit the first")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--local-epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cut-seconds", type=float, default=120, help="how long the network is cut")
    parser.add_argument("--away-seconds", type=float, default=30, help="how long all devices are gone")
    parser.add_argument("--set", action="append", default=[], help="any run setting as key=value")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one fault's run may take")
    parser.add_argument("--keep", type=Path, help="existing folder; everything that was written stays in it")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
