"""A model as an ordered list of units, the smallest separately trained pieces (design: unit chain)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from neuroflux_fl.compute import layout_of
from neuroflux_fl.errors import UsageError

ImageShape = tuple[int, int, int]
"""``(channels, height, width)`` of one image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitChain:
    """Units in order, with the shapes between them. Modules may live on the meta device: a chain is a description.

    ``units[k]`` maps ``(batch, *input_shapes[k])`` to ``(batch, *output_shapes[k])``; ``classifier`` maps the last
    output to ``(batch, classes)`` and is the head of the last unit.
    """

    name: str
    image_shape: ImageShape
    classes: int
    units: tuple[nn.Module, ...]
    unit_names: tuple[str, ...]
    output_shapes: tuple[ImageShape, ...]
    classifier: nn.Module

    def __len__(self) -> int:
        return len(self.units)

    @property
    def input_shapes(self) -> tuple[ImageShape, ...]:
        """Shape of each unit's input, the image's first."""
        return (self.image_shape, *self.output_shapes[:-1])


def chain_from_modules(
    modules: nn.Sequential | Iterable[nn.Module],
    *,
    image_shape: ImageShape,
    classes: int,
    classifier: nn.Module | None = None,
    names: Sequence[str] | None = None,
    name: str = "custom",
) -> UnitChain:
    """Turn modules of your own into a unit chain.

    A list is taken as it is: one module, one unit. An ``nn.Sequential`` is cut before every child that holds a
    convolution; children without one (norms, activations, pooling) stay with the unit before them; a tail that
    begins at a ``Flatten``, a ``Linear`` or an adaptive pooling after the last convolution and holds a ``Linear``
    becomes the classifier. Never cut inside a residual sum: make each residual block one module.

    Args:
        modules: the network; weights are kept as the start of training.
        image_shape: ``(channels, height, width)`` of the input.
        classes: number of classes.
        classifier: head of the last unit; by default global average pooling and one linear layer.
        names: a name for each unit; by default ``unit0``, ``unit1``, ...
        name: name of the model.

    Raises:
        UsageError: there is no unit, a unit does not accept the output of the one before it, a unit's output is not
            ``(batch, channels, height, width)``, or the number of names differs from the number of units.
    """
    if isinstance(modules, nn.Sequential):
        units, tail = _cut_sequential(modules)
        classifier = classifier or tail
    else:
        units = list(modules)
    if not units:
        raise UsageError("Model has no unit: give at least one module that holds a convolution.")
    if names is not None and len(names) != len(units):
        raise UsageError(f"Model has {len(units)} units but {len(names)} names: give one name for each unit.")
    unit_names = tuple(names) if names is not None else tuple(f"unit{index}" for index in range(len(units)))
    described: list[nn.Module] = []
    shapes: list[ImageShape] = []
    shape = image_shape
    for unit, unit_name in zip(units, unit_names, strict=True):
        unit = keep_input_intact(unit, shape)
        shape = _output_shape(unit, shape, unit_name)
        described.append(unit)
        shapes.append(shape)
    if classifier is None:
        with torch.device("meta"):
            classifier = average_pool_classifier(shape[0], classes)
    return UnitChain(
        name=name,
        image_shape=image_shape,
        classes=classes,
        units=tuple(described),
        unit_names=unit_names,
        output_shapes=tuple(shapes),
        classifier=classifier,
    )


def average_pool_classifier(channels: int, classes: int) -> nn.Sequential:
    """``(batch, channels, height, width)`` to ``(batch, classes)``: global average pooling and one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def empty_copy(module: nn.Module, device: torch.device | str = "meta") -> nn.Module:
    """The same structure and layout with uninitialised tensors on ``device``; on ``meta`` it takes no memory."""
    # A deep copy that meets each tensor with its stand-in never holds the weights twice.
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(_empty_like(parameter, device), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = _empty_like(buffer, device)
    return copy.deepcopy(module, memo)


def _empty_like(tensor: Tensor, device: torch.device | str) -> Tensor:
    # torch.empty_like would do, but not from meta to fake tensors, which tracing needs.
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=layout_of(tensor))


def keep_input_intact(unit: nn.Module, input_shape: ImageShape) -> nn.Module:
    """The unit itself, or a copy whose activations are not in place when it would overwrite its own input.

    A unit's input may be a cached activation or another window's output, which must stay as it is.

    Raises:
        UsageError: the unit overwrites its input by other means than its layers' ``inplace``.
    """
    if not _overwrites_input(unit, input_shape):
        return unit
    unit = copy.deepcopy(unit)
    for module in unit.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 (mypy takes the attributes of a module for tensors)
    if _overwrites_input(unit, input_shape):
        raise UsageError(
            f"Unit of type {type(unit).__name__} overwrites its own input: use operators that are not in place on it."
        )
    return unit


def _overwrites_input(unit: nn.Module, input_shape: ImageShape) -> bool:
    for training in (True, False):  # in-place dropout writes only in training
        probe = empty_copy(unit).train(training)
        value = torch.empty((2, *input_shape), device="meta")
        version = value._version
        with torch.no_grad():
            try:
                probe(value)
            except (RuntimeError, TypeError, ValueError):
                continue  # the shape check that follows says what is wrong
        if value._version != version:
            return True
    return False


def _output_shape(unit: nn.Module, input_shape: ImageShape, name: str) -> ImageShape:
    try:
        with torch.no_grad():
            output = empty_copy(unit).eval()(torch.empty((2, *input_shape), device="meta"))
    except (RuntimeError, TypeError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise UsageError(
            f"Unit {name!r} does not accept its input of shape {input_shape}: {first_line}. "
            "Check the order of the modules and the image size."
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 4 or 0 in output.shape:
        found = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"Unit {name!r} gives {found}: a unit's output must be (channels, height, width) with no empty side. "
            "Use larger images or fewer pooling layers, and put flattening layers into the classifier."
        )
    return (output.shape[1], output.shape[2], output.shape[3])


def _holds_convolution(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


def _cut_sequential(modules: nn.Sequential) -> tuple[list[nn.Module], nn.Module | None]:
    children = list(modules)
    convolutions = [index for index, child in enumerate(children) if _holds_convolution(child)]
    if not convolutions:
        return [], None
    tail_start = next(
        (
            index
            for index in range(convolutions[-1] + 1, len(children))
            if isinstance(children[index], (nn.Flatten, nn.Linear, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
        ),
        len(children),
    )
    tail = children[tail_start:]
    if not any(isinstance(part, nn.Linear) for child in tail for part in child.modules()):
        tail_start, tail = len(children), []
    starts = [0, *convolutions[1:], tail_start]
    units: list[nn.Module] = [
        nn.Sequential(*children[start:end]) if end - start > 1 else children[start] for start, end in pairwise(starts)
    ]
    return units, (nn.Sequential(*tail) if tail else None)
