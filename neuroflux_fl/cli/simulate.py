"""``neuroflux-fl simulate``: a fleet of unequal devices on this machine, with the code that real devices run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroflux_fl.cli.fleet_summary import blocks_cell, print_summary
from neuroflux_fl.cli.output import (
    log_progress,
    make_progress,
    make_table,
    percent_cell,
    print_json,
    result_console,
    size_cell,
)
from neuroflux_fl.cli.run_options import configure
from neuroflux_fl.cli.threads import check_threads
from neuroflux_fl.errors import UsageError

if TYPE_CHECKING:
    from neuroflux_fl.run_config import RunConfig, Value
    from server.device_totals import DeviceTotals
    from server.fleet_state import RoundRecord


def simulate(
    model: Annotated[str | None, typer.Option(help="vgg11, vgg13, vgg16, vgg19, resnet18 or resnet34.")] = None,
    width: Annotated[float | None, typer.Option(help="Factor on the channels of a VGG.")] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, cifar10, cifar100, fashion-mnist, or a folder (images or Parquet).")
    ] = None,
    devices: Annotated[int, typer.Option(help="Number of devices.")] = 8,
    budgets: Annotated[
        str | None, typer.Option(help="Memory budgets, dealt out in turn, for example 48MiB,96MiB.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Dirichlet concentration of classes: small is uneven.")] = None,
    partition: Annotated[str | None, typer.Option(help="iid, dirichlet or shards.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds in all.")] = None,
    local_epochs: Annotated[int | None, typer.Option(help="Passes over its data a device makes in a round.")] = None,
    schedule: Annotated[str | None, typer.Option(help="progressive (stage after stage) or joint.")] = None,
    aggregation: Annotated[str | None, typer.Option(help="fedavg or fednova.")] = None,
    method: Annotated[str | None, typer.Option(help="neuroflux, backprop-all or backprop-fitting.")] = None,
    head: Annotated[str | None, typer.Option(help="compact, conv, separable or pooled.")] = None,
    reach: Annotated[
        int | None,
        typer.Option(help="Units that one gradient passes through, at most; 0: as memory allows, up to a quarter."),
    ] = None,
    cohort: Annotated[int | None, typer.Option(help="Devices drawn for a round; 0 takes all.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Use this many training images; 0 uses all.")] = None,
    test_limit: Annotated[int | None, typer.Option(help="Use this many test images; 0 uses all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, shares, cohorts, order and augmentation.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of run settings; flags win over it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any run setting as key=value; may be given several times.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; 0 runs all devices in this process. Default: one a core.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch in each process; 0 divides the cores.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for run.json, rounds.jsonl and the exit.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics on this port of 127.0.0.1 during the run.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every device's plan and train nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Simulate a fleet: devices with different memory budgets train their blocks, the server aggregates per unit.

    Without options it trains a quarter-width VGG-11 on scikit-learn's bundled digits with 8 devices and 4 budgets, in
    under three minutes on two cores, offline.

    Example: neuroflux-fl simulate --model vgg11 --data ~/cifar10 --devices 8 --budgets 48MiB,96MiB,192MiB,384MiB
    --alpha 0.3 --rounds 20 --out runs/fleet
    """
    flags = {
        "model": model, "width": width, "data": data, "budgets": budgets, "alpha": alpha, "partition": partition,
        "num-server-rounds": rounds, "local-epochs": local_epochs, "schedule": schedule, "aggregation": aggregation,
        "method": method, "head": head, "reach": reach, "cohort": cohort, "train-limit": train_limit,
        "test-limit": test_limit, "seed": seed, "out": None if out is None else str(out),
    }  # fmt: skip
    if devices < 1:
        raise UsageError(f"Devices {devices} is too small: a fleet has at least 1 device.")
    if workers is None:
        cores = os.cpu_count() or 1
        workers = min(cores, devices) if cores > 1 and devices > 1 else 0
    if workers < 0:
        raise UsageError(f"Workers {workers} is negative: give 1 or more, or 0 to run all devices in this process.")
    check_threads(threads)
    # Simulated fleets answer at once: they do not pause between polls.
    run_config = configure(flags, config, set_ or [], defaults={"poll-seconds": 0.0})
    if resume and out is None:
        raise UsageError("--resume needs --out: the folder of the run that was interrupted.")
    with tempfile.TemporaryDirectory(prefix="neuroflux-fleet-") as folder:
        nodes = _nodes(run_config, devices, Path(folder) if out is None else out / "devices")
        if dry_run:
            _show_plans(run_config, nodes, json)
            return
        run_config = replace(run_config, run_name=run_config.run_name or _run_name(out))
        # Metrics are read from the run's folder, as those of a real fleet are.
        results = Path(folder) / "run" if out is None and metrics_port is not None else None
        with _metrics(metrics_port, out or results):
            summary = _run(
                run_config if results is None else replace(run_config, out=str(results)),
                nodes,
                workers=workers,
                threads=threads,
                resume=resume,
            )
        summary["config"]["out"] = run_config.out
    if json:
        print_json(summary)
    else:
        print_summary(summary)


def _nodes(config: RunConfig, devices: int, folder: Path) -> dict[int, dict[str, Value]]:
    """Node configurations by node id, as ``flower-supernode --node-config`` would give them."""
    budgets = config.budget_list()
    return {
        index + 1: {
            "partition-id": index,
            "num-partitions": devices,
            "memory-budget": str(budgets[index % len(budgets)]),
            "device-class": f"simulated-{index % len(budgets)}",
            "state-folder": str(folder / f"device-{index}"),
        }
        for index in range(devices)
    }


def _run_name(out: Path | None) -> str:
    """The folder's name as a label."""
    from neuroflux_fl.run_config import LONGEST_RUN_NAME

    name = "" if out is None else out.resolve().name
    return "".join(letter for letter in name if letter.isprintable())[:LONGEST_RUN_NAME] or "simulation"


def _run(
    config: RunConfig, nodes: dict[int, dict[str, Value]], *, workers: int, threads: int, resume: bool
) -> dict[str, Any]:
    from neuroflux_fl.fleet_model import device_share, run_data, run_network

    # Bad data and bad shares are found here, before any process is started.
    data = run_data(config)
    run_network(config)
    for node in nodes.values():
        device_share(config, data, int(node["partition-id"]), len(nodes))
    return _run_grid(config, nodes, workers=workers, threads=threads, resume=resume)


def _run_grid(
    config: RunConfig,
    nodes: dict[int, dict[str, Value]],
    *,
    workers: int,
    threads: int,
    resume: bool,
) -> dict[str, Any]:
    import torch

    from clients.app import app
    from clients.process import prepare_process
    from server.grid import InProcessGrid
    from server.grid_workers import worker_grid
    from server.run import execute_run

    cores = os.cpu_count() or 1
    if workers:
        torch.set_num_threads(1)
        grid = worker_grid(
            "clients.app:app",
            nodes,
            config.to_flat(),
            workers=min(workers, len(nodes)),
            torch_threads=threads or max(1, cores // workers),
            initializer="clients.process:prepare_process",
        )
    else:
        torch.set_num_threads(threads or cores)
        prepare_process()
        grid = InProcessGrid(app, nodes, config.to_flat())
    with grid, make_progress() as progress:
        task = progress.add_task("starting", total=config.num_server_rounds)

        def observe(record: RoundRecord, devices: Sequence[DeviceTotals]) -> None:
            progress.update(task, completed=record.round, description=_describe(record))
            log_progress(f"round {record.round}/{config.num_server_rounds}: {_describe(record)}")

        return execute_run(grid, config, observer=observe, resume=resume)


@contextmanager
def _metrics(port: int | None, out: Path | None) -> Iterator[None]:
    """Serves the run's and its devices' metrics while the block lasts, read from the run's folder."""
    if port is None or out is None:
        yield
        return
    from neuroflux_fl.exposition import Collected, exposition, make_registry
    from neuroflux_fl.metrics_http import METRICS_TYPE, serve_pages
    from server.fleet_samples import fleet_samples
    from server.run_folder import read_run_folder
    from server.run_setting import SETTING_FILE
    from server.simulated_devices import simulated_device_samples

    def samples() -> Iterator[Collected]:
        if (out / SETTING_FILE).exists():
            run = read_run_folder(out, answers=False)
            yield from fleet_samples(run)
            yield from simulated_device_samples(run)

    registry = make_registry(samples)
    with serve_pages({"/metrics": (METRICS_TYPE, lambda: exposition(registry))}, host="127.0.0.1", port=port):
        yield


def _describe(record: Any) -> str:
    accuracies = record.test or record.exits
    shown = ", ".join(f"exit {unit} {percent_cell(accuracy)}" for unit, accuracy in accuracies.items())
    return f"stage {record.stage}, {shown or 'no exit scored'}"


def _show_plans(config: RunConfig, nodes: dict[int, dict[str, Value]], as_json: bool) -> None:
    import torch

    from clients.device import run_profile
    from neuroflux_fl.cli.plan import plan_fields
    from neuroflux_fl.errors import BudgetError
    from neuroflux_fl.fleet_model import device_share, run_data, run_network
    from neuroflux_fl.planning import plan_backpropagation, plan_units

    data = run_data(config)
    network = run_network(config)
    profile = run_profile(config, torch.device("cpu"))
    rows = []
    for node in nodes.values():
        examples = len(device_share(config, data, int(node["partition-id"]), len(nodes)).train)
        budget = int(node["memory-budget"])
        settings = config.planner_settings(examples=examples)
        row: dict[str, Any] = {"device": node["partition-id"], "budget_bytes": budget, "train_examples": examples}
        try:
            if config.method == "neuroflux":
                row |= plan_fields(plan_units(profile, budget, settings))
            else:
                limit = None if config.method == "backprop-all" else budget
                row |= plan_fields(plan_backpropagation(profile, limit, settings))
        except BudgetError as error:
            row |= {"blocks": [], "untrained_units": list(range(len(network))), "note": str(error)}
        rows.append(row)
    if as_json:
        print_json({"config": config.to_flat(), "devices": rows})
        return
    table = make_table("Plans, all units at once", ["device", "budget", "images", "blocks: units x batch", "untrained"])
    for row in rows:
        table.add_row(
            str(row["device"]), size_cell(row["budget_bytes"]), str(row["train_examples"]), blocks_cell(row["blocks"]),
            str(row["untrained_units"] or "-"),
        )  # fmt: skip
    result_console.print(table)
