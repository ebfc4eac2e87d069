"""What all tests of fleets need: a garbage collector that does not walk through the libraries at every block."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from flwr.clientapp import ClientApp

from server.grid import InProcessGrid


@pytest.fixture(scope="session", autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    # As clients.process does: every memory measurement collects garbage first.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _task_identity() -> None:
    # Flower's Message(...) needs an identity; a grid sets one, but tests make messages before they make grids.
    with InProcessGrid(ClientApp(), {}, {}):
        pass
