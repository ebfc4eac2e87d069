"""One configuration from a command's defaults, a file, settings and flags: the later wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroflux_fl.cli.run_options import absolute_data, configure
from neuroflux_fl.errors import ConfigError


def test_the_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('seed = 1\nalpha = 2.0\nmodel = "vgg13"\n')

    config = configure(
        {"seed": 3, "data": None}, path, ["alpha=4", "views=2"], defaults={"seed": 9, "patience": 9, "alpha": 9.0}
    )

    assert (config.seed, config.alpha, config.views, config.patience) == (3, 4.0, 2, 9)
    assert (config.model, config.data) == ("vgg13", "digits")


@pytest.mark.parametrize(
    ("setting", "value"), [("out=a folder", "a folder"), ("out='7'", "7"), ('out="true"', "true"), ("out=", "")]
)
def test_texts(setting: str, value: str) -> None:
    assert configure({}, None, [setting]).out == value


def test_a_setting_without_value() -> None:
    with pytest.raises(ConfigError, match="--set key=value"):
        configure({}, None, ["alpha"])


def test_a_folder_has_its_whole_path_and_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert absolute_data("digits") == "digits"
    assert absolute_data("./digits") == str(tmp_path / "digits")
    assert absolute_data("~/pictures") == str(tmp_path / "home" / "pictures")
