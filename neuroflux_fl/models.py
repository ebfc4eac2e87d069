"""VGG and ResNet as unit chains, built from torchvision's own definitions."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import nn

from neuroflux_fl.errors import UsageError
from neuroflux_fl.torchvision_import import torchvision
from neuroflux_fl.unit_chain import ImageShape, UnitChain, average_pool_classifier, chain_from_modules

SMALL_IMAGE_SIDE = 64
"""Images up to this side get a stem without early pooling and one linear classifier layer."""

_VGG_CONFIGS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
_RESNETS = ("resnet18", "resnet34")
MODEL_NAMES = (*_VGG_CONFIGS, *_RESNETS)
NORMS = ("batch", "group")
_MOST_CLASSES = 1_000_000
_LONGEST_SIDE = 16_384
"""More are mistakes, and sizes of tensors that overflow."""


def build_chain(
    model: str, *, image_shape: ImageShape, classes: int, norm: str = "batch", width: float = 1.0
) -> UnitChain:
    """Describe a named model as a unit chain on the meta device: no weights are allocated.

    Args:
        model: one of ``MODEL_NAMES``.
        image_shape: ``(channels, height, width)``.
        classes: number of classes, at least 2.
        norm: ``batch`` or ``group`` (groups of at least 8 channels; usable with any batch size).
        width: factor on the channels of a VGG; ResNets have width 1.

    Raises:
        UsageError: unknown model or norm, images too small for the model, or a width that is not allowed.
    """
    if model not in MODEL_NAMES:
        near = difflib.get_close_matches(model, MODEL_NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"Model {model!r} is unknown: choose one of {', '.join(MODEL_NAMES)}.{hint}")
    if norm not in NORMS:
        raise UsageError(f"Norm {norm!r} is unknown: choose batch or group.")
    if not 2 <= classes <= _MOST_CLASSES:
        raise UsageError(f"Classes {classes} is not allowed: a classifier has 2 to {_MOST_CLASSES} classes.")
    if not all(1 <= side <= _LONGEST_SIDE for side in image_shape):
        raise UsageError(
            f"Image shape {image_shape} has an empty side, or one over {_LONGEST_SIDE}: write for example 3x32x32."
        )
    if not 0.05 <= width <= 4:
        raise UsageError(f"Width {width} is not allowed: give a factor between 0.05 and 4.")
    with torch.device("meta"):
        if model in _VGG_CONFIGS:
            return _vgg_chain(model, image_shape, classes, norm, width)
        if width != 1:
            raise UsageError(f"Width {width} is not allowed for {model}: only VGG models can be made narrower.")
        return _resnet_chain(model, image_shape, classes, norm)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm over groups of at least 8 channels, 32 groups at most."""
    fitting = (groups for groups in (32, 16, 8, 4, 2) if channels % groups == 0 and channels // groups >= 8)
    return nn.GroupNorm(next(fitting, 1), channels)


def _is_small(image_shape: ImageShape) -> bool:
    return max(image_shape[1:]) <= SMALL_IMAGE_SIDE


def _vgg_chain(model: str, image_shape: ImageShape, classes: int, norm: str, width: float) -> UnitChain:
    vgg = torchvision.models.vgg
    config = [
        entry if isinstance(entry, str) else max(8, 8 * round(entry * width / 8))
        for entry in vgg.cfgs[_VGG_CONFIGS[model]]
    ]
    layers = list(vgg.make_layers(config, batch_norm=True))
    channels = image_shape[0]
    if channels != 3:
        first = layers[0]
        layers[0] = nn.Conv2d(channels, first.out_channels, kernel_size=3, padding=1)
    if norm == "group":
        layers = [group_norm(layer.num_features) if isinstance(layer, nn.BatchNorm2d) else layer for layer in layers]
    features = nn.Sequential(*layers)
    output_channels = next(entry for entry in reversed(config) if not isinstance(entry, str))
    if _is_small(image_shape):
        classifier: nn.Module = average_pool_classifier(output_channels, classes)
    else:
        original = vgg.VGG(nn.Sequential(), num_classes=classes, init_weights=False)
        original.classifier[0] = nn.Linear(output_channels * 7 * 7, 4096)
        classifier = nn.Sequential(original.avgpool, nn.Flatten(), original.classifier)
    count = sum(not isinstance(entry, str) for entry in config)
    return chain_from_modules(
        features,
        image_shape=image_shape,
        classes=classes,
        classifier=classifier,
        names=[f"conv{index}" for index in range(count)],
        name=model,
    )


def _resnet_chain(model: str, image_shape: ImageShape, classes: int, norm: str) -> UnitChain:
    build: Callable[..., nn.Module] = getattr(torchvision.models, model)
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d if norm == "batch" else group_norm
    network = build(weights=None, num_classes=classes, norm_layer=norm_layer)
    parts = dict(network.named_children())
    channels = image_shape[0]
    if _is_small(image_shape):
        stem: list[nn.Module] = [
            nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False), parts["bn1"], parts["relu"],
        ]  # fmt: skip
    else:
        conv = parts["conv1"] if channels == 3 else nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        stem = [conv, parts["bn1"], parts["relu"], parts["maxpool"]]
    units: list[nn.Module] = [nn.Sequential(*stem)]
    names = ["stem"]
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in parts[layer].named_children():
            units.append(block)
            names.append(f"{layer}.{index}")
    return chain_from_modules(
        units,
        image_shape=image_shape,
        classes=classes,
        classifier=nn.Sequential(parts["avgpool"], nn.Flatten(), parts["fc"]),
        names=names,
        name=model,
    )


norm_factory: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm}
"""Norm layer by name, for the heads."""

__all__ = ["MODEL_NAMES", "NORMS", "build_chain", "group_norm", "norm_factory"]
