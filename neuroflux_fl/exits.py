"""Exits: units 0..k with head k, usable as a model by itself. Choosing, saving and loading one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroflux_fl.errors import DependencyError, StorageError, UsageError
from neuroflux_fl.evaluation import Score
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import LocalNetwork, build_network, head_parameters, unit_parameters
from neuroflux_fl.models import MODEL_NAMES, build_chain
from neuroflux_fl.unit_chain import empty_copy
from neuroflux_fl.unit_store import UnitStore

WEIGHTS_FILE = "exit.safetensors"
DESCRIPTION_FILE = "exit.json"
_FORMAT = 1


def check_standard_errors(standard_errors: float) -> None:
    """Before a training, whose end would be late to find out.

    Raises:
        UsageError: the number is negative or not finite.
    """
    if not 0 <= standard_errors < math.inf:
        raise UsageError(
            f"Standard errors {standard_errors} are not allowed: give a finite number of 0 or more, for example 1."
        )


def choose_exit(scores: Mapping[int, Score], standard_errors: float) -> int:
    """The shallowest exit whose validation accuracy is within ``standard_errors`` standard errors of the best exit's.

    With 1 the rule by which Breiman, Friedman, Olshen and Stone prune trees (Classification and Regression Trees, 1984,
    3.4.3), for what validation images can hardly tell apart.

    Raises:
        UsageError: no exit was scored, or the number of standard errors is negative or not finite.
    """
    check_standard_errors(standard_errors)
    if not scores:
        raise UsageError("No exit was trained, so none can be chosen: raise the budget or the number of rounds.")
    best = max(scores.values(), key=lambda score: score.accuracy)
    least = best.accuracy - standard_errors * best.standard_error
    return min(unit for unit, score in scores.items() if score.accuracy >= least)


def exit_parameters(network: LocalNetwork, unit: int) -> int:
    """Trainable numbers of the exit at ``unit``: its units and its head."""
    units = sum(unit_parameters(network.layout(index)) for index in range(unit + 1))
    return units + head_parameters(network.layout(unit))


def save_exit(
    folder: Path,
    network: LocalNetwork,
    store: UnitStore,
    unit: int,
    *,
    width: float,
    class_names: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write the exit at ``unit`` as ``exit.safetensors`` and ``exit.json``; returns the folder.

    Both files appear whole or not at all. ``load_exit`` reads them again.

    Raises:
        DependencyError: safetensors is not installed.
        StorageError: the folder cannot be written.
    """
    save_file = _safetensors().save_file
    unwritable: tuple[type[Exception], ...] = (OSError, *_safetensors_errors())
    tensors: dict[str, Tensor] = {}
    for index in range(unit + 1):
        layout = network.layout(index)
        packed = store.read(index)
        for name, value in layout.unpack(packed, True).items():
            part, _, rest = name.partition(".")
            if part == "unit":
                tensors[f"units.{index}.{rest}"] = torch.from_numpy(value)
            elif index == unit:
                tensors[f"head.{rest}"] = torch.from_numpy(value)
    description = {
        "format": _FORMAT,
        "model": network.chain.name,
        "image_shape": network.chain.image_shape,
        "classes": network.chain.classes,
        "class_names": class_names,
        "norm": network.norm,
        "width": width,
        "head": asdict(network.head_settings),
        "unit": unit,
        "parameters": exit_parameters(network, unit),
        "mean": mean,
        "std": std,
        **(details or {}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / (WEIGHTS_FILE + ".tmp")
        save_file(tensors, str(temporary))
        text = folder / (DESCRIPTION_FILE + ".tmp")
        text.write_text(json.dumps(description, indent=2) + "\n")
        temporary.replace(folder / WEIGHTS_FILE)
        text.replace(folder / DESCRIPTION_FILE)
    except unwritable as error:
        raise StorageError(
            f"Cannot write the exit to {folder}: {_first_line(error)}. Free some space or choose another folder."
        ) from error
    return folder


class ExitModel(nn.Module):
    """A saved exit: normalises uint8 or 0..1 float images by itself and gives class scores."""

    def __init__(self, units: nn.Module, head: nn.Module, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.units = units
        self.head = head
        self.description = dict(description)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(description["mean"]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(description["std"]).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, channels, height, width)``, uint8 or float in 0..1, to scores ``(batch, classes)``."""
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        scores = self.head(self.units((values - self.mean) / self.std))
        return torch.as_tensor(scores)


def load_exit(folder: Path | str) -> ExitModel:
    """Load a saved exit, in eval mode on the CPU.

    Raises:
        DependencyError: safetensors is not installed.
        StorageError: the files are missing, damaged, or of a model that this version does not know.
    """
    folder = Path(folder)
    load_file = _safetensors().load_file
    unreadable: tuple[type[Exception], ...] = (
        OSError, ValueError, LookupError, TypeError, RuntimeError, UsageError, *_safetensors_errors(),
    )  # fmt: skip
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text())
        tensors: dict[str, Tensor] = load_file(str(folder / WEIGHTS_FILE))
        if description["format"] != _FORMAT or description["model"] not in MODEL_NAMES:
            raise StorageError(
                f"Exit in {folder} has format {description['format']} and model {description['model']!r}; this "
                f"version reads format {_FORMAT} and models {', '.join(MODEL_NAMES)}."
            )
        chain = build_chain(
            description["model"],
            image_shape=tuple(description["image_shape"]),
            classes=description["classes"],
            norm=description["norm"],
            width=description["width"],
        )
        network = build_network(chain, HeadSettings(**description["head"]), description["norm"])
        unit = description["unit"]
        model = ExitModel(
            nn.Sequential(*(empty_copy(chain.units[index], "cpu") for index in range(unit + 1))),
            empty_copy(network.heads[unit], "cpu"),
            description,
        )
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
            raise StorageError(f"Exit in {folder} does not hold the tensors that its description names.")
    except unreadable as error:
        raise StorageError(f"Exit in {folder} cannot be read: {_first_line(error)}.") from error
    return model.eval()


def _first_line(error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return reason.splitlines()[0].rstrip(".")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise DependencyError(
            "Package safetensors is not installed: saving and loading exits needs it. pip install safetensors"
        ) from error
    return safetensors.torch


def _safetensors_errors() -> tuple[type[Exception], ...]:
    try:
        from safetensors import SafetensorError
    except ImportError:
        return ()
    return (SafetensorError,)
