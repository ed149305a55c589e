"""What is seen of a server: its answers, its files, its log, what reaches its engine, and the engine's
configuration."""

import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from engines.build import build_engine
from engines.echo import EchoEngine, EchoFaults, echo_tokenizer
from engines.errors import TuneserveError
from engines.lmdeploy.config import lmdeploy_config
from engines.params.deploy import DeployParams
from engines.process.client import ProcessEngine
from engines.pt.config import pt_config
from engines.types import GenerationRequest, TokenOutput
from engines.vllm.config import vllm_config
from server import parts as server_parts
from server.commands import deploy
from server.http.connections.tls import read_certificate
from server.jobs.jobs import Jobs
from server.parts import make_parts
from tests.adapter_folders import write_adapter
from tests.certificates import write_certificate
from tests.params.behaviour.table import Given, Observer
from tests.server.client import ReadyClient
from tests.server.keys import FULL, bearer

OTHERS = ("httpx", "alembic", "asyncio")
"""Libraries that log too."""
CONFIGS = {"pt": pt_config, "vllm": vllm_config, "lmdeploy": lmdeploy_config}


class Reached(BaseException):
    """A function was called, and that is all there is to see."""


class Listening(EchoEngine):
    """Remembers what it was asked."""

    asked: GenerationRequest | None = None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.asked = replace(request, request_id="", http_request_id=None)
        async for output in super().generate(request):
            yield output


class Server:
    """A server with parameters, where `$FOLDER` stands for a folder with the adapters `a` and `b`."""

    def __init__(self, given: Given, folder: Path) -> None:
        self.folder = folder
        for name in ("a", "b"):
            write_adapter(folder / "adapters" / name)
        (folder / "other").mkdir(parents=True)
        (folder / "other" / "keys").write_text(FULL)
        placed = json.loads(json.dumps(dict(given)).replace("$FOLDER", str(folder)))
        state = {} if "without_state" in placed else {"state_dir": str(folder / "state")}
        self.params = DeployParams.model_validate({**state, **placed})

    @contextlib.contextmanager
    def client(self, *, token_delay: float = 0.0) -> Iterator[ReadyClient]:
        self.engine = Listening(faults=EchoFaults(token_delay=token_delay))
        with ReadyClient(make_parts(self.engine, echo_tokenizer(), self.params)) as client:
            yield client


Seen = Observer[Server]


# ---- observers


def config(name: str) -> Seen:
    """A field of what crosses to the engine's process."""
    return lambda server: getattr(CONFIGS[server.params.infer_backend](server.params), name)


def got(path: str, **headers: str) -> Seen:
    """The answer to a GET, without the time in it."""

    def look(server: Server) -> tuple[int, str]:
        with server.client() as client:
            answer = client.get(path, headers=headers)
            return answer.status_code, re.sub(r'"created":\d+', "", answer.text)

    return look


def allowed(server: Server) -> Any:
    with server.client() as client:
        return client.get("/health", headers={"origin": "http://page"}).headers.get("access-control-allow-origin")


def answered(path: str, **body: Any) -> Seen:
    """Status of the answer to a POST, and its message or error."""

    def look(server: Server) -> tuple[int, Any]:
        placed = json.loads(json.dumps(body).replace("$FOLDER", str(server.folder)))
        with server.client() as client:
            answer = client.post(path, json=placed)
        told = answer.json() if answer.headers["content-type"] == "application/json" else answer.text
        if isinstance(told, dict):
            told = told.get("error") or [choice.get("message") for choice in told.get("choices", ())]
        return answer.status_code, told

    return look


def chat(text: str = "hello", **fields: Any) -> Seen:
    message = {"role": "user", "content": text}
    return answered("/v1/chat/completions", model="m", messages=[message], **fields)


def kept_completions(server: Server) -> int:
    """How many there are once one was to be kept."""
    message = {"role": "user", "content": "hello"}
    with server.client() as client:
        client.post("/v1/chat/completions", json={"model": "m", "messages": [message], "store": True})
        return len(client.get("/v1/chat/completions").json()["data"])


def asked(name: str | None = None, **fields: Any) -> Seen:
    """What a chat request comes to for the engine: its prompt, or that of its sampling."""

    def look(server: Server) -> Any:
        chat(**fields)(server)
        assert server.engine.asked is not None
        return server.engine.asked.prompt_ids if name is None else asdict(server.engine.asked.sampling)[name]

    return look


def logged(*, seconds: float = 0.0) -> Seen:
    """How many lines a request is worth in the log, until so much later."""

    def look(server: Server) -> int:
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.name)  # type: ignore[method-assign]
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.INFO)
        root.addHandler(handler)
        try:
            with server.client() as client:
                client.post("/v1/completions", json={"model": "m", "prompt": "hello"})
                time.sleep(seconds)
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        return len([name for name in lines if not name.startswith(OTHERS)])

    return look


def streamed(server: Server) -> bool:
    """Whether comments keep a slow stream alive."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with server.client(token_delay=0.05) as client:
        return ": keep-alive" in client.post("/v1/chat/completions", json=body).text


def uploaded(server: Server) -> int:
    with server.client() as client:
        file = ("batch.jsonl", b"{}" * 5000)
        return client.post("/v1/files", data={"purpose": "batch"}, files={"file": file}).status_code


def uploaded_in_parts(server: Server) -> int:
    with server.client() as client:
        body = {"filename": "a.jsonl", "purpose": "batch", "bytes": 10_000, "mime_type": "text/jsonl"}
        return client.post("/v1/uploads", json=body).status_code


def files(server: Server) -> list[str]:
    """What lies in the folder afterwards."""
    with server.client():
        pass
    return sorted(str(path.relative_to(server.folder)) for path in server.folder.glob("*/*"))


def handed_to(owner: Any, function: str, name: str) -> Seen:
    """An argument with which a part of the server is made."""

    def look(server: Server) -> Any:
        def reached(*_: Any, **named: Any) -> None:
            raise Reached(named[name])

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached) as call:
            patch.setattr(owner, function, reached)
            make_parts(Listening(), echo_tokenizer(), server.params)
        return call.value.args[0]

    return look


batch_slots = handed_to(server_parts, "Batches", "concurrency")


def stopped(server: Server) -> float:
    """Seconds that jobs have, when the server ends."""
    told: list[float] = []
    stop = Jobs.stop

    async def listening(jobs: Jobs, grace: float) -> None:
        told.append(grace)
        await stop(jobs, grace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jobs, "stop", listening)
        with server.client():
            pass
    return told[0]


def listens(server: Server) -> Any:
    """The address that the command binds a socket to."""

    def reached(_: Any, address: Any) -> None:
        raise Reached(address)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached) as call:
        patch.setattr(socket.socket, "bind", reached)
        deploy.run(server.params)
    return call.value.args[0]


def refused_of(body: dict[str, Any], times: int = 1) -> Seen:
    """Status of the answer to the last of so many requests with a key."""

    def look(server: Server) -> int:
        with server.client() as client:
            for _ in range(times):
                answer = client.post("/v1/completions", headers=bearer(FULL), json={"model": "m", **body})
        return answer.status_code

    return look


def refused_beside_another(server: Server) -> int:
    """Status of the answer to a request that comes while another one runs."""
    ask: dict[str, Any] = {"url": "/v1/completions", "headers": bearer(FULL)}
    slow = {"model": "m", "prompt": "hello", "stream": True}
    with server.client(token_delay=0.2) as client, client.stream("POST", **ask, json=slow):
        return client.post(**ask, json=slow | {"stream": False}).status_code


def lets_in(server: Server) -> bool:
    """Whether the command goes on to load the model."""

    def reached(*_: Any) -> None:
        raise Reached

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "load", reached)
        try:
            deploy.run(server.params)
        except Reached:
            return True
    return False


def certified(server: Server) -> bool | str:
    """Whether the server speaks TLS, or what its certificate lacks."""
    certificate, key = write_certificate(server.folder)
    (server.folder / "server.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
    write_certificate(server.folder, "locked", password="open")
    params = server.params
    try:
        return read_certificate(params.ssl_certfile, params.ssl_keyfile, params.ssl_keyfile_password) is not None
    except TuneserveError as error:
        return str(error)


def engine(server: Server) -> Any:
    """The engine that is built, which is not started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessEngine, "prepare", lambda _: None)
        patch.setenv("TUNESERVE_LMDEPLOY_PYTHON", "")
        patch.setenv("TUNESERVE_CACHE", str(server.folder))
        try:
            return build_engine(server.params, several_owners=False)
        except TuneserveError as error:
            return error


def which_engine(server: Server) -> str:
    return type(engine(server)).__name__


def queue(server: Server) -> Any:
    """Requests that the engine lets wait: with it started, how many depends on the moment."""
    return engine(server)._max_num_queued_reqs


def patience(name: str) -> Seen:
    """How long, or how often, the engine's process is waited for."""
    return lambda server: getattr(engine(server)._patience, name)
