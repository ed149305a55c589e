"""`tuneserve app` as a user runs it: a server, and its page."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import gradio_pages
from tests.engines.pt.tiny import CONFIGS, save
from tests.server.keys import FULL
from tests.server.process import ROOT, environment
from tests.server.states import new_state
from tests.until import PATIENCE, until

if TYPE_CHECKING:
    from gradio_client import Client

PAGE = re.compile(r"The page is at (\S+)")
PROGRAM = "import sys; from server.commands.cli import main; sys.exit(main())"


class App:
    """The command, and its log."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-c", PROGRAM, "app", *words, "--port", "0", "--server_port", "0"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def address(self) -> str:
        until(lambda: PAGE.search("".join(self.log)), told=lambda: "".join(self.log))
        return PAGE.search("".join(self.log))[1]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with gradio_pages.importable():
        model = save(CONFIGS["llama"](), tmp_path / "tiny", tokenizer=True)
        app = App(
            "--model",
            str(model),
            "--api_key",
            FULL,
            "--state_dir",
            new_state(),
            "--threads",
            "1",
            "--template",
            "chatml",
        )
        yield app
        app.process.kill()
        app.process.wait()


def test_a_model_is_served_and_talked_with_and_both_end_together(app: App) -> None:
    from gradio_client import Client

    client = Client(app.address(), verbose=False)
    assert client.predict("", None, api_name="/models")["choices"] == []
    until(lambda: _first(client) == "tiny")
    asked = {"model": "tiny", "system": "Be brief.", "temperature": 0, "max_tokens": 4}
    (answer,) = client.predict(asked="one", key=FULL, **asked, api_name="/chat")
    assert answer["role"] == "assistant" and answer["content"]

    app.process.terminate()
    assert app.process.wait(PATIENCE) == 0
    with pytest.raises(Exception, match="refused"):
        Client(app.address(), verbose=False)


def _first(client: "Client") -> str | None:
    """The first model, once the engine has started."""
    from gradio_client.exceptions import AppError

    try:
        name: str | None = client.predict(FULL, None, api_name="/models")["value"]
    except AppError:  # a 503, until it has
        return None
    return name
