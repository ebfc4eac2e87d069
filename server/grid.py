"""A Flower Grid without a network: client code runs in this process, or in worker processes (``grid_workers``)."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Protocol, Self

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from neuroflux_fl.errors import FleetError

logger = logging.getLogger(__name__)

DEFAULT_RUN_ID = 1
_MAX_REASON_LENGTH = 500


class ClientHost:
    """Runs one ClientApp for several nodes and keeps each node's Context from message to message."""

    def __init__(
        self, client_app: ClientApp, nodes: Mapping[int, UserConfig], run_config: UserConfig, run_id: int
    ) -> None:
        """``nodes`` maps node id to node config."""
        self._client_app = client_app
        self._contexts = {
            node_id: Context(
                run_id=run_id,
                node_id=node_id,
                node_config=dict(node_config),
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node_id, node_config in nodes.items()
        }

    def handle(self, message: Message) -> Message:
        """The client's reply; what it raises becomes an error reply and, at debug level, a logged traceback."""
        context = self._contexts[message.metadata.dst_node_id]
        try:
            reply = self._client_app(message, context)
            if reply.metadata.reply_to_message_id != message.metadata.message_id:
                raise ValueError("The client app returned a message that does not reply to the one it got.")
        except Exception as error:
            logger.debug("Client app failed on node %d.", context.node_id, exc_info=True)
            return error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}")
        return reply


class Executor(Protocol):
    """Runs messages that a grid has accepted; ids and destination nodes are known to be good."""

    def submit(self, message: Message) -> None:
        """Take a message; it may run now or later."""

    def collect(self, message_ids: Collection[str]) -> Message | None:
        """Hand out one reply to one of these messages, once; None when none is ready yet."""

    def expire(self) -> None:
        """Put error replies in the place of waiting messages whose time to live is over, which frees their arrays."""

    def close(self) -> None:
        """End what was started."""


class InlineExecutor:
    """Runs one waiting message, in the order of submission, each time a reply is asked for."""

    def __init__(self, host: ClientHost) -> None:
        """``host`` must have every node that messages will go to."""
        self._host = host
        self._waiting: dict[str, Message] = {}

    def submit(self, message: Message) -> None:
        """Keep the message until its reply is asked for."""
        self._waiting[message.metadata.message_id] = message

    def collect(self, message_ids: Collection[str]) -> Message | None:
        """Run the first waiting message among these and return its reply."""
        chosen = next((message_id for message_id in self._waiting if message_id in message_ids), None)
        if chosen is None:
            return None
        message = expired_to_error(self._waiting.pop(chosen))
        return message if message.has_error() else self._host.handle(isolated(message))

    def expire(self) -> None:
        """Replace expired messages."""
        self._waiting = {message_id: expired_to_error(message) for message_id, message in self._waiting.items()}

    def close(self) -> None:
        """Drop what is waiting."""
        self._waiting.clear()


class InProcessGrid(Grid):
    """A Grid whose nodes are simulated: same strategy and same client code as with SuperLink and SuperNodes.

    ``pull_messages`` returns at most one reply, runs client code only as far as that takes, and forgets the reply:
    however large the cohort, no more than one reply is in the server's memory. A message to an unknown node and one
    whose time to live is over get error replies. Asking for an id that was never pushed, or whose reply was handed
    out, gives nothing.

    Args:
        client_app: runs in this process; None when ``executor`` is given.
        nodes: node id to node config.
        run_config: the run's configuration, the same for all nodes.
        executor: where to run messages instead of in this process.
        run_id: id of the run that clients see in their Context.
    """

    def __init__(
        self,
        client_app: ClientApp | None,
        nodes: Mapping[int, UserConfig],
        run_config: UserConfig,
        *,
        executor: Executor | None = None,
        run_id: int = DEFAULT_RUN_ID,
    ) -> None:
        """Raises FleetError when neither or both of ``client_app`` and ``executor`` are given."""
        _identify_process(run_id)
        self._executor: Executor
        if client_app is not None and executor is None:
            self._executor = InlineExecutor(ClientHost(client_app, nodes, run_config, run_id))
        elif executor is not None and client_app is None:
            self._executor = executor
        else:
            raise FleetError("An in-process grid needs either a client app or an executor, and not both.")
        self._nodes = dict.fromkeys(nodes)
        self._run = Run.create_empty(run_id)
        self._pushed = 0
        self._refused: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Take another run's record; ids that clients see stay as they are."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's record."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As ``Message(...)``, which is the way Flower recommends."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All simulated nodes; none ever leaves."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Give every message an id and take it; nothing runs before the first pull of an inline grid."""
        self._executor.expire()
        message_ids = []
        for message in messages:
            self._pushed += 1
            message_id = f"{self._run.run_id}-{self._pushed}"
            message.metadata.__dict__["_message_id"] = message_id
            message_ids.append(message_id)
            if message.metadata.dst_node_id in self._nodes:
                self._executor.submit(message)
            else:
                reason = f"Node {message.metadata.dst_node_id} is not part of this fleet."
                self._refused[message_id] = error_reply(message, ErrorCode.NODE_UNAVAILABLE, reason)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """At most one reply."""
        wanted = set(message_ids)
        refused = next((message_id for message_id in self._refused if message_id in wanted), None)
        if refused is not None:
            return [self._refused.pop(refused)]
        reply = self._executor.collect(wanted)
        if reply is None:
            return []
        if not reply.metadata.message_id:
            reply.metadata.__dict__["_message_id"] = f"reply-{reply.metadata.reply_to_message_id}"
        return [reply]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All replies that come within ``timeout`` seconds. Holds them all: ``server.rounds.run_phase`` does not."""
        end = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def close(self) -> None:
        """End worker processes, if any."""
        self._executor.close()

    def __enter__(self) -> Self:
        """The grid itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def error_reply(message: Message, code: int, reason: str) -> Message:
    """An error reply with a reason of one line."""
    line = " ".join(reason.split())[:_MAX_REASON_LENGTH]
    return Message(Error(code=code, reason=line), reply_to=message)


def expired_to_error(message: Message) -> Message:
    """The message itself, or an error reply to it when its time to live is over. Error replies stay as they are."""
    metadata = message.metadata
    if message.has_error() or time.time() <= metadata.created_at + metadata.ttl:
        return message
    return error_reply(message, ErrorCode.MESSAGE_UNAVAILABLE, f"The message expired after {metadata.ttl:g} s.")


def isolated(message: Message) -> Message:
    """The message with records of its own, so that a client that writes to them does not write to the server's.

    Arrays are shared: their data are immutable bytes.
    """
    content = message.content.copy()
    for name, record in message.content.items():
        content[name] = record.copy()
    return make_message(metadata=message.metadata, content=content)


def _identify_process(run_id: int) -> None:
    # Message(...) reads these; inside a Flower task they are set already and must stay.
    for name, value in (("task_id", 0), ("run_id", run_id), ("node_id", SUPERLINK_NODE_ID)):
        if getattr(TaskIdentity, f"_{name}") is None:
            setattr(TaskIdentity, name, value)
