"""Which devices a figure shows, and numbers as people write them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from server.report.rows import pick_rows, sample_note
from server.report.scales import Scale, byte_scale, shorten, time_scale, write_count, write_seconds, write_share


def test_few_rows_are_all_shown_in_their_order() -> None:
    assert pick_rows([3, 1, 2], float, limit=3) == (3, 1, 2)


def test_of_many_rows_both_ends_and_an_even_sample_are_shown() -> None:
    items = [*range(500, 1000), *range(500)]

    picked = pick_rows(items, float, limit=40)

    assert len(picked) == 40
    assert set(range(10)) | set(range(990, 1000)) <= set(picked)
    middle = sorted(set(picked) - set(range(10)) - set(range(990, 1000)))
    gaps = {after - before for before, after in pairwise(middle)}
    assert gaps == {49}  # 980 ranks in 20 parts
    assert list(picked) == sorted(picked, key=items.index)


def test_the_note_says_what_is_left_out() -> None:
    assert sample_note(40, 40, "size") == ""
    assert sample_note(40, 1000, "size").startswith("40 of 1,000 devices: those with the highest and lowest size")


@pytest.mark.parametrize(
    ("largest", "scale"), [(0, Scale(1.0, "bytes")), (2048, Scale(1024.0, "KiB")), (5 * 2**30, Scale(2.0**30, "GiB"))]
)
def test_bytes_have_one_unit(largest: float, scale: Scale) -> None:
    assert byte_scale(largest) == scale


@pytest.mark.parametrize(("largest", "unit"), [(10, "seconds"), (600, "minutes"), (20_000, "hours"), (1e6, "days")])
def test_time_has_one_unit(largest: float, unit: str) -> None:
    assert time_scale(largest).unit == unit


def test_numbers_for_people() -> None:
    assert [write_count(number) for number in (7, 31_400, 999_990, 5_600_000)] == [
        "7", "31.4 k", "1,000 k", "5.6 M",
    ]  # fmt: skip
    assert [write_seconds(seconds) for seconds in (9.96, 59.99, 60, 3600, 3725, 90_000)] == [
        "10.0 s", "60.0 s", "1 min", "1 h", "1 h 2 min", "1 d 1 h",
    ]  # fmt: skip
    assert [write_share(share) for share in (None, 0.5)] == ["-", "50.0\u00a0%"]
    assert [shorten(text, 5) for text in ("board", "boards")] == ["board", "boar…"]
