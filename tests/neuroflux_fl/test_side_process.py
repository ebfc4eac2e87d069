"""Work in another process: its value comes back, and so does the kind of its error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuroflux_fl.errors import DataError, NeurofluxError
from neuroflux_fl.side_process import ask_side_process

MODULE = """
from neuroflux_fl.errors import DataError
from neuroflux_fl.side_process import answer_request

def work(request):
    if request == "bad":
        raise DataError("Data is bad: mend it.")
    if request == "odd":
        raise RuntimeError("a defect")
    return {"asked": request}

answer_request(work)
"""


@pytest.fixture
def module(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "side_work.py").write_text(MODULE)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_a_value_comes_back(module: dict[str, str], tmp_path: Path) -> None:
    request = {"text": 'é "x"', "list": [1, None, True]}

    assert ask_side_process("side_work", request, environment=module, folder=tmp_path) == {"asked": request}


def test_an_error_keeps_its_kind(module: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^Data is bad: mend it\.$"):
        ask_side_process("side_work", "bad", environment=module, folder=tmp_path)


def test_a_defect_is_one_line(module: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(NeurofluxError, match="side_work ended without an answer: RuntimeError: a defect"):
        ask_side_process("side_work", "odd", environment=module, folder=tmp_path)


def test_nothing_in_the_folder_is_taken_for_a_package(tmp_path: Path) -> None:
    (tmp_path / "neuroflux_fl.py").write_text("raise SystemExit('shadowed')")

    with pytest.raises(NeurofluxError, match=r"No module named neuroflux_fl\.nothing"):
        ask_side_process("neuroflux_fl.nothing", 1, environment=os.environ, folder=tmp_path)
