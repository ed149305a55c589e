"""`tuneserve deploy`: one process that listens at once, while the engine starts behind it.

Keys, certificate and address are looked at first, for which this file imports little; then the engine's process begins,
and the rest of the server is imported and made while it starts.
"""

import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from engines import logs
from engines.errors import TuneserveError
from engines.params.deploy import DeployParams
from engines.process.imports import uncollected
from server.commands.hangup import read_again
from server.http.addresses import is_loopback
from server.http.connections.tls import Certificate, read_certificate
from server.http.keys.keys import VARIABLE, Keys

if TYPE_CHECKING:
    from server.deps import Parts

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
        variable = os.environ.pop(VARIABLE, "")  # no process that is started from here has it
        keys = Keys(params.api_key, variable=variable, file=params.api_key_file)
        certificate = read_certificate(params.ssl_certfile, params.ssl_keyfile, params.ssl_keyfile_password)
        signal.signal(signal.SIGHUP, lambda number, frame: read_again(keys, certificate))
        listener = listen(params.host, params.port)
        check_access(listener, keys, params)
        check_limits(keys, params)
        companion = beside(_address_here(listener, certificate), bool(keys))
        with uncollected():  # most of this is imports
            parts = load(params, keys)
            from server.commands.serving import serve
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


def load(params: DeployParams, keys: Keys) -> "Parts":
    """The parts of the server that `params` asks for; its engine loads the model meanwhile. Raises UnsupportedModel."""
    from engines.build import build_engine

    assert params.model is not None, "the command line asks for one"
    engine = build_engine(params, several_owners=bool(keys))
    # Imported once the engine has begun: each of the two takes seconds.
    from engines.checkpoint.loading import load_generation_config, load_tokenizer
    from server.parts import make_parts

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
