"""Named models against torchvision's own networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuroflux_fl.errors import UsageError
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import build_network
from neuroflux_fl.models import MODEL_NAMES, build_chain, group_norm
from neuroflux_fl.torchvision_import import torchvision
from neuroflux_fl.unit_chain import UnitChain, empty_copy

VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")
RESNETS = ("resnet18", "resnet34")


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def original(model: str, classes: int) -> nn.Module:
    build = getattr(torchvision.models, model + ("_bn" if model in VGGS else ""))
    network: nn.Module = build(weights=None, num_classes=classes)
    return network


def meta_shape(chain: UnitChain) -> tuple[int, ...]:
    value = torch.empty((2, *chain.image_shape), device="meta")
    for unit, shape in zip(chain.units, chain.output_shapes, strict=True):
        value = empty_copy(unit)(value)
        assert value.shape[1:] == shape
    return tuple(empty_copy(chain.classifier)(value).shape)


@pytest.mark.parametrize("model", VGGS)
def test_vgg_units_hold_torchvisions_features(model: str) -> None:
    with torch.device("meta"):
        reference = original(model, 10)
    small = build_chain(model, image_shape=(3, 32, 32), classes=10)
    large = build_chain(model, image_shape=(3, 224, 224), classes=10)

    assert len(small) == sum(isinstance(layer, nn.Conv2d) for layer in reference.get_submodule("features").children())
    assert parameters(*small.units) == parameters(reference.get_submodule("features"))
    assert parameters(small.classifier) == 512 * 10 + 10
    assert parameters(*large.units, large.classifier) == parameters(reference)
    assert meta_shape(small) == meta_shape(large) == (2, 10)


@pytest.mark.parametrize("model", RESNETS)
def test_resnet_holds_torchvisions_network_but_for_the_stem_of_small_images(model: str) -> None:
    with torch.device("meta"):
        reference = original(model, 10)
    small = build_chain(model, image_shape=(3, 32, 32), classes=10)
    large = build_chain(model, image_shape=(3, 224, 224), classes=10)

    assert parameters(*large.units, large.classifier) == parameters(reference)
    assert parameters(*small.units, small.classifier) == parameters(reference) - 64 * 3 * (7 * 7 - 3 * 3)
    assert len(small) == {"resnet18": 9, "resnet34": 17}[model]
    assert small.output_shapes[0] == (64, 32, 32)
    assert large.output_shapes[0] == (64, 56, 56)
    assert meta_shape(small) == meta_shape(large) == (2, 10)


def load_in_order(parts: list[nn.Module], reference: nn.Module) -> None:
    ours = [value for part in parts for value in part.state_dict().values()]
    for mine, theirs in zip(ours, reference.state_dict().values(), strict=True):
        mine.copy_(theirs)


@pytest.mark.parametrize("model", ["resnet18", "vgg11"])
def test_with_torchvisions_weights_the_chain_gives_torchvisions_numbers(model: str) -> None:
    if model == "vgg11":
        vgg = torchvision.models.vgg
        reference: nn.Module = vgg.make_layers(vgg.cfgs["A"], batch_norm=True).eval()
        chain = build_chain(model, image_shape=(3, 32, 32), classes=4)
        parts = [empty_copy(unit, "cpu").eval() for unit in chain.units]
    else:
        reference = original(model, 4).eval()
        chain = build_chain(model, image_shape=(3, 65, 65), classes=4)
        parts = [empty_copy(module, "cpu").eval() for module in (*chain.units, chain.classifier)]
    load_in_order(parts, reference)
    images = torch.randn(2, *chain.image_shape)

    with torch.no_grad():
        value = images
        for part in parts:
            value = part(value)
        torch.testing.assert_close(value, reference(images))


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_group_norm_leaves_no_batch_norm_anywhere(model: str) -> None:
    chain = build_chain(model, image_shape=(1, 32, 32), classes=10, norm="group")
    network = build_network(chain, HeadSettings(), "group")

    for module in (*network.chain.units, *network.heads):
        assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def test_groups_hold_at_least_eight_channels() -> None:
    for channels in range(8, 520, 8):
        norm = group_norm(channels)
        assert channels % norm.num_groups == 0
        assert channels // norm.num_groups >= 8
    assert group_norm(512).num_groups == 32
    assert group_norm(5).num_groups == 1


def test_width_scales_channels_in_steps_of_eight() -> None:
    chain = build_chain("vgg11", image_shape=(1, 32, 32), classes=10, width=0.3)

    assert [shape[0] for shape in chain.output_shapes] == [16, 40, 80, 80, 152, 152, 152, 152]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("restnet18", {}, "Did you mean 'resnet18'"),
        ("resnet18", {"width": 0.5}, "only VGG models"),
        ("vgg16", {"norm": "layer"}, "Norm 'layer' is unknown"),
        ("vgg16", {"classes": 1}, "2 to 1000000 classes"),
        ("vgg16", {"width": 9.0}, "between 0.05 and 4"),
        ("vgg16", {"image_shape": (3, 0, 8)}, "empty side"),
        ("vgg16", {"image_shape": (3, 16, 16)}, "Use larger images|image size"),
    ],
)
def test_unknown_names_and_impossible_values_are_refused(model: str, options: dict[str, object], message: str) -> None:
    arguments = {"image_shape": (3, 32, 32), "classes": 10, **options}

    with pytest.raises(UsageError, match=message):
        build_chain(model, **arguments)  # type: ignore[arg-type]
