"""Hold the dashboards against Grafana's own types: ``python deploy/grafana/validate.py [--packages FOLDER]``.

Grafana publishes its dashboard model as TypeScript. This makes a JSON Schema of the dashboard, and of the options and
the field options of every kind of panel that is used, and validates the committed files. Then it plants faults in them
and fails unless each is found. Needs ``npm`` (with a registry, the first time) and ``jsonschema``; CI does not run it.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator  # type: ignore[import-untyped]

Json = dict[str, Any]
DASHBOARDS = Path(__file__).resolve().parent / "dashboards"
PACKAGES = ("@grafana/schema@13.2.3", "typescript@5", "ts-json-schema-generator@2.4.0")
_RAW = Path("node_modules/@grafana/schema/dist/types/raw")


class GrafanaTypes:
    """JSON Schemas of Grafana's types, each made when it is first asked for.

    Args:
        folder: with the npm packages.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._validators: dict[tuple[str, str], Draft7Validator] = {}

    def dashboard(self) -> Draft7Validator:
        """Of a whole dashboard; panel options are anything in it."""
        return self._validator("dashboard/x/types.gen.d.ts", "Dashboard")

    def options(self, kind: str) -> Draft7Validator:
        """Of a panel's ``options``."""
        return self._validator(f"composable/{kind}/panelcfg/x/types.gen.d.ts", "Options")

    def custom(self, kind: str) -> Draft7Validator:
        """Of ``fieldConfig.defaults.custom``; an empty object where a kind of panel has none."""
        path = f"composable/{kind}/panelcfg/x/types.gen.d.ts"
        if "export interface FieldConfig" not in (self._folder / _RAW / path).read_text():
            return Draft7Validator({"type": "object", "additionalProperties": False})
        return self._validator(path, "FieldConfig")

    def field(self) -> Draft7Validator:
        """Of ``fieldConfig.defaults``."""
        return self._validator("dashboard/x/types.gen.d.ts", "FieldConfig")

    def _validator(self, path: str, name: str) -> Draft7Validator:
        if (path, name) not in self._validators:
            program = str(self._folder / "node_modules/.bin/ts-json-schema-generator")
            command = [program, "--path", str(_RAW / path), "--type", name, "--no-type-check"]
            done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"No schema of {name} in {path}: {done.stderr.strip()[-500:]}")
            self._validators[path, name] = Draft7Validator(json.loads(done.stdout))
        return self._validators[path, name]


def faults(dashboard: Json, types: GrafanaTypes) -> Iterator[str]:
    """What is wrong with a dashboard."""
    yield from _errors(types.dashboard(), dashboard, "dashboard")
    for panel in dashboard["panels"]:
        if panel.get("type", "row") == "row":
            continue
        where = f"panel '{panel['title']}'"
        yield from _errors(types.options(panel["type"]), panel["options"], f"{where}: options")
        config = panel["fieldConfig"]
        custom = types.custom(panel["type"])
        yield from _errors(custom, config["defaults"].get("custom", {}), f"{where}: custom")
        for override in config.get("overrides", []):
            for given in override["properties"]:
                prefix, _, name = given["id"].rpartition(".")
                yield from _errors(
                    custom if prefix == "custom" else types.field(), {name: given["value"]}, f"{where}: {given['id']}",
                    required=False,
                )  # fmt: skip


def _errors(validator: Draft7Validator, value: Any, where: str, *, required: bool = True) -> Iterator[str]:
    for error in validator.iter_errors(value):
        if required or error.validator != "required" or error.path:
            yield f"{where}: {'.'.join(map(str, error.path))}: {error.message[:300]}"


def planted(dashboard: Json) -> Iterator[tuple[str, Json]]:
    """The dashboard with one fault each, and what it is."""

    def panel(damaged: Json, kind: str) -> Json:
        found: Json = next(one for one in damaged["panels"] if one["type"] == kind)
        return found

    def damage(change: Callable[[Json], object]) -> Json:
        damaged = copy.deepcopy(dashboard)
        change(damaged)
        return damaged

    kinds = {one["type"] for one in dashboard["panels"]}
    yield "unknown field of the dashboard", damage(lambda one: one.update(tytle="x"))
    yield "a time range that is a text", damage(lambda one: one.update(time="now-1h"))
    yield "a panel without a type", damage(lambda one: one["panels"][1].pop("type"))
    thresholds = {"mode": "relative", "steps": []}
    yield (
        "a threshold mode that does not exist",
        damage(lambda one: panel(one, "timeseries")["fieldConfig"]["defaults"].update(thresholds=thresholds)),
    )
    yield (
        "a draw style that does not exist",
        damage(lambda one: panel(one, "timeseries")["fieldConfig"]["defaults"]["custom"].update(drawStyle="lines")),
    )
    yield (
        "a legend placement that does not exist",
        damage(lambda one: panel(one, "timeseries")["options"]["legend"].update(placement="left")),
    )
    yield "a tooltip that is missing", damage(lambda one: panel(one, "timeseries")["options"].pop("tooltip"))
    yield "a width that is a text", damage(lambda one: one["panels"][1]["gridPos"].update(w="12"))
    if "stat" in kinds:
        yield "an unknown option of a stat panel", damage(lambda one: panel(one, "stat")["options"].update(color="red"))
    if "table" in kinds:
        yield (
            "an unknown field option in an override",
            damage(
                lambda one: panel(one, "table")["fieldConfig"]["overrides"][0]["properties"].append(
                    {"id": "custom.colour", "value": "red"}
                )
            ),
        )
    if "xychart" in kinds:
        yield (
            "an XY mapping that does not exist",
            damage(lambda one: panel(one, "xychart")["options"].update(mapping="by hand")),
        )


def main() -> int:
    """Validate, then plant faults; returns the exit status."""
    parser = argparse.ArgumentParser(description="Hold the dashboards against Grafana's own types.")
    parser.add_argument("--packages", type=Path, help="folder of the npm packages, kept; a temporary one otherwise")
    given = parser.parse_args().packages
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if given is None else given.resolve()
        if not (folder / _RAW).exists():
            folder.mkdir(parents=True, exist_ok=True)
            install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
            subprocess.run(install, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        return _report(GrafanaTypes(folder))


def _report(types: GrafanaTypes) -> int:
    wrong = 0
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        found = list(faults(dashboard, types))
        for fault in found:
            print(f"{path.name}: {fault}", file=sys.stderr)
        damaged = list(planted(dashboard))
        overlooked = [name for name, one in damaged if len(list(faults(one, types))) <= len(found)]
        for name in overlooked:
            print(f"{path.name}: overlooked: {name}", file=sys.stderr)
        panels = sum(panel["type"] != "row" for panel in dashboard["panels"])
        caught = f"{len(damaged) - len(overlooked)} of {len(damaged)} planted faults found"
        print(f"{path.name}: {panels} panels, {len(found)} faults; {caught}")
        wrong += len(found) + len(overlooked)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
