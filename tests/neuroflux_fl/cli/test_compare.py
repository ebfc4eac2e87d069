"""``compare``: what it prints, draws and refuses."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroflux_fl import machine_speed
from neuroflux_fl.arm_run import CurvePoint, TimedPass, TrainedArm
from neuroflux_fl.arm_tuning import Refusal, TunedArm
from neuroflux_fl.arm_worker import ArmWorker
from neuroflux_fl.arms import ArmSetting
from neuroflux_fl.cli.compare_picture import write_picture
from neuroflux_fl.cli.compare_view import comparison_fields, describe_how, print_comparisons, time_to
from neuroflux_fl.cli.main import main
from neuroflux_fl.cli.output import check_precision
from neuroflux_fl.comparison import ArmResult, Budget
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.sizes import MIB

SMALL = ["--model", "vgg11", "--width", "0.05", "--image", "1x32x32", "--threads", "1"]
LIMIT = Budget(asked="smallest", bytes=4 * MIB)
NO_LIMIT = Budget(asked="none", bytes=None)

Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["neuroflux-fl", "compare", *arguments])
        threads = torch.get_num_threads()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def tuned(*blocks: Block, budget: Budget = LIMIT) -> TunedArm:
    compute = ArmSetting().layouts()[1]
    return TunedArm(
        plan=Plan(budget_bytes=budget.bytes, blocks=blocks, untrained_units=()), compute=compute, tuning_seconds=2.0
    )


def block(first: int, last: int, batch: int, micro: int | None = None, checkpoints: tuple[int, ...] = ()) -> Block:
    return Block(
        windows=(Window(first_unit=first, last_unit=last, checkpoints=checkpoints),), batch_size=batch,
        micro_batch=micro, learning_rate=0.1, predicted_peak_bytes=3 * MIB, predicted_seconds_per_sample=0.01,
    )  # fmt: skip


def timed(rate: float) -> TimedPass:
    return TimedPass(
        samples=100, seconds=100 / rate, cache_seconds=0, evaluate_seconds=0, peak_bytes=MIB, out_of_memory_retries=0
    )


def compared(*results: ArmResult) -> dict[str, Any]:
    return json.loads(json.dumps(comparison_fields(ArmSetting(), results)))  # type: ignore[no-any-return]


def test_speed_up_is_over_the_best_other_arm_of_the_same_budget() -> None:
    rows = compared(
        ArmResult(arm="neuroflux", budget=LIMIT, how=tuned(block(0, 3, 8)), passes=(timed(60),)),
        ArmResult(arm="backprop", budget=LIMIT, how=tuned(block(0, 3, 2)), passes=(timed(20),)),
        ArmResult(arm="backprop-both", budget=LIMIT, how=tuned(block(0, 3, 64, 2)), passes=(timed(30),)),
        ArmResult(arm="classic", budget=LIMIT, how=Refusal(needed_bytes=9 * MIB)),
        ArmResult(arm="backprop", budget=NO_LIMIT, how=tuned(block(0, 3, 2)), passes=(timed(500),)),
    )["results"]

    assert [row["times_best_other"] for row in rows] == pytest.approx([2.0, 1 / 3, 0.5, None, None])
    assert rows[3]["needed_bytes"] == 9 * MIB


def test_how_an_arm_runs_in_words() -> None:
    hows: dict[str, TunedArm | Refusal] = {
        "neuroflux": tuned(block(0, 1, 32), block(2, 2, 128)),
        "backprop-both": tuned(block(0, 3, 64, 8, (1, 2))),
        "classic": Refusal(needed_bytes=178 * MIB),
    }
    rows = compared(*(ArmResult(arm=arm, budget=LIMIT, how=how) for arm, how in hows.items()))["results"]

    assert [describe_how(row) for row in rows] == [
        "2 blocks, batch 32 to 128, reach 2, channels last",
        "batch 64 in pieces of 8, 3 segments, channels last",
        "needs 178.0 MiB",
    ]


def trained(*curve: tuple[float, float]) -> TrainedArm:
    return TrainedArm(
        curve=tuple(
            CurvePoint(seconds=seconds, unit=3, validation_accuracy=0.0, test_accuracy=accuracy)
            for seconds, accuracy in curve
        ),
        parameters=1234, epochs=len(curve), seconds={"train": 5.0}, peak_bytes=2 * MIB,
    )  # fmt: skip


def test_time_to_an_accuracy_is_when_it_is_first_reached() -> None:
    row = compared(
        ArmResult(
            arm="backprop", budget=LIMIT, how=tuned(block(0, 3, 2)), trained=trained((5, 0.4), (9, 0.7), (12, 0.6))
        )
    )["results"][0]

    assert (time_to(row, 0.5), time_to(row, 0.75)) == (9, None)


def test_sooner_is_over_the_first_other_arm_that_has_their_best_accuracy() -> None:
    def result(arm: str, *curve: tuple[float, float], budget: Budget = LIMIT) -> ArmResult:
        return ArmResult(arm=arm, budget=budget, how=tuned(block(0, 7, 8)), trained=trained(*curve))

    results = [
        result("neuroflux", (5, 0.3), (10, 0.7), (20, 0.8)),
        result("backprop", (20, 0.5), (40, 0.6)),
        result("classic", (30, 0.6), (60, 0.5)),
        result("backprop", (1, 0.9), budget=NO_LIMIT),
    ]

    rows = comparison_fields(ArmSetting(), results)["results"]

    # The others end with 60 at best, which one of them has after 30 s; neither ever has neuroflux's 80.
    assert [row["times_sooner"] for row in rows] == [3, None, None, None]


def test_a_precision_that_the_processor_emulates_is_told(
    run_main: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    check_precision("float32")
    assert capsys.readouterr().err == ""

    code, _, err = run_main(
        *SMALL, "--dry-run", "--budgets", "none", "--methods", "backprop", "--precision", "bfloat16"
    )

    assert code == 0
    assert "no arithmetic for bfloat16" in err


def test_dry_run_predicts_every_arm_and_says_what_is_needed(
    run_main: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine_speed, "measure_speed", lambda _: machine_speed.MachineSpeed())
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    picture = tmp_path / "floors.svg"
    code, out, err = run_main(
        *SMALL, "--dry-run", "--budgets", "smallest,none", "--methods", "neuroflux,backprop,classic", "--json",
        "--picture", str(picture),
    )  # fmt: skip

    comparison = json.loads(out)["comparisons"][0]
    floors = comparison["smallest_budget_bytes"]
    rows = {(row["arm"], row["budget"]): row for row in comparison["results"]}
    assert code == 0
    assert len(err.splitlines()) == len(rows)
    assert floors["neuroflux"] < floors["backprop"] < floors["classic"]
    assert rows["backprop", "smallest"]["budget_bytes"] == -(-floors["backprop"] // MIB) * MIB
    assert rows["classic", "smallest"]["needed_bytes"] == floors["classic"]
    assert rows["backprop", "smallest"]["predicted_peak_bytes"] <= rows["backprop", "smallest"]["budget_bytes"]
    # The smallest that is about as fast as 128.
    assert rows["backprop", "none"]["blocks"][0]["batch_size"] == 64
    assert all(name in picture.read_text() for name in ("neuroflux", "backprop", "classic"))


def test_timed_passes_for_people_and_as_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    picture = tmp_path / "speed.png"
    timed_arms = compared(
        ArmResult(arm="neuroflux", budget=LIMIT, how=tuned(block(0, 3, 8)), passes=(timed(60),)),
        ArmResult(arm="backprop", budget=LIMIT, how=tuned(block(0, 3, 2)), passes=(timed(20),)),
        ArmResult(arm="classic", budget=LIMIT, how=Refusal(needed_bytes=9 * MIB)),
        ArmResult(arm="backprop", budget=NO_LIMIT, how=tuned(block(0, 3, 2)), passes=(timed(500),)),
    )

    print_comparisons([timed_arms], target=None)
    write_picture(picture, [timed_arms])

    text = " ".join(capsys.readouterr().out.split())
    assert all(words in text for words in ("4.0 MiB (smallest)", "no limit", "60.0 │ 3.00", "needs 9.0"))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_training_on_data_as_json_and_picture(run_main: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    picture = tmp_path / "accuracy.svg"
    code, out, _ = run_main(
        "--model", "vgg11", "--width", "0.05", "--data", "digits", "--train-limit", "60", "--test-limit", "20",
        "--train", "--epochs", "1", "--views", "1", "--methods", "backprop", "--budgets", "none", "--threads", "1",
        "--maximum-batch", "4", "--json", "--picture", str(picture),
    )  # fmt: skip

    shown = json.loads(out)
    comparison = shown["comparisons"][0]
    row = comparison["results"][0]
    assert (code, shown["complete"]) == (0, True)
    assert (comparison["image"], comparison["classes"]) == ([1, 32, 32], 10)
    assert len(row["trained"]["curve"]) == 1
    assert row["trained"]["parameters"] > 0
    assert "test accuracy" in picture.read_text()


def test_interrupted_comparison_shows_the_methods_it_has_finished(
    run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []

    def pass_or_end(worker: ArmWorker, seconds: float) -> TimedPass:
        passes.append(worker)
        if len(passes) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return time_pass(worker, seconds)

    time_pass = ArmWorker.time_pass
    monkeypatch.setattr(ArmWorker, "time_pass", pass_or_end)

    code, out, err = run_main(
        *SMALL, "--budgets", "none", "--methods", "backprop,classic", "--seconds", "0.1", "--repeats", "1", "--json"
    )

    shown = json.loads(out)
    assert (code, shown["complete"]) == (130, False)
    assert [row["arm"] for row in shown["comparisons"][0]["results"]] == ["backprop"]
    assert shown["comparisons"][0]["results"][0]["samples_per_second"] > 0
    # Without a terminal, a line for each thing that begins.
    assert err.splitlines() == [
        "vgg11, no limit: tuning backprop",
        "vgg11, no limit: tuning classic",
        "vgg11, no limit: backprop",
        "vgg11, no limit: classic",
        "Error: Interrupted.",
    ]


def test_a_picture_that_cannot_be_written_is_told_before_anything_is_tuned(run_main: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    (tmp_path / "taken.svg").mkdir()
    (tmp_path / "file").touch()

    assert run_main(*SMALL, "--picture", str(tmp_path / "taken.svg")) == (
        2, "", f"Error: Picture '{tmp_path / 'taken.svg'}' is a folder: choose another name.\n"
    )  # fmt: skip
    code, _, err = run_main(*SMALL, "--picture", str(tmp_path / "file" / "speed.svg"))
    assert (code, err.count("\n")) == (6, 1)
    assert "Choose another with --picture" in err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--methods", "neuroflux,sgd"], 2, "Method 'sgd' is unknown: choose one of neuroflux"),
        (["--methods", "backprop,backprop"], 2, "names something twice"),
        (["--budgets", "fastx"], 2, "Budget 'fastx'"),
        (["--precision", "int4"], 2, "Precision 'int4' is unknown"),
        (["--precision", "float16"], 2, "Precision 'float16' is for GPUs"),
        (["--seconds", "0"], 2, "Seconds 0.0 is not allowed: give 0.1 to 86400."),
        (["--minutes", "nan"], 2, "Minutes nan is not allowed"),
        (["--threads", "-1"], 2, "Threads -1 is not allowed"),
        (["--seed", "-1"], 2, "Seed -1 is not allowed"),
        (["--train", "--data", "digits", "--epochs", "0"], 2, "Epochs 0 is too small"),
        (["--train", "--data", "digits", "--standard-errors", "nan"], 2, "Standard errors nan are not allowed"),
        (["--train"], 2, "--train needs --data"),
        (["--train", "--data", "no-such-data"], 4, "neither a known name"),
        (["--picture", "speed.pdf"], 2, "end its name in .svg or .png"),
        (["--model", "vgg99"], 2, "Model 'vgg99' is unknown"),
        (["--model", "vgg11,vgg99"], 2, "Model 'vgg99' is unknown"),
        (["--budgets", "64MiB,1e300x"], 2, "no factor of the smallest up to 1000"),
    ],
)
def test_mistakes_are_one_line_with_a_code_of_their_kind(
    run_main: Run, options: list[str], code: int, words: str
) -> None:
    ended, out, err = run_main(*SMALL, *options)

    assert (ended, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
