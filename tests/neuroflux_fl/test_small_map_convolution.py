"""Convolutions on maps of a few pixels: the same gradients as torch's, without its reservation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from neuroflux_fl.frugal_convolution import FrugalConv2d, prepare_updates
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.plan import SLICED, Window
from neuroflux_fl.small_map_convolution import SmallMapConv2d, use_small_maps, weight_gradient

MIB = 1024**2
CAPABILITY = torch.backends.cpu.get_cpu_capability()


@pytest.fixture(autouse=True)
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def gradients(convolution: nn.Conv2d, images: Tensor) -> tuple[Tensor, ...]:
    """Output, then gradients by images, weight and, if there is one, bias."""
    images = images.detach().requires_grad_()
    output = convolution(images)
    parameters = list(convolution.parameters())
    found = torch.autograd.grad(
        (output * torch.arange(output.numel()).view(output.shape).cos()).sum(), [images, *parameters]
    )
    return (output.detach(), *found)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({"kernel_size": 3, "padding": 1, "bias": False}, (2, 2)),
        ({"kernel_size": 3, "padding": 1}, (1, 1)),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, (4, 4)),
        ({"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1)}, (1, 4)),
        ({"kernel_size": 2}, (2, 2)),
    ],
)
def test_gradients_equal_those_of_torch(
    options: dict[str, int], sides: tuple[int, int], layout: torch.memory_format
) -> None:
    plain = nn.Conv2d(384, 640, **options).to(memory_format=layout)  # type: ignore[arg-type, call-overload]
    ours = copy.deepcopy(plain)
    use_small_maps(ours)
    assert type(ours) is SmallMapConv2d
    images = torch.randn(5, 384, *sides).to(memory_format=layout)

    expected, found = gradients(plain, images), gradients(ours, images)

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    by_weight = weight_gradient(images, ours.weight, torch.ones_like(found[0]), (ours.stride, ours.padding))  # type: ignore[arg-type]
    assert by_weight.stride() == ours.weight.stride(), "autograd would copy it into the weight's layout"


def test_frozen_images_or_weight_get_no_gradient() -> None:
    convolution = nn.Conv2d(256, 256, 3, padding=1)
    use_small_maps(convolution)

    convolution(torch.randn(2, 256, 2, 2)).sum().backward()
    assert convolution.weight.grad is not None
    convolution.weight.grad = None
    convolution.weight.requires_grad_(False)
    images = torch.randn(2, 256, 2, 2, requires_grad=True)
    convolution(images).sum().backward()

    assert convolution.weight.grad is None
    assert images.grad is not None


@pytest.mark.skipif(CAPABILITY != "AVX2", reason=f"with {CAPABILITY} oneDNN's other kernels take what they like")
def test_backward_asks_for_no_more_than_gradients_and_patches() -> None:
    convolution = nn.Conv2d(512, 512, 3, padding=1, bias=False)
    use_small_maps(convolution)
    images = torch.randn(8, 512, 2, 2, requires_grad=True)
    convolution(images).sum().backward()

    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        convolution(images).sum().backward()

    largest = max(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    assert largest <= 10 * MIB


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(512, 512, 1),
        nn.Conv2d(512, 512, 3, groups=2),
        nn.Conv2d(512, 512, 3, padding="same"),
        nn.Conv2d(512, 512, 3, padding=1, padding_mode="reflect"),
    ],
    ids=["small", "one pixel", "grouped", "same", "reflect"],
)
def test_others_are_left_alone(convolution: nn.Conv2d) -> None:
    use_small_maps(convolution)

    assert type(convolution) is nn.Conv2d


def test_large_maps_and_autocast_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    large, wide = nn.Conv2d(256, 256, 3, padding=1), nn.Conv2d(512, 512, 3, padding=1)
    use_small_maps(large)
    use_small_maps(wide)

    def refuse(*_arguments: object) -> Tensor:
        raise AssertionError("the product was used")

    monkeypatch.setattr("neuroflux_fl.small_map_convolution._Convolve.apply", refuse)
    large(torch.randn(2, 256, 3, 2))
    wide(torch.randn(2, 512, 5, 4))
    with torch.autocast("cpu", torch.bfloat16):
        large(torch.randn(2, 256, 2, 2))
    with pytest.raises(AssertionError, match="product"):
        large(torch.randn(2, 256, 2, 2))
    with pytest.raises(AssertionError, match="product"):
        wide(torch.randn(2, 512, 4, 4))


def test_other_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    convolution = nn.Conv2d(256, 256, 3, padding=1)

    use_small_maps(convolution)

    assert type(convolution) is nn.Conv2d


def test_windows_with_whole_updates_have_them_and_sliced_ones_do_not() -> None:
    whole, sliced = nn.Conv2d(256, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1)

    prepare_updates(Window(first_unit=0, last_unit=0), [whole], OptimizerSettings())
    prepare_updates(Window(first_unit=0, last_unit=0, updates=SLICED), [sliced], OptimizerSettings())

    assert (type(whole), type(sliced)) == (SmallMapConv2d, FrugalConv2d)
