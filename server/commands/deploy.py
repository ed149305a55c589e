"""`tuneserve deploy`: one process that listens at once, while the engine starts behind it."""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from engines import logs
from engines.errors import TuneserveError
from engines.params.deploy import DeployParams
from server.app import create_app
from server.deps import Parts
from server.http.addresses import is_loopback
from server.http.connections.room import Connections
from server.http.connections.server import HttpServer
from server.http.connections.tls import Certificate, read_certificate
from server.http.keys.keys import VARIABLE, Keys
from server.inference.inference import Inference
from server.jobs.jobs import Jobs
from server.model.served import ServedModel
from server.parts import make_parts, read_keys

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that may wait to be taken."""


Beside = Callable[[str, bool], AbstractContextManager[None]]
"""What runs while the server does: made of the server's address and of whether it has keys."""


def run(params: DeployParams, beside: Beside = lambda address, keyed: nullcontext()) -> int:
    """Serve until a signal; return the exit status."""
    configure_logging()
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # what it asks for is about to be read anyway
    try:
        keys = read_keys(params, os.environ.pop(VARIABLE, ""))  # no process that is started from here has it
        certificate = read_certificate(params.ssl_certfile, params.ssl_keyfile, params.ssl_keyfile_password)
        signal.signal(signal.SIGHUP, lambda number, frame: _read_again(keys, certificate))
        listener = listen(params.host, params.port)
        check_access(listener, keys, params)
        check_limits(keys, params)
        companion = beside(_address_here(listener, certificate), bool(keys))
        parts = load(params, keys)
    except TuneserveError as error:
        logger.error("%s", error)
        return 1
    with companion:
        return serve(parts, listener, certificate)


def _address_here(listener: socket.socket, certificate: Certificate | None) -> str:
    """Where this machine reaches what listens, also where it listens on all addresses."""
    host, port = listener.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{'http' if certificate is None else 'https'}://{f'[{here}]' if ':' in here else here}:{port}"


def load(params: DeployParams, keys: Keys) -> Parts:
    """The parts of the server that `params` asks for; its engine is not started. Raises UnsupportedModel."""
    from engines.build import build_engine
    from engines.checkpoint.loading import load_generation_config, load_tokenizer

    assert params.model is not None, "the command line asks for one"
    engine = build_engine(params, several_owners=bool(keys))
    tokenizer = load_tokenizer(params.model, revision=params.model_revision, token=params.hub_token)
    generation = load_generation_config(params.model, revision=params.model_revision, token=params.hub_token)
    return make_parts(engine, tokenizer, params, generation.to_dict(), keys=keys)


def configure_logging() -> None:
    logs.configure_logging()
    for library in ("uvicorn", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)


class CannotListen(TuneserveError):
    """The address asked for is not to be had. Another one is never taken instead."""

    code = "cannot_listen"


def listen(host: str, port: int) -> socket.socket:
    """A socket to which clients can connect: they wait until the server takes them. Port 0 takes a free one.

    Raises CannotListen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"port {port} is taken; stop what listens there, or choose another with --port"
            ) from None
        raise CannotListen(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


class WrongAccess(TuneserveError):
    """Who may connect is not what anybody can have meant."""

    code = "wrong_access"


def check_access(listener: socket.socket, keys: Keys, params: DeployParams) -> None:
    """Without a key, only this machine may connect, unless `params` let everybody in. Raises WrongAccess."""
    if keys and params.allow_anonymous:
        raise WrongAccess("--allow_anonymous true lets everybody in without a key, and there are keys: leave one out")
    if not keys and not params.allow_anonymous and not is_loopback(listener.getsockname()[0]):
        raise WrongAccess(
            f"--host {params.host}: everybody who reaches it could use the server; give it a key, by --api_key_file, "
            f"--api_key or {VARIABLE}, or let them, by --allow_anonymous true"
        )


def check_limits(keys: Keys, params: DeployParams) -> None:
    """Raise WrongAccess where there are limits for keys, and no keys that they could hold for."""
    limits = [name for name in type(params).model_fields if name.startswith("key_")]
    given = [name for name in limits if getattr(params, name) is not None]
    if given and not keys:
        raise WrongAccess(f"--{given[0]} is a limit for each key, and there are no keys: give some, by --api_key_file")


def serve(parts: Parts, listener: socket.socket, certificate: Certificate | None = None) -> int:
    """Serve on `listener` until a signal, or until the engine fails for good; return the exit status."""
    gc.freeze()  # what has been loaded stays: without this each full collection goes through it again, in one piece
    tls = None if certificate is None else certificate.context
    server = HttpServer(create_app(parts), parts[Connections], tls)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        return runner.run(_serve(server, parts, listener, certificate))


async def _serve(server: HttpServer, parts: Parts, listener: socket.socket, certificate: Certificate | None) -> int:
    keys, address = parts[Keys], listener.getsockname()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _read_again, keys, certificate)
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


def _read_again(keys: Keys, certificate: Certificate | None) -> None:
    keys.reload()
    if certificate is not None:
        certificate.reload()


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
