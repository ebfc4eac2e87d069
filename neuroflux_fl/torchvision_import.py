"""The one place that imports torchvision: ``from neuroflux_fl.torchvision_import import torchvision``.

A torchvision built for CUDA does not import beside a CPU build of torch, because its compiled operators are missing.
Declaring the two operators that its Python side refers to is enough for models, datasets and transforms.v2;
``ops.nms``, detection models and ``io.read_image`` stay unusable there.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_MISSING_OPERATORS = "operator torchvision::nms does not exist"
_NMS_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# Schemas live as long as the Library object that declared them.
_declared: list[torch.library.Library] = []


def _import_torchvision() -> ModuleType:
    """Import torchvision, declaring its missing operators where that is what stops it. Other errors propagate."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if str(error) != _MISSING_OPERATORS:
            raise
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(operator + _NMS_ARGUMENTS)  # type: ignore[no-untyped-call]
    _declared.append(library)
    return importlib.import_module("torchvision")


torchvision = _import_torchvision()

__all__ = ["torchvision"]
