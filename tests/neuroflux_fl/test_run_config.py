"""One configuration from flags, TOML and Flower: unknown keys, wrong types and bad values are named."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from neuroflux_fl.data.description import DataDescription
from neuroflux_fl.errors import ConfigError, NeurofluxError
from neuroflux_fl.run_config import RunConfig, Value

ROOT = Path(__file__).resolve().parents[2]


def test_flat_form_survives_the_way_there_and_back() -> None:
    config = RunConfig(
        model="resnet18", width=1.0, seed=7, require_all_classes=True, cache_quota="5MiB", deadline_seconds=2.5
    )

    flat = config.to_flat()

    assert RunConfig.from_flat(flat) == config
    assert flat["num-server-rounds"] == config.num_server_rounds
    assert len(flat) == len(fields(RunConfig))
    assert not any("_" in key for key in flat)


def test_missing_keys_take_their_defaults() -> None:
    assert RunConfig.from_flat({}) == RunConfig()
    assert RunConfig.from_flat({"seed": 3}) == RunConfig(seed=3)


def test_defaults_that_flower_sees_are_those_of_the_class() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["tool"]["flwr"]["app"]["config"] == RunConfig().to_flat()


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'learning-rates' is unknown\. Did you mean 'learning-rate'\?"):
        RunConfig.from_flat({"learning-rates": 0.1})
    with pytest.raises(ConfigError, match=r"'zzz' is unknown\. Known keys: aggregation, alpha"):
        RunConfig.from_flat({"zzz": 1})


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("seed", 1.0, "int"),
        ("seed", True, "int"),
        ("seed", "1", "int"),
        ("alpha", "0.5", "float"),
        ("alpha", True, "float"),
        ("require-all-classes", 1, "bool"),
        ("model", 11, "str"),
    ],
)
def test_value_of_another_type_is_refused(key: str, value: Value, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"{key!r} is {value!r}: it must be of type {wanted}"):
        RunConfig.from_flat({key: value})


def test_whole_number_will_do_for_a_fraction() -> None:
    config = RunConfig.from_flat({"alpha": 2})

    assert config.alpha == 2.0
    assert isinstance(config.alpha, float)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alpha", -1.0),
        ("alpha", 0.0),
        ("alpha", float("nan")),
        ("validation-fraction", 0.0),
        ("validation-fraction", 1.0),
        ("standard-errors", -1.0),
        ("standard-errors", float("inf")),
        ("standard-errors", float("nan")),
        ("num-server-rounds", 0),
        ("local-epochs", 0),
        ("patience", 0),
        ("stage-units", 0),
        ("quorum", 0),
        ("min-nodes", 0),
        ("maximum-batch", 1),
        ("cohort", -1),
        ("train-limit", -1),
        ("deadline-seconds", -1.0),
        ("deadline-seconds", float("nan")),
        ("seed", -1),
        ("method", "magic"),
        ("schedule", "sometimes"),
        ("aggregation", "median"),
        ("partition", "fair"),
        ("cache-precision", "float64"),
        ("budgets", " "),
        ("budgets", "12MiB,lots"),
        ("cache-quota", "lots"),
        ("head", "cone"),
        ("planner", "slowest"),
        ("reach", -1),
        ("rho", 2.0),
        ("learning-rate", 0.0),
        ("views", 0),
        ("run-name", "x" * 101),
        ("run-name", "a\tb"),
    ],
)
def test_bad_value_is_refused_before_anything_starts(key: str, value: Value) -> None:
    with pytest.raises(NeurofluxError) as caught:
        RunConfig.from_flat({key: value})

    shown = repr(value)[1:-1] if isinstance(value, str) else str(value)
    assert shown.rpartition(",")[2].strip() in str(caught.value)
    assert "\n" not in str(caught.value)


def test_budgets_are_a_list_of_sizes() -> None:
    assert RunConfig(budgets="1MiB, 2MiB,300").budget_list() == (1024**2, 2 * 1024**2, 300)


def test_batches_leave_small_devices_several_steps() -> None:
    config = RunConfig(maximum_batch=64)

    assert config.planner_settings(examples=10_000).maximum_batch == 64
    assert 2 <= config.planner_settings(examples=40).maximum_batch <= 10
    assert config.planner_settings(examples=3).maximum_batch == 2
    assert replace(config, norm="group").planner_settings(examples=3).minimum_batch == 1


def test_toml_file_holds_flat_keys(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = "vgg13"\nalpha = 0.3\nseed = 4\nserver-tests = false\n')

    config = RunConfig.from_flat(RunConfig.from_toml(path))

    assert config == RunConfig(model="vgg13", alpha=0.3, seed=4, server_tests=False)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"model = vgg11", "is not TOML"),
        (b"model = \xff", "is not TOML"),
        (b'[fleet]\nmodel = "vgg11"', "'fleet' as a dict: write flat keys only"),
        (b"budgets = [1, 2]", "'budgets' as a list"),
        (b"seed = 2024-01-01", "'seed' as a date"),
    ],
)
def test_bad_toml_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=complaint):
        RunConfig.from_toml(path)


def test_missing_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        RunConfig.from_toml(tmp_path / "missing.toml")


DESCRIPTION: dict[str, Value] = {"image-shape": "1x8x8", "class-names": '["a", "b"]', "mean": "0.5", "std": "0.25"}


def test_description_of_the_data() -> None:
    description = RunConfig.from_flat(DESCRIPTION).data_description()

    assert description == DataDescription(image_shape=(1, 8, 8), class_names=("a", "b"), mean=(0.5,), std=(0.25,))
    assert RunConfig().data_description() is None


@pytest.mark.parametrize(
    "change",
    [
        {"image-shape": ""},
        {"image-shape": "1x8"},
        {"image-shape": "1x8x0"},
        {"image-shape": "3x8x8"},
        {"class-names": "a,b"},
        {"class-names": "[1, 2]"},
        {"class-names": '["a"]'},
        {"class-names": '["a", "a"]'},
        {"mean": "0.5,0.5"},
        {"mean": "half"},
        {"std": "0"},
    ],
)
def test_description_that_does_not_fit_together_is_refused(change: dict[str, Value]) -> None:
    with pytest.raises(ConfigError, match="do not describe data: give all four"):
        RunConfig.from_flat(DESCRIPTION | change)
