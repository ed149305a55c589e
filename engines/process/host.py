"""The process of an engine: what is the same for every one, from its first message to its end in order.

What is hosted loads a model and answers over the connection, in whatever manner: our own engine by a loop of steps, a
library as an asyncio `Engine` (`asyncio_engine.py`). A process of its own has three uses: an engine that crashes, leaks
or blocks its thread takes only that process with it; it can live in an environment that the server's packages would not
share; and a new life begins from nothing.
"""

import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from engines.capabilities import Capabilities
from engines.errors import EngineFailure, TuneserveError
from engines.process import frames
from engines.process.connection import Closed, Connection

log = logging.getLogger(__name__)

ORPHAN_SECONDS = 5.0
"""Seconds for the process to end in order, once the server has gone; then its whole group is killed."""


class Hosted(Protocol):
    def start(self) -> Capabilities:
        """Load the model. Raises UnsupportedModel, EngineFailure."""
        ...

    def serve(self, connection: Connection) -> None:
        """Answer until the server goes. Raises Closed then, EngineFailure where the engine dies."""
        ...

    def stop(self) -> None:
        """Free everything, also where it has not started."""
        ...


def host(make: Callable[[dict[str, Any]], Hosted]) -> None:
    """Run what `make` builds of the server's first message. Returns, or exits with 1, when it has ended.

    `make` raises UnsupportedModel where there can be none. To be called with the socket's number as last argument.
    """
    # The terminal's Ctrl-C and a process manager's SIGTERM to the group are for the server, which then ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(socket.socket(fileno=int(sys.argv[-1])))
    threading.Thread(target=_end_with_server, args=(connection.socket,), daemon=True).start()
    try:
        _host(make, connection)
    except Closed:
        return
    except EngineFailure as error:
        log.error("%s", error)
        sys.exit(1)


def _end_with_server(connection: socket.socket) -> None:
    """Kill this process with all that it started, where it does not end by itself after the server has."""
    gone = select.poll()
    gone.register(connection, 0)  # that the other end has been closed is told in any case
    gone.poll()
    time.sleep(ORPHAN_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _host(make: Callable[[dict[str, Any]], Hosted], connection: Connection) -> None:
    start = connection.first()
    try:
        hosted = make(start.config)
    except TuneserveError as error:
        connection.send(frames.Refused(frames.take_apart(error)))
        return
    try:
        try:
            capabilities = hosted.start()
        except TuneserveError as error:
            connection.send(frames.Refused(frames.take_apart(error)))
            return
        gc.collect()
        gc.freeze()  # what has been loaded stays: a full collection, between two steps, need not go through it again
        connection.send(frames.Ready(capabilities))
        hosted.serve(connection)
    finally:
        hosted.stop()
