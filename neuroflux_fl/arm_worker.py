"""An arm in a process of its own, so that its peak memory is its own: both sides of the talk, one JSON a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from neuroflux_fl import errors
from neuroflux_fl.arm_run import CurvePoint, Schedule, TimedPass, TrainedArm, time_pass, train_arm
from neuroflux_fl.arm_tuning import Refusal, TunedArm, tune
from neuroflux_fl.arms import Arm, ArmSetting
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.data import load_data
from neuroflux_fl.device_memory import warm_up_kernels
from neuroflux_fl.errors import NeurofluxError
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.machine_speed import measure_speed
from neuroflux_fl.memory_allocator import allocator_environment, return_freed_memory_at_once
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.planning import PlannerSettings

_CPU = torch.device("cpu")
_PATIENCE_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRequest:
    """Arguments of ``load_data``."""

    name: str
    image_side: int | None = None
    train_limit: int | None = None
    test_limit: int | None = None
    seed: int = 0


class ArmWorker:
    """The parent's side: a worker that has one arm, and one tuned plan of it at a time. Use it in a ``with``."""

    def __init__(self, arm: str, setting: ArmSetting, *, limited: bool, threads: int, seed: int) -> None:
        """Start the process.

        Args:
            arm: its name.
            setting: what all arms have alike.
            limited: whether freed memory goes back to the kernel at once, as it must under a budget.
            threads: of torch; 0 leaves them alone.
            seed: of weights, order and noise.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "neuroflux_fl.arm_worker"],
            env=os.environ | allocator_environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = arm
        self._start = {"arm": arm, "setting": asdict(setting), "limited": limited, "threads": threads, "seed": seed}

    def tune(self, budget_bytes: int | None) -> TunedArm | Refusal:
        """Choose how the arm runs under a budget, and keep that for what follows."""
        answer = self._ask({"do": "tune", "budget_bytes": budget_bytes})
        return Refusal(**answer) if "needed_bytes" in answer else _tuned(answer)

    def time_pass(self, seconds: float) -> TimedPass:
        """A timed pass of the tuned arm."""
        return TimedPass(**self._ask({"do": "pass", "seconds": seconds}))

    def train(self, data: DataRequest, schedule: Schedule, on_point: Callable[[CurvePoint], None]) -> TrainedArm:
        """A real training of the tuned arm.

        Raises:
            DataError: the data cannot be loaded.
        """
        asked = {"do": "train", "data": asdict(data), "schedule": asdict(schedule)}
        answer = self._ask(asked, lambda point: on_point(CurvePoint(**point)))
        curve = tuple(CurvePoint(**point) for point in answer.pop("curve"))
        return TrainedArm(curve=curve, **answer)

    def __enter__(self) -> ArmWorker:
        """Wait until it is ready: it measures its machine's speed, beside which no other may start."""
        try:
            self._ask(self._start)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()  # its temporary folders go before it does
        try:
            self._process.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _ask(self, request: dict[str, Any], on_point: Callable[[Any], None] = lambda _: None) -> Any:
        try:
            self._send(request)
            while "point" in (answer := json.loads(self._read())):
                on_point(answer["point"])
        except (OSError, ValueError) as error:
            code = self._process.wait(timeout=_PATIENCE_SECONDS)
            raise NeurofluxError(
                f"The process of method {self._name} ended with code {code}: see above. "
                "Where the system ended it, free some memory or compare fewer methods."
            ) from error
        if "error" not in answer:
            return answer["value"]
        cls = getattr(errors, answer["kind"], NeurofluxError)
        raise cls(answer["error"])

    def _send(self, request: dict[str, Any]) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def _read(self) -> str:
        return self._process.stdout.readline() if self._process.stdout is not None else ""


class _Served:
    """The worker's side."""

    def __init__(self, request: dict[str, Any]) -> None:
        if request["threads"]:
            torch.set_num_threads(request["threads"])
        if request["limited"]:
            return_freed_memory_at_once()
        warm_up_kernels()
        self._seed = request["seed"]
        self._arm = Arm(request["arm"], _setting(request["setting"]), measure_speed(_CPU))
        self._tuned: TunedArm

    def answer(self, request: dict[str, Any]) -> Any:
        """``tune`` first, then any number of ``pass`` and ``train``."""
        if request["do"] == "tune":
            tuned = tune(self._arm, request["budget_bytes"], _CPU)
            if isinstance(tuned, TunedArm):
                self._tuned = tuned
            return asdict(tuned)
        if request["do"] == "pass":
            return asdict(time_pass(self._arm, self._tuned, request["seconds"], seed=self._seed, device=_CPU))
        trained = train_arm(
            self._arm,
            self._tuned,
            load_data(**request["data"]),
            Schedule(**request["schedule"]),
            seed=self._seed,
            device=_CPU,
            on_point=lambda point: _write(point=asdict(point)),
        )
        return asdict(trained)


def _setting(fields: dict[str, Any]) -> ArmSetting:
    made = {
        "image_shape": tuple(fields["image_shape"]),
        "head": HeadSettings(**fields["head"]),
        "planner": PlannerSettings(**fields["planner"]),
        "optimizer": OptimizerSettings(**fields["optimizer"]),
    }
    return ArmSetting(**{**fields, **made})


def _tuned(fields: dict[str, Any]) -> TunedArm:
    """What ``asdict`` and JSON have made of a tuned arm."""
    plan = fields["plan"]
    blocks = []
    for block in plan["blocks"]:
        windows = tuple(
            Window(**{**window, "checkpoints": tuple(window["checkpoints"])}) for window in block["windows"]
        )
        blocks.append(Block(**{**block, "windows": windows}))
    return TunedArm(
        plan=Plan(
            budget_bytes=plan["budget_bytes"], blocks=tuple(blocks), untrained_units=tuple(plan["untrained_units"])
        ),
        compute=ComputeSettings(**fields["compute"]),
        tuning_seconds=fields["tuning_seconds"],
    )


def _write(**answer: Any) -> None:
    try:
        print(json.dumps(answer), flush=True)
    except BrokenPipeError:  # the parent was killed: nobody waits for the rest, and temporary folders go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would fail loudly
        sys.exit(0)


def _stop(*_signal: object) -> None:
    sys.exit(0)


def _serve() -> None:
    """Answer until the input ends. Ctrl-C and a closed terminal are the parent's to act upon."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    served: _Served | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if served is None:
                served = _Served(request)
                _write(value=None)
            else:
                _write(value=served.answer(request))
        except NeurofluxError as error:
            _write(kind=type(error).__name__, error=str(error))


if __name__ == "__main__":
    _serve()
