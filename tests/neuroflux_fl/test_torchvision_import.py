"""torchvision beside a torch that it was not built for."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch

from neuroflux_fl import torchvision_import


def test_the_models_and_data_sets_that_we_use_are_there() -> None:
    torchvision = torchvision_import.torchvision

    assert torchvision.models.vgg16
    assert torchvision.datasets.utils.download_url


@pytest.mark.parametrize("message", ["operator torchvision::roi_align does not exist", "something else"])
def test_any_other_error_propagates_at_the_first_attempt(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    attempts = []

    def fail(name: str) -> ModuleType:
        attempts.append(name)
        raise RuntimeError(message)

    monkeypatch.setattr(importlib, "import_module", fail)

    with pytest.raises(RuntimeError, match=message):
        torchvision_import._import_torchvision()
    assert attempts == ["torchvision"]


def test_missing_operators_are_declared_and_half_imported_modules_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = ModuleType("torchvision")
    declared: list[object] = []

    class Library:
        def __init__(self, *arguments: str) -> None:
            declared.append(arguments)

        def define(self, schema: str) -> None:
            declared.append(schema)

    def fail_once(name: str) -> ModuleType:
        if not declared:
            sys.modules["torchvision.half_imported"] = ModuleType("half")
            raise RuntimeError("operator torchvision::nms does not exist")
        assert "torchvision.half_imported" not in sys.modules
        return imported

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)  # put back after the test
    monkeypatch.setattr(torchvision_import, "_declared", [])
    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(importlib, "import_module", fail_once)

    assert torchvision_import._import_torchvision() is imported
    assert declared == [
        ("torchvision", "DEF"),
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ]
