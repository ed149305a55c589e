"""A server on EchoEngine as the program of a process: `{"params": {...}, "engine": {...}, "faults": {...},
"hosted": true, "retry_seconds": 0.1, "synchronous": "OFF"}` are its settings.

Hosted, the engine runs in a process of its own. `retry_seconds`: after which a batch that has to wait is tried again.
`synchronous`: whether SQLite waits for the disk.
"""

import sys
from typing import Any

from engines import errors
from engines.echo import EchoEngine, EchoFaults, echo_tokenizer
from engines.engine import Engine
from engines.params.deploy import DeployParams
from engines.process.config import patience_of
from server import backlog
from server.commands.deploy import check_access, configure_logging, listen
from server.commands.serving import serve
from server.http.connections.tls import read_certificate
from server.http.keys.keys import Keys
from server.parts import make_parts
from server.store import database

TOKENIZER = echo_tokenizer()
"""Made, and what it needs loaded, before the forks."""


def main(settings: dict[str, Any]) -> int:
    configure_logging()
    database.SYNCHRONOUS = settings.get("synchronous", database.SYNCHRONOUS)
    backlog.RETRY_SECONDS = settings.get("retry_seconds", backlog.RETRY_SECONDS)
    params = DeployParams(**{"model": "tests/echo", "host": "127.0.0.1", "port": 0} | settings.get("params", {}))
    faults = settings.get("faults", {})
    if "start_error" in faults:
        faults["start_error"] = errors.EngineFailure(faults["start_error"])
    engine = (
        _hosted(params, faults)
        if settings.get("hosted")
        else EchoEngine(**settings.get("engine", {}), faults=EchoFaults(**faults))
    )
    try:
        keys = Keys(params.api_key, file=params.api_key_file)
        certificate = read_certificate(params.ssl_certfile, params.ssl_keyfile, params.ssl_keyfile_password)
        listener = listen(params.host, params.port)
        check_access(listener, keys, params)
    except errors.TuneserveError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return serve(make_parts(engine, TOKENIZER, params, keys=keys), listener, certificate)


def _hosted(params: DeployParams, faults: dict[str, Any]) -> Engine:
    from tests.hosted_echo import echo_in_its_process

    return echo_in_its_process(patience_of(params), **faults)
