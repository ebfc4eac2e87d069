"""Packed arrays hold every tensor at its place, with and without the head."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflux_fl.errors import WireError
from neuroflux_fl.wire import PackLayout, unit_key

LAYOUT = PackLayout(
    unit_parameters=(("unit.weight", (2, 2)), ("unit.bias", (2,))),
    unit_buffers=(("unit.running_mean", (2,)),),
    head_parameters=(("head.weight", (1, 3)),),
    head_buffers=(("head.running_var", ()),),
)
TENSORS = {
    "unit.weight": np.array([[1, 2], [3, 4]], np.float32),
    "unit.bias": np.array([5, 6], np.float32),
    "unit.running_mean": np.array([7, 8], np.float32),
    "head.weight": np.array([[9, 10, 11]], np.float32),
    "head.running_var": np.array(12, np.float32),
}
BODY = {name: tensor for name, tensor in TENSORS.items() if name.startswith("unit.")}


def test_tensors_lie_in_the_layout_order_whatever_the_order_given() -> None:
    packed = LAYOUT.pack(dict(reversed(TENSORS.items())))

    assert packed.dtype == np.float32
    assert packed.tolist() == list(range(1, 13))


def test_slices_cut_the_four_segments() -> None:
    packed = LAYOUT.pack(TENSORS)

    assert LAYOUT.sizes == (6, 2, 3, 1)
    assert packed[LAYOUT.unit_parameter_slice].tolist() == [1, 2, 3, 4, 5, 6]
    assert packed[LAYOUT.unit_buffer_slice].tolist() == [7, 8]
    assert packed[LAYOUT.head_parameter_slice].tolist() == [9, 10, 11]
    assert packed[LAYOUT.head_buffer_slice].tolist() == [12]
    assert (LAYOUT.size_without_head, LAYOUT.size_with_head) == (8, 12)


@pytest.mark.parametrize("tensors", [TENSORS, BODY], ids=["with head", "without head"])
def test_unpack_undoes_pack(tensors: dict[str, np.ndarray]) -> None:
    has_head = len(tensors) == len(TENSORS)

    unpacked = LAYOUT.unpack(LAYOUT.pack(tensors), has_head)

    assert unpacked.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert unpacked[name].shape == tensor.shape
        np.testing.assert_array_equal(unpacked[name], tensor)


def test_counters_are_left_out_of_the_packed_array() -> None:
    counted: dict[str, np.ndarray] = {**TENSORS, "unit.num_batches_tracked": np.array(9, np.int64)}

    assert len(LAYOUT.pack(counted)) == LAYOUT.size_with_head


def test_layout_refuses_counters_and_foreign_names() -> None:
    with pytest.raises(WireError, match="no counter"):
        PackLayout(unit_parameters=(), unit_buffers=(("unit.num_batches_tracked", ()),))
    with pytest.raises(WireError, match=r"head\.\*"):
        PackLayout(unit_parameters=(), head_parameters=(("unit.weight", (1,)),))


def test_missing_and_misshapen_tensors_are_named() -> None:
    partial_head = {name: tensor for name, tensor in TENSORS.items() if name != "head.running_var"}

    with pytest.raises(WireError, match=r"'head\.running_var' is missing"):
        LAYOUT.pack(partial_head)
    with pytest.raises(WireError, match=r"'unit\.bias' has shape \(3,\); the layout says \(2,\)"):
        LAYOUT.pack({**TENSORS, "unit.bias": np.zeros(3, np.float32)})


@pytest.mark.parametrize("array", [np.zeros(8, np.float32), np.zeros(12), np.zeros((1, 12), np.float32)])
def test_array_that_does_not_fit_is_not_unpacked(array: np.ndarray) -> None:
    with pytest.raises(WireError, match=r"needs float32 of shape \(12,\)"):
        LAYOUT.unpack(array, has_head=True)


def test_unit_key() -> None:
    assert unit_key(3) == "unit-003"
