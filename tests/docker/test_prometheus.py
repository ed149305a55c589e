"""What Prometheus makes of us: a real one, with the configuration of the container, scrapes a real server."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.ports import free_port
from tests.server.keys import FULL, SCRAPE, bearer
from tests.server.process import ServerProcess

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "docker" / "prometheus.yml"
WAIT_SECONDS = 60
T = TypeVar("T")

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="prometheus and promtool are not installed",
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server that is ready."""
    process = ServerProcess.echo(api_key=("admin=" + FULL, f"prometheus=metrics:{SCRAPE}"), metrics_auth=True)
    try:
        url = process.wait_until_listening()
        _until(lambda: _get(f"{url}/ready"), "the server is ready")
        yield url.removeprefix("http://")
    finally:
        process.close()


@pytest.fixture(scope="module")
def prometheus(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that runs the container's configuration, with another target, pace and place of its
    key."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load(CONFIG.read_text())
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server]}]
    config["scrape_configs"][0]["authorization"] = {"credentials_file": str(folder / "metrics_key")}
    (folder / "metrics_key").write_text(SCRAPE)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with subprocess.Popen(command) as process:
        try:
            _until(lambda: _get(f"http://{address}/-/ready"), "Prometheus is ready")
            yield address
        finally:
            process.terminate()


def test_promtool_accepts_the_configuration() -> None:
    check = ["promtool", "check", "config", "--syntax-only", str(CONFIG)]  # the key's file is in the container only
    done = subprocess.run(check, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_promtool_finds_nothing_to_mend_in_the_metrics_but_vllms_names(server: str) -> None:
    """`tuneserve:` is meant to be like `vllm:`, so that a dashboard is carried over by one replacement."""
    metrics = _get(f"http://{server}/metrics", SCRAPE)
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, check=False)

    findings = done.stderr.decode().splitlines()
    named_by_vllm = ("metric names should not contain ':'", 'non-counter metrics should not have "_total" suffix')
    assert [line for line in findings if not line.endswith(named_by_vllm)] == []
    assert all(line.startswith("tuneserve:") for line in findings)


def test_prometheus_sees_the_server_up_and_its_series(prometheus: str, server: str) -> None:
    up = _until(lambda: _query(prometheus, 'up{job="tuneserve"} == 1'), "the server is up")
    (running,) = _until(lambda: _query(prometheus, "tuneserve:num_requests_running"), "a series of ours is there")

    assert [series["metric"]["instance"] for series in up] == [server]
    assert running["metric"]["model_name"] == "echo"
    assert running["value"][1] == "0"


def _query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    answer = json.loads(_get(f"http://{prometheus}/api/v1/query?query={urllib.parse.quote(expression)}"))
    series: list[dict[str, Any]] = answer["data"]["result"]
    return series


def _get(url: str, key: str | None = None) -> bytes:
    request = urllib.request.Request(url, headers={} if key is None else bearer(key))
    with urllib.request.urlopen(request, timeout=10) as answer:
        content: bytes = answer.read()
        return content


def _until(attempt: Callable[[], T], what: str) -> T:
    """Repeat what fails or gives nothing."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            if found := attempt():
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{WAIT_SECONDS} s have passed before {what}")
