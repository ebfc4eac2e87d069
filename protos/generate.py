"""Write the Python side of the protobuf sources: ``neuroflux_fl/wire/*_pb2.py`` and ``clients/agent_pb2.py``.

``python protos/generate.py`` writes them with their stubs; ``python protos/generate.py --check`` writes nothing and
exits with 1 when the committed files are not what the sources give. Needs ``grpcio-tools`` and ``mypy-protobuf``.
"""

from __future__ import annotations

import argparse
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
FOLDERS = {
    "neuroflux.proto": PROTOS.parent / "neuroflux_fl" / "wire",
    "telemetry.proto": PROTOS.parent / "neuroflux_fl" / "wire",
    "agent.proto": PROTOS.parent / "clients",
}
"""Where the files generated from each source belong."""


def find_stub_plugin() -> str | None:
    """The ``protoc-gen-mypy`` beside this interpreter, or else on the path."""
    return shutil.which("protoc-gen-mypy", path=str(Path(sys.executable).parent)) or shutil.which("protoc-gen-mypy")


def generate(source: str, folder: Path) -> None:
    """Run protoc over one source and write the generated files into ``folder``.

    Raises:
        RuntimeError: protoc or its stub plugin is missing or failed.
    """
    try:
        from grpc_tools import protoc  # type: ignore[import-untyped]
    except ImportError as error:
        raise RuntimeError("grpcio-tools is not installed: pip install grpcio-tools mypy-protobuf.") from error
    plugin = find_stub_plugin()
    if plugin is None:
        raise RuntimeError("protoc-gen-mypy is not installed: pip install mypy-protobuf.")
    includes = importlib.resources.files("grpc_tools") / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={includes}",
            f"--plugin=protoc-gen-mypy={plugin}",
            f"--python_out={folder}",
            f"--mypy_out=quiet:{folder}",
            source,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}: see its message above.")


def generated_files(source: str) -> tuple[str, str]:
    """Names of the files that ``source`` gives."""
    stem = Path(source).stem
    return f"{stem}_pb2.py", f"{stem}_pb2.pyi"


def stale_files() -> list[str]:
    """Names of the committed files that differ from what the sources give now."""
    stale = []
    with tempfile.TemporaryDirectory() as temporary:
        for source, folder in FOLDERS.items():
            generate(source, Path(temporary))
            names = generated_files(source)
            stale += [name for name in names if _text(folder / name) != _text(Path(temporary) / name)]
    return stale


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def main() -> int:
    """Generate or check; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generate the Python side of the protobuf sources.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the committed files are stale")
    arguments = parser.parse_args()
    try:
        if not arguments.check:
            for source, folder in FOLDERS.items():
                generate(source, folder)
            return 0
        stale = stale_files()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in stale:
        print(f"{name} is stale: run python protos/generate.py and commit the result.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
