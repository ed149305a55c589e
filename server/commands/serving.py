"""A server from the first request that it takes to its end: a signal, or an engine that has failed for good."""

import asyncio
import logging
import signal
import socket

from engines.params.deploy import DeployParams
from server.app import create_app
from server.commands.hangup import read_again
from server.deps import Parts
from server.http.addresses import is_loopback
from server.http.connections.room import Connections
from server.http.connections.server import HttpServer
from server.http.connections.tls import Certificate
from server.http.keys.keys import Keys
from server.inference.inference import Inference
from server.jobs.jobs import Jobs
from server.model.served import ServedModel

logger = logging.getLogger(__name__)


def serve(parts: Parts, listener: socket.socket, certificate: Certificate | None = None) -> int:
    """Serve on `listener` until a signal, or until the engine fails for good; return the exit status."""
    tls = None if certificate is None else certificate.context
    server = HttpServer(create_app(parts), parts[Connections], tls)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        return runner.run(_serve(server, parts, listener, certificate))


async def _serve(server: HttpServer, parts: Parts, listener: socket.socket, certificate: Certificate | None) -> int:
    keys, address = parts[Keys], listener.getsockname()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, read_again, keys, certificate)
    scheme = "http" if certificate is None else "https"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    logger.info("Listening on %s://%s:%d as %r.", scheme, host, address[1], parts[ServedModel].name)
    if not keys:
        who = "every user of this machine" if is_loopback(address[0]) else "everybody who reaches this address"
        logger.warning("No key is set: %s may use the server.", who)
    stopping = asyncio.create_task(_stop_in_order(server, parts))
    await server.serve(sockets=[listener])
    stopping.cancel()
    return 1 if server.force_exit or parts[Inference].lifecycle.failed.is_set() else 0


async def _stop_in_order(server: HttpServer, parts: Parts) -> None:
    """On the first signal, or once the engine has failed for good, drain with the port still open, so that /ready can
    say it; then let uvicorn close it."""
    lifecycle, grace = parts[Inference].lifecycle, parts[DeployParams].shutdown_timeout
    told = asyncio.create_task(server.told_to_stop.wait())
    failed = asyncio.create_task(lifecycle.failed.wait())
    await asyncio.wait((told, failed), return_when=asyncio.FIRST_COMPLETED)
    failed.cancel()
    told.cancel()
    logger.info("Stopping: no new requests; running ones and jobs have %g s.", grace)
    try:
        await asyncio.gather(lifecycle.drain(grace), parts[Jobs].stop(grace))
    except Exception:  # of any kind: a server that was told to stop stops
        logger.exception("The drain broke off.")
    server.end()
