"""Arms: what each may choose from, what it needs, how it is tuned, timed and trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from neuroflux_fl import arm_tuning
from neuroflux_fl.arm_run import PASS_EPOCHS, CurvePoint, Schedule, TrainedArm, time_pass, train_arm
from neuroflux_fl.arm_tuning import Refusal, TunedArm, predict, tune
from neuroflux_fl.arms import ARMS, Arm, ArmSetting, Shape, even_cuts
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.data import ImageData, LabelledImages
from neuroflux_fl.errors import UsageError
from neuroflux_fl.exits import exit_parameters
from neuroflux_fl.plan import Window
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import MIB

CPU = torch.device("cpu")
SETTING = ArmSetting(
    model="vgg11", width=0.05, image_shape=(1, 32, 32), classes=3,
    planner=PlannerSettings(maximum_batch=32, passes=PASS_EPOCHS),
)  # fmt: skip
PLAIN = SETTING.layouts()[0]
LAST = 7


@pytest.fixture(scope="module")
def arms() -> dict[str, Arm]:
    """Every arm, traced once for all tests."""
    return {name: Arm(name, SETTING) for name in ARMS}


@pytest.fixture(scope="module")
def images() -> ImageData:
    """A bright row tells the class."""

    def make(count: int, seed: int) -> LabelledImages:
        generator = np.random.default_rng(seed)
        labels = np.arange(count, dtype=np.int64) % 3
        pixels = generator.integers(0, 100, (count, 1, 32, 32)).astype(np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[0, 8 * label + 4 : 8 * label + 8] += 150
        return LabelledImages(images=pixels, labels=labels)

    return ImageData(
        name="rows", class_names=("a", "b", "c"), train=make(120, 0), test=make(30, 1), mean=(0.3,), std=(0.2,),
        horizontal_flip=False,
    )  # fmt: skip


def test_cuts_make_the_largest_run_small() -> None:
    assert even_cuts((5, 1, 1, 1, 4), 2) == (2,)  # 6 and 6
    assert even_cuts((5, 1, 1, 1, 4), 3) == (1, 4)  # 5, 3 and 4
    assert even_cuts((1, 2), 2) == (1,)


def test_what_each_arm_may_choose_from(arms: dict[str, Arm]) -> None:
    whole = Window(first_unit=0, last_unit=LAST)
    single = tuple(Window(first_unit=unit, last_unit=unit) for unit in range(LAST + 1))

    assert arms["backprop"].shapes == (Shape(windows=(whole,)),)
    assert arms["backprop-micro"].shapes == (Shape(windows=(whole,), accumulates=True),)
    assert arms["classic"].shapes == (Shape(windows=single),)
    for name in ("backprop-checkpoints", "backprop-both"):
        counts = [len(shape.windows[0].checkpoints) for shape in arms[name].shapes]
        assert counts == list(range(1, 8)), "2 to 8 segments"
        assert all(shape.accumulates == (name == "backprop-both") for shape in arms[name].shapes)
    head = arms["classic"].network.heads[0]
    assert [part.out_channels for part in head.children() if isinstance(part, torch.nn.Conv2d)] == [256]


def test_unknown_arm_is_refused() -> None:
    with pytest.raises(UsageError, match="'sgd' is unknown: choose one of neuroflux, backprop"):
        Arm("sgd", SETTING)


@pytest.mark.parametrize("name", ["neuroflux", "backprop", "backprop-checkpoints", "backprop-micro", "classic"])
def test_smallest_budget_is_enough_and_no_more_than_needed(arms: dict[str, Arm], name: str) -> None:
    arm = arms[name]
    smallest = min(arm.smallest_budget(layout) for layout in SETTING.layouts())

    enough, less = predict(arm, smallest), predict(arm, smallest - 1)

    assert isinstance(enough, TunedArm)
    assert enough.plan.untrained_units == ()
    assert enough.plan.predicted_peak_bytes <= smallest
    assert less == Refusal(needed_bytes=smallest)


@pytest.mark.parametrize("name", [name for name in ARMS if name != "neuroflux"])
def test_largest_batch_fits_and_one_more_does_not(arms: dict[str, Arm], name: str) -> None:
    arm, shape = arms[name], arms[name].shapes[-1]
    budget = arm.needed_budget(shape, PLAIN, 11)

    batch = arm.largest_batch(shape, PLAIN, budget)

    assert batch == (8 if shape.accumulates else 11)
    assert arm.largest_batch(shape, PLAIN, None) == 32
    assert arm.largest_batch(shape, PLAIN, arm.needed_budget(shape, PLAIN, 2) - 1) is None


def test_micro_batches_make_steps_of_64(arms: dict[str, Arm]) -> None:
    arm = arms["backprop-micro"]

    block = arm.plan(arm.shapes[0], PLAIN, 8, None).blocks[0]

    assert (block.batch_size, block.micro_batch) == (64, 8)
    assert block.learning_rate == SETTING.planner.learning_rate_at(64)
    assert block.predicted_peak_bytes == arm.predicted_peak(arm.shapes[0], PLAIN, 8)


@pytest.fixture
def step_seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Instead of real steps: a table of seconds for one sample."""

    def install(seconds: Callable[[Window, ComputeSettings, int], float]) -> None:
        def run(_self: object, window: Window, _accumulates: bool, compute: ComputeSettings, batch: int) -> float:
            return batch * seconds(window, compute, batch)

        monkeypatch.setattr(arm_tuning._Trial, "_run", run)

    return install


def test_tuning_takes_the_fastest_layout_and_batch(arms: dict[str, Arm], step_seconds: Callable[..., None]) -> None:
    step_seconds(lambda _, compute, batch: abs(batch - 16) + (1 if compute.channels_last else 2))

    tuned = tune(arms["backprop"], None, CPU)

    assert isinstance(tuned, TunedArm)
    assert tuned.compute.channels_last
    assert tuned.plan.blocks[0].batch_size == 16
    assert tuned.plan.blocks[0].predicted_seconds_per_sample == 1


def test_checkpoints_must_pay(
    arms: dict[str, Arm], step_seconds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = arms["backprop-checkpoints"]
    tried = []
    step_seconds(lambda window, _, batch: tried.append(window) or 1 / batch + len(window.checkpoints) / 1000)  # type: ignore[func-returns-value]

    def checkpoints_of(largest: Callable[[int], int]) -> tuple[int, ...]:
        monkeypatch.setattr(arm, "largest_batch", lambda shape, *_: largest(len(shape.windows[0].checkpoints)))
        tuned = tune(arm, None, CPU)
        assert isinstance(tuned, TunedArm)
        return tuned.plan.blocks[0].windows[0].checkpoints

    assert len(checkpoints_of(lambda _: 16)) == 1
    assert {len(window.checkpoints) for window in tried} == {1}, "more arithmetic for the same batch is not even tried"
    assert len(checkpoints_of(lambda count: min(12, 4 * count))) == 3


def test_real_tuning_and_a_timed_pass_of_either_kind() -> None:
    for name in ("neuroflux", "backprop-micro"):
        setting = replace(SETTING, planner=replace(SETTING.planner, maximum_batch=8))
        arm = Arm(name, setting)
        tuned = tune(arm, 6 * MIB, CPU)
        assert isinstance(tuned, TunedArm)
        assert tuned.plan.predicted_peak_bytes <= 6 * MIB

        timed = time_pass(arm, tuned, 0.05, seed=0, device=CPU)

        largest = max(block.batch_size for block in tuned.plan.blocks)
        assert timed.samples >= PASS_EPOCHS * largest
        assert timed.seconds > timed.evaluate_seconds > 0
        assert timed.out_of_memory_retries == 0
        assert timed.peak_bytes is None or timed.peak_bytes > 0


def train(arm: Arm, images: ImageData, points: list[CurvePoint] | None = None) -> TrainedArm:
    tuned = predict(arm, 6 * MIB)
    assert isinstance(tuned, TunedArm)
    schedule = Schedule(epochs=3, views=1)
    return train_arm(
        arm, replace(tuned, tuning_seconds=100.0), images, schedule, seed=0, device=CPU,
        on_point=(lambda _: None) if points is None else points.append,
    )  # fmt: skip


def test_training_gives_a_curve_that_test_images_do_not_decide(arms: dict[str, Arm], images: ImageData) -> None:
    points: list[CurvePoint] = []
    wrong = replace(images, test=replace(images.test, labels=(images.test.labels + 1) % 3))

    trained, blind = train(arms["neuroflux"], images, points), train(arms["neuroflux"], wrong)

    assert tuple(points) == trained.curve
    assert trained.curve[0].seconds > 100, "tuning counts"
    assert all(one.seconds < other.seconds for one, other in pairwise(trained.curve))
    assert trained.curve[-1].test_accuracy > 0.8
    assert blind.curve[-1].test_accuracy < 0.2
    assert [point.unit for point in blind.curve] == [point.unit for point in trained.curve]
    assert trained.seconds["profile"] == 100
    assert trained.epochs == 3


def test_minutes_decide_the_number_of_epochs(arms: dict[str, Arm], images: ImageData) -> None:
    arm = arms["backprop"]
    plan = arm.plan(arm.shapes[0], PLAIN, 16, None, seconds_per_sample=1.0)  # 108 images to train on: 108 s an epoch

    trained = train_arm(
        arm, TunedArm(plan=plan, compute=PLAIN, tuning_seconds=60.0), images,
        Schedule(epochs=9, minutes=(60 + 3 * 108) / 60, patience=9, views=1), seed=0, device=CPU,
    )  # fmt: skip

    assert trained.epochs == len(trained.curve) == 3
    assert {point.unit for point in trained.curve} == {LAST}


def test_exits_inside_windows_are_on_the_curve(arms: dict[str, Arm], images: ImageData) -> None:
    backprop = arms["backprop"]
    plan = backprop.plan(backprop.shapes[0], PLAIN, 16, None, seconds_per_sample=1.0)
    schedule = Schedule(epochs=3, views=1, standard_errors=100.0)

    def trained(arm: Arm) -> TrainedArm:
        return train_arm(arm, TunedArm(plan=plan, compute=PLAIN), images, schedule, seed=0, device=CPU)

    with_inner, plain = trained(arms["neuroflux"]), trained(backprop)

    assert [point.unit for point in with_inner.curve] == [LAST, LAST, LAST, 0], "one more point, after the passes"
    assert with_inner.parameters == exit_parameters(arms["neuroflux"].network, 0)
    assert with_inner.curve[-1].test_accuracy > 0.5
    assert [point.unit for point in plain.curve] == [LAST, LAST, LAST], "backpropagation has one exit, at its end"
