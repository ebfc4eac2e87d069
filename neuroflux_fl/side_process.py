"""Heavy work in a process of its own, for commands that live for weeks and should stay small: torch never gets in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neuroflux_fl import errors
from neuroflux_fl.errors import NeurofluxError


def ask_side_process(module: str, request: Any, *, environment: Mapping[str, str], folder: Path) -> Any:
    """Run ``python -m module``, which calls ``answer_request``; give it a JSON value and return the one it answers.

    Args:
        module: of an installed package.
        request: what the work is to be done on.
        environment: of the process.
        folder: its working directory, and what relative paths in the request start from.

    Raises:
        NeurofluxError: of the class that the work raised, or the process came to another end.
    """
    done = subprocess.run(
        # -P: what happens to lie in the folder must not be taken for a package.
        [sys.executable, "-P", "-m", module],
        cwd=folder, env=dict(environment), input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        answer = json.loads(done.stdout)
        if "error" not in answer:
            return answer["value"]
    except (ValueError, KeyError, TypeError) as error:
        last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise NeurofluxError(f"Process {module} ended without an answer: {last}") from error
    cls = getattr(errors, answer["kind"], None)
    is_ours = isinstance(cls, type) and issubclass(cls, NeurofluxError)
    raise (cls if is_ours else NeurofluxError)(answer["error"])  # type: ignore[misc]


def answer_request(work: Callable[[Any], Any]) -> None:
    """The process's side: read the request, and answer with what ``work`` makes of it, or why it cannot."""
    try:
        answer = {"value": work(json.load(sys.stdin))}
    except NeurofluxError as error:
        answer = {"kind": type(error).__name__, "error": str(error)}
    sys.stdout.write(json.dumps(answer))
