"""Cached activations: exact to their precision, whole or absent, within the quota."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neuroflux_fl.activation_cache import ActivationCache, CachedActivations, CacheKey
from neuroflux_fl.errors import StorageError, UsageError

SHAPE = (2, 3, 3)
VALUES = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(0))


def key(view: int = 0, prefix: str = "prefix", data: str = "data") -> CacheKey:
    return CacheKey(prefix_version=prefix, data_version=data, view=view)


def write(cache: ActivationCache, where: CacheKey, values: torch.Tensor = VALUES) -> CachedActivations | None:
    return cache.write(where, SHAPE, len(values), values.split(3))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("precision", "dtype"), [("float16", torch.float16), ("float32", torch.float32)])
def test_rows_come_back_by_index_to_the_stored_precision(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    cache = ActivationCache(tmp_path, precision=precision)
    written = write(cache, key())
    indices = np.array([6, 0, 3, 3])

    found = cache.find(key())

    assert found is not None
    assert found == written
    read = found.read(indices)
    assert read.dtype == torch.float32
    assert torch.equal(read, VALUES[torch.from_numpy(indices)].to(dtype).float())
    assert cache.used_bytes() == cache.written_bytes == 7 * 18 * dtype.itemsize
    assert cache.hits == 1


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_memory_layout_of_the_activations_does_not_matter(tmp_path: Path, precision: str) -> None:
    cache = ActivationCache(tmp_path, precision=precision)

    entry = write(cache, key(), VALUES.half().float().to(memory_format=torch.channels_last))

    assert entry is not None
    assert torch.equal(entry.read(np.arange(7)), VALUES.half().float())


def test_half_precision_saturates_instead_of_storing_infinity(tmp_path: Path) -> None:
    entry = write(ActivationCache(tmp_path), key(), torch.full((1, *SHAPE), 1e6))

    assert entry is not None
    assert set(entry.read(np.array([0])).flatten().tolist()) == {65504.0}


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path)
    write(cache, key())

    for other in (key(view=1), key(prefix="other"), key(data="other")):
        assert cache.find(other) is None
    assert ActivationCache(tmp_path, precision="float32").find(key()) is None


def test_quota_refuses_what_does_not_fit_and_says_so(tmp_path: Path) -> None:
    size = VALUES.numel() * 2
    cache = ActivationCache(tmp_path, quota_bytes=2 * size)

    assert write(cache, key(0)) is not None
    assert write(cache, key(1)) is not None
    assert write(cache, key(2)) is None

    assert cache.refusals == [f"quota of {2 * size} bytes is too small for {size} more"]
    assert cache.find(key(2)) is None
    cache.remove_all([key(0)])
    assert write(cache, key(2)) is not None


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullFile:
        def __enter__(self) -> FullFile:
            return self

        def __exit__(self, *_error: object) -> None: ...

        def write(self, _data: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = ActivationCache(tmp_path)
    monkeypatch.setattr(Path, "open", lambda *_arguments, **_options: FullFile())
    entry = write(cache, key())
    monkeypatch.undo()

    assert entry is None
    assert cache.refusals == [f"cannot write to {tmp_path}: No space left on device"]
    assert list(tmp_path.iterdir()) == []


def test_what_the_weights_need_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = VALUES.numel() * 2
    cache = ActivationCache(tmp_path, reserve_bytes=1000)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000 + size - 1))
    assert write(cache, key()) is None
    assert cache.refusals == [f"cannot write to {tmp_path}: too little space is free beside 1000 bytes for weights"]
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000 + size))
    assert write(cache, key()) is not None


def test_interrupted_write_is_no_entry(tmp_path: Path) -> None:
    class PowerCut(BaseException): ...

    def pieces() -> object:
        yield VALUES[:3]
        raise PowerCut

    cache = ActivationCache(tmp_path)
    with pytest.raises(PowerCut):
        cache.write(key(), SHAPE, 7, pieces())  # type: ignore[arg-type]

    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    assert ActivationCache(tmp_path).find(key()) is None
    cache.keep_only([key()])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["values.bin", "description.json"])
def test_truncated_file_is_no_entry_and_is_written_anew(tmp_path: Path, name: str) -> None:
    cache = ActivationCache(tmp_path)
    entry = write(cache, key())
    assert entry is not None
    path = entry.path.with_name(name)
    path.write_bytes(path.read_bytes()[:-1])

    assert cache.find(key()) is None
    assert write(cache, key()) is not None
    assert cache.find(key()) is not None


def test_file_that_shrinks_while_in_use_is_an_error_not_garbage(tmp_path: Path) -> None:
    entry = write(ActivationCache(tmp_path), key())
    assert entry is not None
    entry.path.write_bytes(entry.path.read_bytes()[:-1])

    entry.read(np.array([5]))
    with pytest.raises(StorageError, match="shorter than its description"):
        entry.read(np.array([6]))


def test_keep_only_keeps_only_those(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path)
    for view in range(3):
        write(cache, key(view))

    cache.keep_only([key(1)])

    assert [cache.find(key(view)) is not None for view in range(3)] == [False, True, False]


def test_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'int8' is unknown: choose one of float16, float32"):
        ActivationCache(tmp_path, precision="int8")
