"""Client code in a few worker processes. Messages cross as Flower's own protobuf bytes, never pickled."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from flwr.app import Error, Message, UserConfig
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from neuroflux_fl.errors import FleetError
from server.grid import DEFAULT_RUN_ID, ClientHost, InProcessGrid, error_reply, expired_to_error

logger = logging.getLogger(__name__)

_READY = b"ready"
_COLLECT_SECONDS = 0.1
_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """What every worker process is started with."""

    client_app: str
    """``"module:attribute"`` of a ClientApp."""
    run_config: UserConfig
    run_id: int = DEFAULT_RUN_ID
    torch_threads: int | None = None
    """Threads for torch in each worker; None leaves torch alone and does not import it."""
    initializer: str | None = None
    """``"module:function"`` that is called without arguments before the client app is loaded."""


@dataclass(slots=True)
class _Worker:
    """One process with the nodes pinned to it. It has at most one message at a time, the first of ``queue``."""

    nodes: dict[int, UserConfig]
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    running: Message | None = None
    queue: deque[Message] = field(default_factory=deque)


class WorkerExecutor:
    """Runs messages on ``workers`` processes; a node's messages always go to the same one, which keeps its Context.

    A worker holds its reply until it is collected, so the server has one reply in memory at a time. A worker that
    dies gives an error reply for its message and is started anew; the Contexts of its nodes are lost with it, as they
    are when a SuperNode restarts.

    Raises:
        FleetError: a worker could not load the client app, or did not start in time.
    """

    def __init__(
        self,
        config: WorkerConfig,
        nodes: Mapping[int, UserConfig],
        workers: int,
        *,
        start_timeout_seconds: float = 120.0,
    ) -> None:
        """Starts the processes and waits until all are ready."""
        if workers < 1:
            raise FleetError(f"Number of workers is {workers}: must be at least 1.")
        self._config = config
        self._start_timeout_seconds = start_timeout_seconds
        self._replies: dict[str, Message] = {}
        self._worker_of: dict[int, _Worker] = {}
        self._workers: list[_Worker] = []
        items = list(nodes.items())
        for index in range(min(workers, max(1, len(items)))):
            self._workers.append(self._start(dict(items[index::workers])))
        self._worker_of = {node_id: worker for worker in self._workers for node_id in worker.nodes}
        try:
            for worker in self._workers:
                self._await_ready(worker)
        except BaseException:
            self.close()
            raise

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Ids of the worker processes that run now."""
        return tuple(worker.process.pid for worker in self._workers if worker.process.pid is not None)

    def submit(self, message: Message) -> None:
        """Send the message when its worker is idle, or queue it."""
        worker = self._worker_of[message.metadata.dst_node_id]
        worker.queue.append(message)
        self._feed(worker)

    def collect(self, message_ids: Collection[str]) -> Message | None:
        """Wait a moment for a reply. Replies to other messages are kept until they are asked for."""
        kept = next((message_id for message_id in self._replies if message_id in message_ids), None)
        if kept is not None:
            return self._replies.pop(kept)
        busy = [(worker, worker.running) for worker in self._workers if worker.running is not None]
        signs = [sign for worker, _ in busy for sign in (worker.connection, worker.process.sentinel)]
        fired = wait(signs, timeout=_COLLECT_SECONDS)
        for worker, message in busy:
            if worker.connection in fired or worker.process.sentinel in fired:
                reply = self._receive(worker, message)
                if reply.metadata.reply_to_message_id in message_ids:
                    return reply
                self._replies[reply.metadata.reply_to_message_id] = reply
        return None

    def expire(self) -> None:
        """Replace expired messages that wait, and late replies that nobody fetched."""
        for worker in self._workers:
            worker.queue = deque(expired_to_error(message) for message in worker.queue)
        self._replies = {message_id: _drop_if_expired(reply) for message_id, reply in self._replies.items()}

    def close(self) -> None:
        """End every worker: ask by closing its pipe, then terminate, then kill."""
        for worker in self._workers:
            worker.connection.close()
        end = time.monotonic() + _END_SECONDS
        for worker in self._workers:
            busy = worker.running is not None or not worker.ready
            worker.process.join(0 if busy else max(0.0, end - time.monotonic()))
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join(_END_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self._workers.clear()
        self._worker_of.clear()
        self._replies.clear()

    def _start(self, nodes: dict[int, UserConfig]) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_run_worker, args=(theirs, self._config, nodes), daemon=True)
        process.start()
        theirs.close()
        return _Worker(nodes=nodes, process=process, connection=ours)

    def _await_ready(self, worker: _Worker) -> None:
        if not worker.connection.poll(self._start_timeout_seconds):
            raise FleetError(f"A worker process was not ready after {self._start_timeout_seconds:g} s.")
        try:
            greeting = worker.connection.recv_bytes()
        except (EOFError, OSError):
            worker.process.join(_END_SECONDS)
            raise FleetError(f"A worker process ended at its start with status {worker.process.exitcode}.") from None
        if greeting != _READY:
            raise FleetError(f"A worker process could not start: {greeting.decode('utf-8', 'replace')}")
        worker.ready = True

    def _feed(self, worker: _Worker) -> None:
        while worker.running is None and worker.queue:
            message = expired_to_error(worker.queue.popleft())
            if message.has_error():
                self._replies[message.metadata.reply_to_message_id] = message
                continue
            # Only an idle worker is written to: it is reading, so even a large message cannot block for long.
            worker.running = message
            try:
                worker.connection.send_bytes(message_to_proto(message).SerializeToString())
            except OSError:
                # Dead: its sentinel brings us to _receive, which answers for the message and starts another.
                return

    def _receive(self, worker: _Worker, message: Message) -> Message:
        """The reply to what a worker is running, or an error reply when it is dead; then gives it the next message."""
        try:
            if not worker.connection.poll(0):
                raise EOFError
            reply = message_from_proto(ProtoMessage.FromString(worker.connection.recv_bytes()))
        except (EOFError, OSError):
            status = self._replace(worker)
            reason = f"The worker process ended with status {status} while it ran this message."
            reply = error_reply(message, ErrorCode.CLIENT_APP_CRASHED, reason)
        worker.running = None
        self._feed(worker)
        return reply

    def _replace(self, worker: _Worker) -> int | None:
        """Start a new process for a dead worker's nodes; returns the dead one's exit status."""
        worker.connection.close()
        worker.process.join(_END_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        status = worker.process.exitcode
        worker.process.close()
        logger.warning("A worker process ended with status %s and is started anew.", status)
        fresh = self._start(worker.nodes)
        worker.process, worker.connection, worker.ready = fresh.process, fresh.connection, False
        self._await_ready(worker)
        return status


def worker_grid(
    client_app: str,
    nodes: Mapping[int, UserConfig],
    run_config: UserConfig,
    *,
    workers: int,
    torch_threads: int | None = None,
    initializer: str | None = None,
    run_id: int = DEFAULT_RUN_ID,
    start_timeout_seconds: float = 120.0,
) -> InProcessGrid:
    """An InProcessGrid over worker processes; close it, or use it in a ``with`` statement."""
    config = WorkerConfig(
        client_app=client_app,
        run_config=run_config,
        run_id=run_id,
        torch_threads=torch_threads,
        initializer=initializer,
    )
    executor = WorkerExecutor(config, nodes, workers, start_timeout_seconds=start_timeout_seconds)
    return InProcessGrid(None, nodes, run_config, executor=executor, run_id=run_id)


def load_object(path: str) -> object:
    """The object that ``"module:attribute"`` names.

    Raises:
        FleetError: the text has another form, or the module or attribute is missing.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise FleetError(f"{path!r} does not name an object: write module:attribute.")
    try:
        loaded: object = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise FleetError(f"Cannot load {path!r}: {error}.") from error
    return loaded


def _drop_if_expired(reply: Message) -> Message:
    metadata = reply.metadata
    if reply.has_error() or time.time() <= metadata.created_at + metadata.ttl:
        return reply
    error = Error(code=ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason="The reply expired before it was fetched.")
    return make_message(metadata=metadata, error=error)


def _run_worker(connection: Connection, config: WorkerConfig, nodes: dict[int, UserConfig]) -> None:
    """Body of a worker process: greet, then answer messages until the server closes the pipe."""
    try:
        host = ClientHost(_prepare_client_app(config), nodes, config.run_config, config.run_id)
    except Exception as error:
        logger.debug("Worker start failed.", exc_info=True)
        connection.send_bytes(f"{type(error).__name__}: {error}".encode())
        return
    try:
        connection.send_bytes(_READY)
        while True:
            reply = host.handle(message_from_proto(ProtoMessage.FromString(connection.recv_bytes())))
            connection.send_bytes(message_to_proto(reply).SerializeToString())
            del reply  # while waiting for the next message, its arrays would stay
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _prepare_client_app(config: WorkerConfig) -> ClientApp:
    if config.torch_threads is not None and importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(config.torch_threads)
    if config.initializer is not None:
        initializer = load_object(config.initializer)
        if not callable(initializer):
            raise FleetError(f"Initializer {config.initializer!r} is not a function.")
        initializer()
    client_app = load_object(config.client_app)
    if not isinstance(client_app, ClientApp):
        raise FleetError(f"{config.client_app!r} is a {type(client_app).__name__}, not a ClientApp.")
    return client_app
