"""The hub's token on its way to a worker, with a hub of the test's own that asks for it."""

import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_training_commands import PATIENCE, start
from tests.processes import command_of
from tests.training.jobs import make_data

TOKEN = "hf_s3cret"


class GatedHub(ThreadingHTTPServer):
    """Turns everybody away, and remembers what they brought."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Gate)
        self.brought: set[str | None] = set()
        self.commands: set[str] = set()
        """Command lines of all processes of ours while somebody asked."""


class _Gate(BaseHTTPRequestHandler):
    server: GatedHub

    def do_GET(self) -> None:
        self.server.brought.add(self.headers.get("authorization"))
        for process in psutil.Process().children(recursive=True):
            self.server.commands.add(command_of(process))
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[GatedHub]:
    with GatedHub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def train(here: Path, hub: GatedHub, *words: str) -> subprocess.CompletedProcess[str]:
    make_data(here / "lines.jsonl")
    (here / "sft.yaml").write_text(f"hub_token: {TOKEN}\n" if not words else "{}\n")
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(here / "home"), "HF_TOKEN": ""}
    given = ("--model", "org/private", "--dataset", "lines.jsonl", "--output_dir", "out", *words)
    with start(here, "sft", "sft.yaml", *given, **environment, HF_HUB_OFFLINE="0") as process:
        told, errors = process.communicate(timeout=PATIENCE)
    (here / "sft.yaml").unlink()
    return subprocess.CompletedProcess(process.args, process.returncode, told, errors)


def test_the_worker_brings_the_token_to_the_hub_and_nothing_holds_it(tmp_path: Path, hub: GatedHub) -> None:
    done = train(tmp_path, hub)
    assert done.returncode == 1 and f"Bearer {TOKEN}" in hub.brought
    assert any("training.run" in command for command in hub.commands)
    told = [done.stdout, done.stderr, *hub.commands]
    written = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3 and not any(TOKEN in text for text in told + written)


def test_without_it_the_failure_names_what_to_give(tmp_path: Path, hub: GatedHub) -> None:
    done = train(tmp_path, hub, "--seed", "1")
    assert done.returncode == 1 and hub.brought == {None}
    assert "give the hub_token of an account that may read it" in done.stderr
