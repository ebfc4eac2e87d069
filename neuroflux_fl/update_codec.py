"""Updates in fewer bytes: what a unit has moved away from the received weights, in float16 or in scaled int8.

The difference is coded, not the weights: it is small and centred on zero, so that the same bits resolve it better. A
packed unit stays one array, as it travels in one record.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import WireError

PRECISIONS = ("float32", "float16", "int8")
GROUP = 256
"""Values that share one float32 scale in int8: 1.6 % more bytes."""
_LARGEST_INT8 = 127
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def encode_update(
    packed: NDArray[np.float32], received: NDArray[np.float32], precision: str
) -> NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint8]:
    """Code a trained unit for sending.

    Args:
        packed: (n,), trained.
        received: (n,) or longer, the weights that training began with.
        precision: one of ``PRECISIONS``.

    Returns:
        float32: ``packed`` itself. float16: (n,), the difference. int8: uint8 (4 * groups + n,), the scales of all
        groups as little-endian float32, then one signed byte a value.
    """
    if precision == "float32":
        return packed
    moved = packed - received[: len(packed)]
    if precision == "float16":
        halves: NDArray[np.float16] = np.clip(moved, -_LARGEST_FLOAT16, _LARGEST_FLOAT16).astype(np.float16)
        return halves
    groups = _grouped(moved)
    scales = (np.abs(groups).max(axis=1) / _LARGEST_INT8).astype("<f4")
    # A group that did not move has scale 0: any divisor gives its zeros.
    values = np.rint(groups / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), values.reshape(-1)[: len(moved)].view(np.uint8)])


def decode_update(
    array: NDArray[np.generic], received: NDArray[np.float32], size: int, precision: str
) -> NDArray[np.float32]:
    """The trained unit that ``array`` stands for: (size,) float32.

    Args:
        array: as ``encode_update`` gives it.
        received: (size,) or longer, the weights that the device began with.
        size: of the packed unit.
        precision: what the device was asked for.

    Raises:
        WireError: another dtype or length than the precision gives. Values are not checked.
    """
    groups = -(-size // GROUP)
    dtype, length = {
        "float32": (np.dtype(np.float32), size),
        "float16": (np.dtype(np.float16), size),
        "int8": (np.dtype(np.uint8), 4 * groups + size),
    }[precision]
    if array.dtype != dtype or array.shape != (length,):
        raise WireError(
            f"Update in {precision} is {array.dtype} of shape {array.shape}; it must be {dtype} of shape ({length},)."
        )
    if precision == "float32":
        return array.astype(np.float32, copy=False)
    base = received[:size]
    if precision == "float16":
        return base + array.astype(np.float32)
    raw = np.ascontiguousarray(array).view(np.uint8)
    scales = raw[: 4 * groups].view("<f4").astype(np.float32)
    moved = _grouped(raw[4 * groups :].view(np.int8).astype(np.float32)) * scales[:, None]
    return base + moved.reshape(-1)[:size]


def coding_error(packed: NDArray[np.float32], decoded: NDArray[np.float32], received: NDArray[np.float32]) -> float:
    """What coding lost as a share of what training moved: a ratio of Euclidean norms; 0 where nothing moved."""
    moved = float(np.linalg.norm(packed - received[: len(packed)]))
    return float(np.linalg.norm(decoded - packed)) / moved if moved else 0.0


def _grouped(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) as (groups, GROUP), the end filled up with zeros."""
    groups = -(-len(values) // GROUP)
    padded = np.zeros(groups * GROUP, np.float32)
    padded[: len(values)] = values
    return padded.reshape(groups, GROUP)
