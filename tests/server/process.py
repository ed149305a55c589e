"""A server in a process of its own, for tests that need real sockets and signals."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.forks import Fork, preload
from tests.server import echo_server
from tests.server.states import new_state
from tests.until import PATIENCE, until

ROOT = Path(__file__).parents[2]
LISTENING = re.compile(r"Listening on (https?://[\d.]+:\d+)")


preload(echo_server.__name__, "alembic.context")  # a server loads Alembic as it starts


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class ServerProcess:
    """Runs from construction to `close`; its log is kept."""

    def __init__(self, process: subprocess.Popen[str] | Fork) -> None:
        self.log: list[str] = []
        self._address = threading.Event()
        self.url = ""
        self._process = process
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @classmethod
    def echo(cls, **settings: Any) -> "ServerProcess":
        """EchoEngine; settings as in `echo_server.py`. It has a state of its own unless `params` say where it is."""
        params = settings.pop("params", {})
        state = {} if params.keys() & {"state_dir", "without_state"} else {"state_dir": new_state()}
        given = {"synchronous": "OFF", **settings, "params": state | params}  # it need not outlive the machine
        return cls(Fork(echo_server.__name__, given, str(ROOT), environment()))

    @classmethod
    def deploy(cls, *words: str) -> "ServerProcess":
        """`tuneserve deploy`, with these words, on a free port, and with a state of its own unless they say where it
        is."""
        if not {"--state_dir", "--state-dir", "--without_state"} & set(words):
            words = (*words, "--state_dir", new_state())
        program = "import sys; from server.commands.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "deploy", *words, "--host", "127.0.0.1", "--port", "0"]
        return cls(subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True))

    @classmethod
    @contextmanager
    def ready(cls, *words: str, patience: float = PATIENCE) -> "Iterator[ServerProcess]":
        """`deploy`, from when it can answer until the block ends."""
        process = cls.deploy(*words)
        try:
            process.wait_until_listening()
            until(process.is_ready, seconds=patience, told=lambda: "".join(process.log))
            yield process
        finally:
            process.close()

    def is_ready(self) -> bool:
        """Whether it can answer. Fails the test where it has ended."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=PATIENCE).status_code == 200
        except httpx.TransportError as error:
            raise AssertionError(f"the server has ended:\n{''.join(self.log)}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_listening(self, timeout: float = PATIENCE) -> str:
        """The server's address."""
        assert self._address.wait(timeout) and self.url, f"the server did not listen:\n{''.join(self.log)}"
        return self.url

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit status."""
        status = self._process.wait(timeout)
        self._reader.join(timeout)
        return status

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stderr.close()

    def _read_log(self) -> None:
        for line in self._process.stderr:
            self.log.append(line)
            if found := LISTENING.search(line):
                self.url = found[1]
                self._address.set()
        self._address.set()


class Kept:
    """A server that keeps its state in `folder`, and two clients of it: of any route, and OpenAI's."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.http = httpx.Client(base_url=server.url, timeout=PATIENCE)
        self.client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
