"""The warm device agent: ``python -m clients.agent --socket PATH`` keeps torch, model, data and caches in memory."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc  # type: ignore[import-untyped]

from clients.agent_client import socket_address
from clients.agent_service import AgentService, Perform
from neuroflux_fl.errors import NeurofluxError, StorageError, UsageError
from neuroflux_fl.training_monitor import TrainingMonitor

logger = logging.getLogger(__name__)

_CALL_THREADS = 32
_END_SECONDS = 1.0


@contextmanager
def owned_socket(socket: Path) -> Iterator[None]:
    """Be the one agent of ``socket`` until the end: a lock beside it tells, and dies with the process.

    A socket file that a killed agent left is removed. The folder is made, with access for its owner alone.

    Raises:
        UsageError: another agent has it, its folder is open to other users, or it is a file of another kind.
        StorageError: the folder cannot be written.
    """
    lock_path = socket.with_name(socket.name + ".lock")
    try:
        socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = socket.parent.stat()
        if folder.st_uid != os.geteuid() or folder.st_mode & 0o077:
            raise UsageError(
                f"Folder {socket.parent} of the agent socket is open to other users: chmod 700, or choose another."
            )
        lock = lock_path.open("a+")
    except OSError as error:
        raise StorageError(f"Agent socket {socket} cannot be made: {error.strerror}. Choose another.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UsageError(
                f"Another agent (process {lock.read().strip()}) serves {socket}: end it, or choose another socket."
            ) from None
        if socket.exists() and not socket.is_socket():
            raise UsageError(f"Agent socket {socket} is a file of another kind: choose another path.")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        socket.unlink(missing_ok=True)
        try:
            yield
        finally:
            socket.unlink(missing_ok=True)


def serve(socket: Path) -> int:
    """Serve until SIGTERM or SIGINT, then leave at once; returns the exit status.

    What is being worked on is not finished: finished blocks are on the disk, and files are only ever replaced whole.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    address = socket_address(socket)
    with owned_socket(socket):
        server = grpc.server(ThreadPoolExecutor(max_workers=_CALL_THREADS, thread_name_prefix="calls"))
        before = os.umask(0o177)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise StorageError(f"Agent socket {socket} cannot be made: {error}. Choose another.") from error
        finally:
            os.umask(before)
        monitor = TrainingMonitor()
        service = AgentService(partial(_prepare, monitor), monitor)
        server.add_generic_rpc_handlers((service.rpc_handler(),))
        server.start()
        service.prepared.add_done_callback(lambda prepared: _announce(prepared, socket, stop))
        stop.wait()
        server.stop(None).wait(_END_SECONDS)
    failed = service.prepared.done() and service.prepared.exception() is not None
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and serve; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m clients.agent", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="path of the Unix socket to serve")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s agent: %(message)s")
    try:
        return serve(options.socket)
    except NeurofluxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _prepare(monitor: TrainingMonitor) -> Perform:
    from clients.process import prepare_process
    from clients.tasks import perform

    prepare_process()
    return partial(perform, monitor=monitor)


def _announce(prepared: Future[Perform], socket: Path, stop: threading.Event) -> None:
    error = prepared.exception()
    if error is None:
        logger.info("ready at %s", socket)
    else:
        logger.error("cannot start: %s: %s", type(error).__name__, " ".join(str(error).split()))
        stop.set()


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # The working thread may be in the middle of a task, and an ordinary exit would wait for its end.
    os._exit(status)
