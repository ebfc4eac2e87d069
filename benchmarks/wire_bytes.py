"""Bytes between server and devices: NeuroFlux in full precision, float16 and int8, beside FedAvg with backpropagation.

Run from the repository's root: ``python -m benchmarks.wire_bytes``. Every arm is the product's own
``neuroflux-fl simulate`` with the same devices and seed. Bytes do not depend on how many images there are, so there
are few. Counted are arrays and protocol messages, as they are handed to Flower.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.report import describe_setting, print_setting, print_table, simulate, write_json
from neuroflux_fl.sizes import MIB
from neuroflux_fl.update_codec import PRECISIONS

SCHEDULES = {
    "fedavg": ["--method", "backprop-all"],
    "progressive": ["--schedule", "progressive"],
    "joint": ["--schedule", "joint"],
}


def main() -> None:
    options = _parse()
    setting = describe_setting(
        model=f"{options.model} width {options.width}, stages of {options.stage_units} units",
        devices=f"{options.devices}, budgets {options.budgets}",
        rounds=options.rounds,
        data=options.data,
        seed=options.seed,
    )
    print_setting(setting)
    results: dict[str, dict[str, Any]] = {}
    for schedule, arguments in SCHEDULES.items():
        for precision in PRECISIONS:
            results[f"{schedule} {precision}"] = _simulate(
                options, [*arguments, "--set", f"update-precision={precision}"]
            )
    _print(results, options.devices)
    write_json(options.json, {"setting": setting, "arms": results})


def _simulate(options: argparse.Namespace, arm: list[str]) -> Any:
    return simulate(
        "--data", options.data, "--model", options.model, "--width", options.width, "--seed", options.seed,
        "--devices", options.devices, "--budgets", options.budgets, "--partition", "iid",
        "--rounds", options.rounds, "--local-epochs", 1, "--train-limit", options.train_limit, "--test-limit", 40,
        "--set", f"stage-units={options.stage_units}", "--set", "min-improvement=0", "--set", "views=1",
        "--set", "learning-rate=0.03", "--set", "server-tests=false", "--workers", 0, *arm,
    )  # fmt: skip


def _print(results: dict[str, dict[str, Any]], devices: int) -> None:
    baseline = _per_device(results["fedavg float32"], devices, "bytes_up")
    rows = []
    for name, summary in results.items():
        up = _per_device(summary, devices, "bytes_up")
        down = _per_device(summary, devices, "bytes_down")
        error = max(device["update_error"] for device in summary["devices"])
        rows.append(
            [
                name,
                " ".join(f"{value / MIB:.2f}" for value in up),
                " ".join(f"{value / MIB:.2f}" for value in down),
                f"{sum(up) / sum(baseline):.3f}",
                f"{100 * error:.3f} %" if error else "-",
            ]
        )
    header = ["arm", "MiB up a device, by round", "MiB down", "up, times FedAvg", "largest coding error"]
    print_table(header, rows)
    print("Coding error: Euclidean norm of what coding lost over that of what training moved, largest of any unit.")


def _per_device(summary: dict[str, Any], devices: int, key: str) -> list[float]:
    """Mean bytes of a device in each round."""
    return [record[key] / devices for record in summary["rounds"]]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="vgg11")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--budgets", default="64MiB,128MiB,256MiB,384MiB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stage-units", type=int, default=4)
    parser.add_argument("--train-limit", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
