"""A whole server whose engine runs in a process of its own, as a client sees it: is it ready, and what becomes of those
who ask."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from tests.engines.pt.tiny import CONFIGS, save
from tests.forks import Fork, preload
from tests.processes import engine_of
from tests.server.process import ROOT, ServerProcess, environment
from tests.until import PATIENCE, until

HANG = "hang"
"""The file in the way of every load."""
PROGRAM = "tests.faults.quick"
preload(PROGRAM, "engines.build", "engines.checkpoint.loading")


def quick(folder: Path, *words: str) -> ServerProcess:
    """A server that starts its engine again after short pauses; see `quick.py`."""
    given = [str(folder / HANG), *words]
    if "LD_PRELOAD" in os.environ:  # which only a program heeds that begins
        command = [sys.executable, "-m", PROGRAM, *given]
        return ServerProcess(subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True))
    return ServerProcess(Fork(PROGRAM, given, str(ROOT), environment()))


def quick_hosted(folder: Path, params: dict[str, Any], **faults: Any) -> ServerProcess:
    """Such a one on an echo that is hosted as libraries are."""
    params = {"served_model_name": "m", "state_dir": str(folder / "state")} | params
    return quick(folder, "hosted", json.dumps({"params": params, "faults": faults, "hosted": True}))


class Asking:
    """Somebody who waits for an answer that is long in coming, in a thread."""

    def __init__(self, url: str, *, tokens: int, stream: bool) -> None:
        self.error: dict[str, Any] | None = None
        self._body = {"model": "m", "prompt": "x", "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        self._thread = threading.Thread(target=self._ask, args=(f"{url}/v1/completions",), daemon=True)
        self._thread.start()

    def _ask(self, url: str) -> None:
        with httpx.stream("POST", url, json=self._body, timeout=PATIENCE) as answer:
            for line in answer.iter_lines():
                if "error" in (told := json.loads(line.removeprefix("data: ") or "{}")):
                    self.error = told["error"]
                    return

    def ended_with_an_error(self) -> dict[str, Any]:
        self._thread.join(PATIENCE)
        assert self.error is not None, "it ended without an error, or not at all"
        return self.error


class Served:
    """`folder` is for what a fault needs."""

    engine_program: str
    """A word of the command of the engine's process."""
    many_tokens: int
    """Tokens of an answer that does not end by itself in a test."""

    def __init__(self, process: ServerProcess, folder: Path) -> None:
        self.process = process
        self.folder = folder
        limits = httpx.Limits(keepalive_expiry=None)
        self.http = httpx.Client(base_url=process.wait_until_listening(PATIENCE), timeout=PATIENCE, limits=limits)

    def status(self, path: str) -> int:
        """Over a connection that is open: the server may be unable to open another."""
        return self.http.get(path).status_code

    def is_ready(self) -> bool:
        return self.status("/ready") == 200

    def engine(self) -> psutil.Process:
        """The leader of the engine's processes."""
        return engine_of(self.process.pid, self.engine_program)

    def asked(self) -> list[Asking]:
        """Two who wait for answers, of whom one reads."""
        asking = [Asking(self.process.url, tokens=self.many_tokens, stream=stream) for stream in (True, False)]
        until(lambda: self.running() == 2, told=self.log)
        return asking

    def running(self) -> int:
        lines = self.http.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith("tuneserve:num_requests_running")).split()[-1]))

    def restarts(self) -> dict[str, int]:
        """How often the engine was started again, by reason."""
        lines = self.http.get("/metrics").text.splitlines()
        counts = [line for line in lines if line.startswith("tuneserve:engine_restarts_total")]
        return {line.split('reason="')[1].split('"')[0]: int(float(line.split()[-1])) for line in counts}

    def log(self) -> str:
        return "".join(self.process.log)

    def see(self, text: str) -> None:
        """Wait for it in the log."""
        until(lambda: text in self.log(), told=self.log)

    def answers(self) -> bool:
        body = {"model": "m", "prompt": "x", "max_tokens": 3, "ignore_eos": True}
        return self.http.post("/v1/completions", json=body).status_code == 200

    @contextmanager
    def hung_load(self) -> Iterator[None]:
        """Until it ends, no model can be loaded, and every try hangs."""
        (self.folder / HANG).touch()
        yield
        (self.folder / HANG).unlink()

    @classmethod
    @contextmanager
    def begun(cls, folder: Path, **params: Any) -> Iterator[Self]:
        """From when it is ready until the block ends. `params` of the server, besides those that it needs."""
        served = cls(cls.start(folder, **params), folder)
        try:
            until(served.is_ready, told=served.log)
            yield served
        finally:
            served.http.close()
            served.process.close()

    @classmethod
    def start(cls, folder: Path, **params: Any) -> ServerProcess:
        raise NotImplementedError


class Pt(Served):
    """Our own engine, on a tiny model."""

    engine_program = "engines.pt.process"
    many_tokens = 8000

    @classmethod
    def start(cls, folder: Path, **params: Any) -> ServerProcess:
        llama = CONFIGS["llama"]()
        llama.max_position_embeddings = 2 * cls.many_tokens
        model = save(llama, folder / "model", tokenizer=True)
        settings = {"served_model_name": "m", "state_dir": folder / "state", "torch_dtype": "float32", "threads": 1}
        settings |= {"device_map": "cpu", "host": "127.0.0.1", "port": 0, **params}
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return quick(folder, "deploy", "--model", str(model), *words)


class Hosted(Served):
    """An engine that is hosted as libraries are."""

    engine_program = "tests.hosted_echo"
    many_tokens = 4000

    @classmethod
    def start(cls, folder: Path, **params: Any) -> ServerProcess:
        return quick_hosted(folder, params, token_delay=0.05)
