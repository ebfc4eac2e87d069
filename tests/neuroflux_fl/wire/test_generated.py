"""The committed protobuf files are those that the source gives."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

GENERATE = Path(__file__).resolve().parents[3] / "protos" / "generate.py"


def test_committed_files_are_not_stale() -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools is not installed")

    done = subprocess.run([sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, check=False)

    if done.returncode == 2 and "is not installed" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


def test_check_names_a_stale_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    spec = importlib.util.spec_from_file_location("generate_protos", GENERATE)
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    if generator.find_stub_plugin() is None:
        pytest.skip("mypy-protobuf is not installed")
    folders = {source: tmp_path / source for source in generator.FOLDERS}
    for source, folder in folders.items():
        folder.mkdir()
        generator.generate(source, folder)
    (folders["neuroflux.proto"] / "neuroflux_pb2.py").write_text("stale")
    (folders["agent.proto"] / "agent_pb2.pyi").unlink()
    monkeypatch.setattr(generator, "FOLDERS", folders)

    stale = generator.stale_files()

    assert stale == ["neuroflux_pb2.py", "agent_pb2.pyi"]
