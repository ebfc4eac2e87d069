"""Flower's own command ``flwr``, asked for JSON and believed only when the JSON says that it worked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from neuroflux_fl.errors import FleetError
from neuroflux_fl.flower_environment import flower_command
from server.state_folder import CONNECTION, ServerState

PUBLIC_KEY_IN_USE = 23
NODE_NOT_FOUND = 24
_TIMEOUT_SECONDS = 60
_CODE = re.compile(r"\[code: (\d+)\]")


class FlowerRefusal(FleetError):
    """Flower answered, and its answer is no; ``code`` is the SuperLink's, or None."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


def ask_flower(state: ServerState, command: Sequence[str]) -> dict[str, Any]:
    """Run ``flwr COMMAND fleet --format json`` against the server of a state folder.

    Args:
        state: Where the server keeps the connection named ``fleet``.
        command: For example ``("supernode", "list")``. Nothing secret: other users of this machine can see it.

    Returns:
        What Flower printed.

    Raises:
        FleetError: there is no server in that folder, it does not answer, or Flower's answer makes no sense.
        FlowerRefusal: Flower refused.
        DependencyError: Flower's command is not installed.
    """
    if not state.flwr_config.exists():
        raise FleetError(f"No server was ever started in {state.root}: run neuroflux-fl server --state {state.root}.")
    environment = state.flower_environment() | {"PYTHONUTF8": "1", "NO_COLOR": "1", "TERM": "dumb"}
    environment.pop("FORCE_COLOR", None)  # It would colour the JSON.
    spoken = " ".join(["flwr", *command[:2]])
    try:
        done = subprocess.run(
            [flower_command("flwr"), *command, CONNECTION, "--format", "json"],
            # Flower takes an argument for a folder if there is one of that name where it runs.
            cwd=state.flwr_home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FleetError(
            f"Server of {state.root} did not answer {spoken} in {_TIMEOUT_SECONDS} s: see its log."
        ) from error
    answer = _parse(done.stdout)
    if answer is None:
        raise FleetError(
            f"Command {spoken} ended with exit code {done.returncode} and no answer: see the server's log."
        )
    if answer.get("success") is not True:  # The exit code is 0 all the same.
        raise _refusal(state, spoken, str(answer.get("error-message", "")))
    return answer


def _parse(output: str) -> dict[str, Any] | None:
    start = output.find("{")  # Flower may speak before it answers.
    try:
        answer = json.loads(output[start:]) if start >= 0 else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _refusal(state: ServerState, spoken: str, message: str) -> FleetError:
    # What Flower was doing comes first, what went wrong last.
    reason = next((line.strip() for line in reversed(message.splitlines()) if line.strip()), "no reason given")
    if "is unavailable" in reason:
        return FleetError(
            f"Server of {state.root} does not answer: is it running? Start neuroflux-fl server --state {state.root}."
        )
    code = _CODE.search(reason)
    return FlowerRefusal(f"Command {spoken} failed: {reason}", None if code is None else int(code.group(1)))
