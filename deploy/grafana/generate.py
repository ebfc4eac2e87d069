"""Write the dashboards: ``deploy/grafana/dashboards/*.json``.

``python deploy/grafana/generate.py`` writes them; with ``--check`` it writes nothing and exits with 1 when the
committed files are not what this code gives. Needs ``pip install "neuroflux-fl[dashboards]"``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from device_dashboard import device_dashboard
from fleet_dashboard import fleet_dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from training_dashboard import training_dashboard

FOLDER = Path(__file__).resolve().parent / "dashboards"


def dashboards() -> dict[str, str]:
    """Content by file name."""
    made = {"fleet": fleet_dashboard(), "device": device_dashboard(), "training": training_dashboard()}
    return {f"{name}.json": as_json(dashboard) for name, dashboard in made.items()}


def as_json(dashboard: Dashboard) -> str:
    """The dashboard's text, the same for the same dashboard."""
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(dashboard) + "\n"


def main() -> int:
    """Generate or check; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the committed files are stale")
    check = parser.parse_args().check
    stale = 0
    for name, text in dashboards().items():
        path = FOLDER / name
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{name} is stale: run python deploy/grafana/generate.py and commit the result.", file=sys.stderr)
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
