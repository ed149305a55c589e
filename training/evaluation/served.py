"""A model behind `/v1`, for what asks servers alone: `tuneserve deploy` on a free port of this machine, with a key that
nobody else has."""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engines.adapters.source import name_adapters
from engines.checkpoint.gguf.named import name_of
from engines.errors import EngineFailure, InvalidRequest
from engines.params.about import facts
from engines.params.deploy import DeployParams
from engines.process.children import with_parent_death_signal
from training.evaluation.on_engine import on_engine
from training.params.eval import EvalParams
from training.params.task import LOADED_HERE

PROGRAM = "import sys; from server.commands.cli import main; sys.exit(main())"
LISTENING = re.compile(r"Listening on (http://\S+:\d+) ")
ADAPTER = "measured"
LOOK_SECONDS = 0.2
STOP_SECONDS = 30.0
LINES = 20
"""Of its log, that are told where it ends before it can answer."""


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    """With `/v1`."""
    key: str | None
    model: str


@contextmanager
def served(params: EvalParams, checkpoint: Callable[[], None]) -> Iterator[Served]:
    """The model answers within. `checkpoint` is called meanwhile, and may raise. Raises EngineFailure,
    InvalidRequest."""
    if len(params.adapters) > 1:
        raise InvalidRequest("one at a time is measured", param="adapters")
    key = secrets.token_hex(24)
    with tempfile.TemporaryDirectory(prefix="tuneserve-") as folder:
        settings = Path(folder) / "deploy.json"
        settings.write_text(json.dumps(settings_of(params)))
        process = subprocess.Popen(
            with_parent_death_signal([sys.executable, "-c", PROGRAM, "deploy", str(settings)]),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TUNESERVE_API_KEY": f"infer:{key}"},
        )
        assert process.stderr is not None
        log = _Log(process.stderr)
        try:
            _wait(process, log, checkpoint)
            yield Served(f"{log.url}/v1", key, ADAPTER if params.adapters else name_of(params.model or ""))
        finally:
            _end(process)


def settings_of(params: EvalParams) -> dict[str, object]:
    """The parameters of `deploy`, without secrets: those stand in the environment."""
    params = on_engine(params)
    read = {name for name, said in facts(DeployParams) if (said.engines or name in LOADED_HERE) and not said.secret}
    given = params.model_dump(mode="json", include=read & params.model_fields_set)
    adapters = [f"{ADAPTER}={path}" for path in name_adapters(params.adapters).values()]
    here = {"host": "127.0.0.1", "port": 0, "without_state": True, "verbose": params.verbose}
    return {**given, **here, "model": params.model, "served_model_name": name_of(params.model or "")} | (
        {"adapters": adapters} if adapters else {}
    )


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(process: "subprocess.Popen[str]", log: "_Log", checkpoint: Callable[[], None]) -> None:
    """Until it can answer. Raises EngineFailure."""
    while not (log.url and _is_ready(log.url)):
        checkpoint()
        if process.poll() is not None:
            raise EngineFailure("the model could not be served to be measured:\n" + "".join(log.last))
        time.sleep(LOOK_SECONDS)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class _Log:
    """What it writes goes on to our own log, and tells where it listens."""

    def __init__(self, file: IO[str]) -> None:
        self.url = ""
        self.last: deque[str] = deque(maxlen=LINES)
        self._file = file
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._file:
            sys.stderr.write(line)
            self.last.append(line)
            if found := LISTENING.search(line):
                self.url = found[1]
