"""Write the alert rules: ``deploy/prometheus/rules.yml``.

``python deploy/prometheus/generate_rules.py`` writes them; with ``--check`` it writes nothing and exits with 1 when the
committed file is not what this code gives. Needs ``pyyaml``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from alerts import Alert, alerts

FILE = Path(__file__).resolve().parent / "rules.yml"
_HEAD = "# Made by generate_rules.py from alerts.py: change that and make this anew.\n"


def rules_text() -> str:
    """The file's content."""
    groups = {"groups": [{"name": "neuroflux", "interval": "15s", "rules": [_rule(alert) for alert in alerts()]}]}
    text: str = yaml.safe_dump(groups, sort_keys=False, width=10_000, allow_unicode=True)
    return _HEAD + text


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        **({"for": alert.lasts} if alert.lasts else {}),
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.description, "action": alert.action},
    }


def main() -> int:
    """Generate or check; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the alert rules.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the committed file is stale")
    if not parser.parse_args().check:
        FILE.write_text(rules_text(), encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != rules_text():
        print("rules.yml is stale: run python deploy/prometheus/generate_rules.py and commit it.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
