"""Each kind of error has its own exit code, so that scripts can tell them apart."""

from __future__ import annotations

from neuroflux_fl import errors
from neuroflux_fl.errors import NeurofluxError


def test_exit_codes_are_distinct_and_never_success() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, NeurofluxError)]
    codes = [kind.exit_code for kind in kinds]

    assert len(kinds) == 9
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 64 for code in codes)
