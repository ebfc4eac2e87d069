"""Byte sizes as people write them."""

from __future__ import annotations

import pytest

from neuroflux_fl.errors import UsageError
from neuroflux_fl.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 67108864), ("1.5GiB", 1610612736), ("200MB", 200_000_000), (" 12 kib ", 12288), ("7", 7), ("8B", 8)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "64 miles", "-3MiB", "1e9", "0", "0.2B", "٣MiB", "2000000000GiB", "9" * 400]
)
def test_what_is_no_positive_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="64MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"), [(67108864, "64.0 MiB"), (1610612736, "1.5 GiB"), (2048, "2.0 KiB"), (12, "12 B")]
)
def test_sizes_are_written(size: int, text: str) -> None:
    assert format_bytes(size) == text
