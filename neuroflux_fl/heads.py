"""Auxiliary heads: the small classifiers that give each unit its local loss. Every device of a fleet has the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from neuroflux_fl.errors import UsageError
from neuroflux_fl.models import norm_factory
from neuroflux_fl.unit_chain import ImageShape, UnitChain, empty_copy

HEAD_KINDS = ("conv", "pooled", "compact", "separable")
FILTER_RULES = ("adaptive", "fixed")
_FLOAT_BYTES = 4
_COMPACT_SIDES = 2, 4
_SEPARABLE_SIDE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """What heads look like; part of a fleet's configuration, because only equal heads can be averaged."""

    kind: str = "compact"
    """``conv``: 3x3 convolution, norm, ReLU, pool to 2x2, linear. ``pooled``: average-pool to a quarter of the side
    first, then two 1x1 convolutions (DGL's "mlp-sr"). ``compact``: average-pool to half the side first, to 4
    at most and 2 at least, then as ``conv``: with the similarity loss its accuracy for a fraction of the operations.
    ``separable``: average-pool to at most 8x8, then as ``conv`` with the 3x3 convolution depthwise and a 1x1 one after
    it."""
    rule: str = "adaptive"
    """``adaptive``: the head's activations for one sample never exceed ``share`` of its unit's.
    ``fixed``: always ``filters`` (256 is classic local learning)."""
    filters: int = 64
    """The number of filters, for ``adaptive`` the largest allowed."""
    share: float = 1.0
    """Only for ``adaptive``: head's activation bytes over unit's activation bytes."""

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise UsageError(f"Head kind {self.kind!r} is unknown: choose one of {', '.join(HEAD_KINDS)}.")
        if self.rule not in FILTER_RULES:
            raise UsageError(f"Filter rule {self.rule!r} is unknown: choose one of {', '.join(FILTER_RULES)}.")
        if self.filters < 1:
            raise UsageError(f"Head filters {self.filters} is too small: give at least 1.")
        if not self.share > 0:
            raise UsageError(f"Head share {self.share} is not positive: give for example 1.0.")


def describe_heads(chain: UnitChain, settings: HeadSettings, norm: str) -> tuple[nn.Module, ...]:
    """One head for each unit, on the meta device; the last is the model's own classifier."""
    with torch.device("meta"):
        heads = [
            build_head(shape, chain.classes, head_filters(chain, unit, settings), settings.kind, norm)
            for unit, shape in enumerate(chain.output_shapes[:-1])
        ]
    return (*heads, chain.classifier)


def head_filters(chain: UnitChain, unit: int, settings: HeadSettings) -> int:
    """Number of filters of the head of ``unit``; 0 for the last unit, whose head is the classifier.

    A pure function of shapes, so that every device of a fleet arrives at the same number.
    """
    if unit == len(chain) - 1:
        return 0
    if settings.rule == "fixed":
        return settings.filters
    fixed, for_one_filter = _head_bytes(chain.output_shapes[unit], settings.kind)
    available = settings.share * unit_activation_bytes(chain, unit) - fixed
    return max(8, min(settings.filters, int(available / for_one_filter) // 8 * 8))


def build_head(shape: ImageShape, classes: int, filters: int, kind: str, norm: str) -> nn.Sequential:
    """A head for unit outputs of ``(batch, *shape)``, giving ``(batch, classes)``."""
    channels, height, width = shape
    make_norm = norm_factory[norm]
    body: list[nn.Module] = []
    pooled = _pooled_sides(shape, kind)
    if kind == "pooled" or pooled != (height, width):
        body.append(nn.AdaptiveAvgPool2d(pooled))
    if kind == "pooled":
        body += [nn.Conv2d(channels, filters, 1, bias=False), make_norm(filters), nn.ReLU(inplace=True)]
        body += [nn.Conv2d(filters, filters, 1, bias=False)]
    elif kind == "separable":
        body += [nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)]
        body += [nn.Conv2d(channels, filters, 1, bias=False)]
    else:
        body += [nn.Conv2d(channels, filters, 3, padding=1, bias=False)]
    body += [make_norm(filters), nn.ReLU(inplace=True)]
    side = 1 if norm == "group" and min(height, width) < 2 else 2
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(filters * side * side, classes))


def unit_activation_bytes(chain: UnitChain, unit: int) -> int:
    """Bytes for one sample of everything that the unit's layers write out of place, in float32."""
    total = 0

    def count(module: nn.Module, _args: object, output: torch.Tensor) -> None:
        nonlocal total
        if not getattr(module, "inplace", False):
            total += _FLOAT_BYTES * output[0].numel()

    module = empty_copy(chain.units[unit])
    leaves = [part for part in module.modules() if not list(part.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.no_grad():
        module(torch.empty((2, *chain.input_shapes[unit]), device="meta"))
    for handle in handles:
        handle.remove()
    return total


def _pooled_sides(shape: ImageShape, kind: str) -> tuple[int, int]:
    """Height and width that the head's first convolution sees."""
    _, height, width = shape
    if kind == "conv":
        return height, width
    if kind == "pooled":
        return _quarter(height), _quarter(width)
    if kind == "compact":
        return _compact(height), _compact(width)
    return min(height, _SEPARABLE_SIDE), min(width, _SEPARABLE_SIDE)


def _compact(side: int) -> int:
    least, most = _COMPACT_SIDES
    return min(side, most, max(least, side // 2))


def _quarter(side: int) -> int:
    return max(1, (side + 3) // 4) if side > 2 else side


def _head_bytes(shape: ImageShape, kind: str) -> tuple[int, int]:
    """Bytes for one sample that a first pooling, the convolutions and norms write: fixed ones, and each filter's."""
    channels, height, width = shape
    pooled = _pooled_sides(shape, kind)
    plane = _FLOAT_BYTES * pooled[0] * pooled[1]
    fixed_planes = channels * ((kind == "pooled" or pooled != (height, width)) + (kind == "separable"))
    planes_per_filter = 4 if kind == "pooled" else 2
    return fixed_planes * plane, planes_per_filter * plane
