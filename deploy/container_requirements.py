"""What a container build installs: the project's requirements, and pins that leave the base image's torch alone."""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def requirements(pyproject: str, extras: list[str]) -> list[str]:
    """The dependencies of a ``pyproject.toml`` and of the named extras, one requirement a line.

    Raises:
        ValueError: there is no extra of that name.
    """
    project = tomllib.loads(pyproject)["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        if extra not in project["optional-dependencies"]:
            raise ValueError(f"Extra {extra!r} is unknown: there are {', '.join(project['optional-dependencies'])}.")
        lines += project["optional-dependencies"][extra]
    return lines


def pins(constraints: str, installed: dict[str, str]) -> list[str]:
    """The tested set, in which every package of ``installed`` (name to version) is pinned to what is there.

    A board comes with its vendor's torch; pip must neither replace it nor put another beside it.
    """
    kept = [line for line in constraints.splitlines() if _name(line) not in installed]
    return kept + [f"{name}=={found}" for name, found in sorted(installed.items())]


def _name(line: str) -> str:
    found = _NAME.match(line.strip())
    return found.group().lower().replace("_", "-") if found else ""


def _installed(names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Write ``requirements.txt`` and ``pins.txt`` into a folder; run it with the Python that will be installed into."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--extras", default="", help="names with commas between them")
    parser.add_argument("--keep", default="torch,torchvision,numpy", help="packages of the base image to leave alone")
    given = parser.parse_args()
    extras = [name for name in given.extras.split(",") if name]
    try:
        lines = requirements(Path("pyproject.toml").read_text(), extras)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    installed = _installed([name for name in given.keep.split(",") if name])
    (given.out / "requirements.txt").write_text("\n".join(lines) + "\n")
    (given.out / "pins.txt").write_text("\n".join(pins(Path("constraints.txt").read_text(), installed)) + "\n")
    print(f"Left as the base image has it: {installed or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
