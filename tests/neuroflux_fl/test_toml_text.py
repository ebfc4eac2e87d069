"""What is written is read back alike, by Python's TOML and by Flower's own, narrower reader."""

from __future__ import annotations

import tomllib

import pytest
from flwr.common.config import parse_config_args

from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.toml_text import Value, flower_arguments, toml_lines, toml_value

VALUES: dict[str, Value] = {
    "flag": True,
    "off": False,
    "whole": -3,
    "small": 1e-05,
    "large": 1e20,
    "text": "plain",
    "empty": "",
    "folder": "/data/my pictures/set = one.toml",
    "hard": 'a "b" \'c\' \\d\\ \\"e\\" \t\n\x01\x7f é 😀 $HOME `x` = key="v"',
}


def test_toml_comes_back() -> None:
    assert tomllib.loads(toml_lines(VALUES)) == VALUES


def test_flower_reads_its_arguments() -> None:
    assert parse_config_args([flower_arguments(VALUES)]) == VALUES


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (1, "1"), (1.0, "1.0"), ('"', '"\\u0022"')])
def test_single_values(value: Value, text: str) -> None:
    assert toml_value(value) == text


def test_a_whole_run_configuration_comes_back() -> None:
    config = RunConfig(
        image_shape="1x8x8", class_names='["a", "b"]', mean="0.5", std="0.25", data='/a/"b"', learning_rate=1e-05
    )

    assert RunConfig.from_flat(tomllib.loads(toml_lines(config.to_flat()))) == config
