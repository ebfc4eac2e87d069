"""Auxiliary heads: their size rule, shapes and manners."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neuroflux_fl.errors import UsageError
from neuroflux_fl.heads import (
    HEAD_KINDS,
    HeadSettings,
    build_head,
    describe_heads,
    head_filters,
    unit_activation_bytes,
)
from neuroflux_fl.models import build_chain
from neuroflux_fl.unit_chain import empty_copy

VGG = build_chain("vgg16", image_shape=(3, 32, 32), classes=10)


def written_by_layers(head: nn.Module, shape: tuple[int, int, int]) -> int:
    """Bytes a sample of the outputs of a first pooling, convolutions and norms: what grows with image and filters."""
    total = 0

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        total += 4 * output[0].numel()

    head = empty_copy(head)
    for position, part in enumerate(head.children()):
        if position == 0 or isinstance(part, (nn.Conv2d, nn.BatchNorm2d)):
            part.register_forward_hook(count)
    head(torch.empty((2, *shape), device="meta"))
    return total


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize(("share", "filters"), [(1.0, 64), (1.0, 100_000), (0.25, 64)])
def test_adaptive_head_never_writes_more_than_its_share_of_the_unit(kind: str, share: float, filters: int) -> None:
    settings = HeadSettings(kind=kind, share=share, filters=filters)
    heads = describe_heads(VGG, settings, "batch")
    below_cap = 0

    for unit in range(len(VGG) - 1):
        chosen = head_filters(VGG, unit, settings)
        below_cap += chosen < filters
        assert chosen == 8 or written_by_layers(heads[unit], VGG.output_shapes[unit]) <= share * unit_activation_bytes(
            VGG, unit
        )
        if 8 < chosen < filters:
            wider = build_head(VGG.output_shapes[unit], 10, chosen + 8, kind, "batch")
            assert written_by_layers(wider, VGG.output_shapes[unit]) > share * unit_activation_bytes(VGG, unit)
    assert below_cap or filters == 64


def test_activation_bytes_of_a_unit_by_hand() -> None:
    # Convolution and norm write 64x32x32 each, the ReLU in place, and the second unit's pooling 64x16x16.
    assert unit_activation_bytes(VGG, 0) == 4 * 2 * 64 * 32 * 32
    assert unit_activation_bytes(VGG, 1) == 4 * (2 * 64 * 32 * 32 + 64 * 16 * 16)


def test_fixed_rule_gives_the_same_filters_everywhere_and_the_last_head_is_the_classifier() -> None:
    settings = HeadSettings(rule="fixed", filters=256)

    assert [head_filters(VGG, unit, settings) for unit in range(13)] == [256] * 12 + [0]
    assert describe_heads(VGG, settings, "batch")[-1] is VGG.classifier


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_heads_of_all_units_give_class_scores_and_leave_their_input_alone(kind: str, norm: str) -> None:
    chain = build_chain("vgg11", image_shape=(1, 32, 32), classes=7, norm=norm, width=0.25)
    for shape, head in zip(chain.output_shapes, describe_heads(chain, HeadSettings(kind=kind), norm), strict=True):
        head = empty_copy(head, "cpu")
        for value in (*head.parameters(), *head.buffers()):
            value.data.zero_()
        features = torch.randn(2, *shape)
        before = features.clone()
        assert head(features).shape == (2, 7)
        assert torch.equal(features, before)


def test_compact_and_separable_heads_work_no_more_on_large_maps_and_compact_is_conv_on_small_ones() -> None:
    def multiplications(kind: str, shape: tuple[int, int, int]) -> int:
        head = empty_copy(build_head(shape, 10, 64, kind, "batch"))
        total = 0

        def count(convolution: nn.Module, _inputs: object, output: Tensor) -> None:
            nonlocal total
            assert isinstance(convolution, nn.Conv2d)
            total += output[0].numel() * convolution.weight[0].numel()

        for part in head.modules():
            if isinstance(part, nn.Conv2d):
                part.register_forward_hook(count)
        head(torch.empty((2, *shape), device="meta"))
        return total

    for kind in ("compact", "separable"):
        assert multiplications(kind, (64, 32, 32)) == multiplications(kind, (64, 8, 8))
    assert multiplications("compact", (64, 32, 32)) * 64 == multiplications("conv", (64, 32, 32))
    assert multiplications("compact", (64, 4, 4)) * 4 == multiplications("conv", (64, 4, 4))
    assert multiplications("separable", (256, 4, 4)) == 16 * (256 * 9 + 256 * 64)
    assert repr(build_head((256, 2, 1), 10, 64, "compact", "group")) == repr(
        build_head((256, 2, 1), 10, 64, "conv", "group")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "linear"}, "Head kind 'linear' is unknown"),
        ({"rule": "free"}, "Filter rule 'free' is unknown"),
        ({"filters": 0}, "filters 0 is too small"),
        ({"share": 0.0}, r"share 0\.0 is not positive"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HeadSettings(**options)  # type: ignore[arg-type]
