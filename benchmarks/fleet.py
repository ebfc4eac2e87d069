"""A fleet of mixed budgets on CIFAR-10: NeuroFlux beside FedAvg with backpropagation, on the same shares of the data.

Run from the repository's root: ``python -m benchmarks.fleet --data DIR``. Every arm is the product's own
``neuroflux-fl simulate`` with the same devices, seed, rounds and local passes, so each device that takes part
processes the same number of samples; a progressive NeuroFlux round sends them through one stage only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.report import describe_setting, print_setting, print_table, simulate, write_json
from neuroflux_fl.sizes import MIB

ARMS: dict[str, list[str]] = {
    "neuroflux progressive": ["--method", "neuroflux", "--schedule", "progressive"],
    "neuroflux joint": ["--method", "neuroflux", "--schedule", "joint"],
    "fedavg, every device": ["--method", "backprop-all"],
    "fedavg, fitting devices": ["--method", "backprop-fitting"],
}


def main() -> None:
    options = _parse()
    setting = describe_setting(
        model=f"{options.model} width {options.width}",
        images=f"{options.train_limit} for training, {options.test_limit} for testing",
        rounds=f"{options.rounds} with {options.local_epochs} local passes",
        budgets=options.budgets,
        alpha=options.alpha,
        threads=options.threads or "every core",
        seed=options.seed,
    )
    print_setting(setting)
    results: dict[str, Any] = {}
    for name in options.arms or ARMS:
        results[name] = _simulate(options, ARMS[name])
        _print_curve(name, results[name])
    _print_comparison(results)
    write_json(options.json, {"setting": setting, "arms": results})


def _simulate(options: argparse.Namespace, arm: list[str]) -> Any:
    return simulate(
        "--data", options.data, "--model", options.model, "--width", options.width,
        "--devices", 8, "--budgets", options.budgets, "--alpha", options.alpha, "--seed", options.seed,
        "--rounds", options.rounds, "--local-epochs", options.local_epochs,
        "--train-limit", options.train_limit, "--test-limit", options.test_limit,
        "--set", f"stage-units={options.stage_units}", "--set", f"patience={options.rounds}",
        "--set", "min-improvement=0", "--set", f"learning-rate={options.learning_rate}",
        "--workers", 0, "--threads", options.threads, *arm,
    )  # fmt: skip


def _print_curve(name: str, summary: dict[str, Any]) -> None:
    """Test accuracy of every exit after every round, as far as the round trained it."""
    units = sorted({int(unit) for record in summary["rounds"] for unit in record["test"]})
    print(f"{name}: test accuracy of exits, %")
    rows = [
        [str(record["round"]), *(_percent(record["test"].get(unit, record["test"].get(str(unit)))) for unit in units)]
        for record in summary["rounds"]
    ]
    print_table(["round", *(f"exit {unit}" for unit in units)], rows)


def _print_comparison(results: dict[str, Any]) -> None:
    rows = []
    for name, summary in results.items():
        devices = [device for device in summary["devices"] if device["samples"]]
        peaks = [device["measured_peak_bytes"] or 0 for device in devices]
        over = sum(peak > device["budget_bytes"] for peak, device in zip(peaks, devices, strict=True))
        chosen = summary["chosen_exit"]
        rows.append(
            [
                name,
                f"{chosen['unit']}",
                _percent(chosen["test_accuracy"]),
                f"{chosen['parameters'] / 1e6:.2f} M",
                str(len(devices)),
                str(summary["samples"]),
                f"{summary['bytes_up'] / MIB:.0f}",
                f"{summary['bytes_down'] / MIB:.0f}",
                f"{summary['device_seconds']:.0f}",
                f"{max(peaks) / MIB:.0f}",
                str(over),
            ]
        )
    header = ["arm", "exit", "test %", "parameters", "devices", "samples", "MiB up", "MiB down", "device-s", "peak MiB"]
    print_table([*header, "over budget"], rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with CIFAR-10 as Parquet files, or cifar10 to download")
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--budgets", default="48MiB,64MiB,96MiB,128MiB,192MiB,256MiB,320MiB,384MiB")
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--local-epochs", type=int, default=2)
    parser.add_argument("--stage-units", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.1, help="at batch 64")
    parser.add_argument("--train-limit", type=int, default=2000)
    parser.add_argument("--test-limit", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 takes every core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", action="append", choices=list(ARMS), help="only these; may be given several times")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
