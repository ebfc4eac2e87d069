"""Fewer bytes for an update, at an error that is known and small; nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from neuroflux_fl.errors import WireError
from neuroflux_fl.update_codec import GROUP, PRECISIONS, coding_error, decode_update, encode_update

SIZE = 3 * GROUP + 17


def make_unit(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights as received, and as trained: moved by a hundredth of their size."""
    generator = np.random.default_rng(seed)
    received = generator.normal(size=SIZE + 40).astype(np.float32)  # with a head that was not trained
    return received, received[:SIZE] + generator.normal(scale=0.01, size=SIZE).astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "bytes_sent", "largest_error"),
    [("float32", 4 * SIZE, 0.0), ("float16", 2 * SIZE, 5e-4), ("int8", SIZE + 4 * 4, 0.02)],
)
def test_bytes_and_error(precision: str, bytes_sent: int, largest_error: float) -> None:
    received, trained = make_unit()

    array = encode_update(trained, received, precision)
    decoded = decode_update(array, received, SIZE, precision)

    assert array.nbytes == bytes_sent
    assert (decoded.dtype.name, decoded.shape) == ("float32", (SIZE,))
    assert coding_error(trained, decoded, received) <= largest_error
    assert (coding_error(trained, decoded, received) > 0) == (precision != "float32")


def test_int8_by_hand() -> None:
    received = np.zeros(4, np.float32)
    trained = np.array([0.0, 1.27, -1.27, 0.634], np.float32)

    array = encode_update(trained, received, "int8")

    assert array[:4].view("<f4")[0] == np.float32(0.01)
    assert array[4:].view(np.int8).tolist() == [0, 127, -127, 63]
    np.testing.assert_allclose(decode_update(array, received, 4, "int8"), [0, 1.27, -1.27, 0.63], atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_unit_that_did_not_move_comes_back_exactly(precision: str) -> None:
    received, _ = make_unit()
    trained = received[:SIZE].copy()

    decoded = decode_update(encode_update(trained, received, precision), received, SIZE, precision)

    np.testing.assert_array_equal(decoded, trained)
    assert coding_error(trained, decoded, received) == 0


def test_float16_saturates() -> None:
    trained = np.array([1e9, -1e9], np.float32)

    array = encode_update(trained, np.zeros(2, np.float32), "float16")

    assert array.tolist() == [65504, -65504]


@pytest.mark.parametrize("sent_as", PRECISIONS)
@pytest.mark.parametrize("asked_for", PRECISIONS)
def test_another_precision_than_asked_for_is_refused(sent_as: str, asked_for: str) -> None:
    received, trained = make_unit()
    array = encode_update(trained, received, sent_as)
    if sent_as == asked_for:
        array = array[:-1]

    with pytest.raises(WireError, match=f"Update in {asked_for} is"):
        decode_update(array, received, SIZE, asked_for)
