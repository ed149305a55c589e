"""What a job of the API opens and whom it asks, with a hub of the test's own, and secrets in all the usual places."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server.jobs.devices import FixedDevices
from server.jobs.executor import LocalExecutor
from server.jobs.jobs import Jobs, Machine
from server.parts import make_parts
from tests.hub import Hub, Repo, running
from tests.server.api import Api, EchoApi, api_of
from tests.server.client import ReadyClient
from tests.server.process import ROOT, ServerProcess
from tests.training.jobs import make_data, make_model

SECRET = "hf_s3cret"
PROGRAM = """
import runpy, sys
name = sys.argv.pop(1)
runpy.run_module(f"training.{name}", run_name="__main__", alter_sys=True)
"""
CALLS = "open,openat,openat2,connect"
SYSTEM = [
    "/proc", "/sys", "/dev", "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf",
    "/etc/passwd", "/etc/ssl", "/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/gai.conf", "/etc/mime.types",
]  # fmt: skip
"""What belongs to the system, and tells nothing that a job may not know."""
SCRATCH = re.compile(re.escape(tempfile.gettempdir()) + r"/(tuneserve-data-\w+(/.*)?|pymp-\w+(/.*)?|[a-z0-9_]{8})")
"""Folders that the job itself has made for a while, and the file by which `tempfile` finds out where it can."""
OPENED = re.compile(r'^(?:\d+ +)?open\w*\((?:[^",]*, )?"(?P<path>[^"]+)".* = (?P<result>-?\d+)', re.MULTILINE)
ASKED = re.compile(r'connect\([^\n"]*port=htons\((?P<port>\d+)\)[^\n"]*"(?P<host>[^"\n]+)"')


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With what libraries read of themselves."""
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(SECRET)
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    for name in ("HF_TOKEN", "HF_HOME", "XDG_CACHE_HOME", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return home


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def model_repo(folder: Path, token: str | None = None) -> Repo:
    return Repo({path.name: path.read_bytes() for path in make_model(folder).iterdir()}, token=token)


@contextmanager
def traced(state: Path, log: Path) -> Iterator[EchoApi]:
    """A server whose jobs run under strace, which writes to `log`."""
    strace = ("strace", "-f", "--seccomp-bpf", "-o", str(log), "-A", "-e", f"trace={CALLS}", "-s", "1000")
    if not shutil.which("strace") or subprocess.run([*strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("there is no strace here, or it may not trace")
    limits = {"job_hub": "on", "max_running_jobs": 1, "job_retries": 0, "state_dir": str(state), "verbose": False}
    machine = Machine(executor=LocalExecutor(command=(*strace, sys.executable, "-c", PROGRAM)), devices=FixedDevices())
    params = DeployParams(**{"model": "echo", "hub_token": SECRET} | limits)
    with ReadyClient(make_parts(EchoEngine(), echo_tokenizer(), params, machine=machine)) as client:
        yield EchoApi(client)


def installation() -> list[str]:
    """Python with its libraries, and ourselves."""
    paths = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(ROOT), *sys.path}
    found = {place for path in paths if path for place in (path, str(Path(path).resolve()))}
    return sorted(found | {str(Path(sys.executable).resolve().parents[1])})


def test_a_job_opens_nothing_but_its_own_and_brings_the_hub_no_token(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    private = make_data(tmp_path / "private.jsonl")
    rows = make_data(tmp_path / "rows.jsonl").read_bytes()
    hub.repos["models/org/tiny"] = model_repo(tmp_path / "tiny")
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": rows})
    leads_out = {"configs": [{"config_name": "default", "data_files": str(private)}]}
    hub.repos["datasets/org/leads-out"] = Repo({"train.jsonl": rows}, card=leads_out)
    state, log = tmp_path / "state", tmp_path / "trace"
    with traced(state, log) as api:
        # 1. A card that names a file of this machine.
        job = api.jobs.create("sft", {"model": "echo", "dataset": ["org/leads-out"]})
        error = api.jobs.wait(job["id"], "failed")["error"]
        assert (error["code"], error["param"]) == ("not_fetched", "dataset")
        assert "its card names 'private.jsonl' as data" in error["message"], "no folder is told"
        # 2. A whole training on a model and a data set of the hub.
        training = {"model": "org/tiny", "dataset": ["org/set#8"], "max_steps": 1, "lora_rank": 2}
        job = api.jobs.wait(api.jobs.create("sft", training)["id"])
        assert job["status"] == "succeeded", job["error"]
        folders = api.http.parts[Jobs].folders
    text = log.read_text(errors="replace")
    opened = {Path(str(found["path"])).absolute() for found in OPENED.finditer(text) if int(found["result"]) >= 0}
    known = [folders.root, state / "hub", *map(Path, (*SYSTEM, *installation()))]
    strange = [path for path in opened if not any(path.is_relative_to(place) for place in known)]
    assert [path for path in strange if not SCRATCH.fullmatch(str(path))] == []
    assert any(path.is_relative_to(folders.job(job["id"]) / "data" / "hub") for path in opened), "else nothing was seen"
    tried = {found["path"] for found in OPENED.finditer(text)}
    assert not [path for path in tried if path.startswith(str(tmp_path / "home")) or path == str(private)]
    asked = {f"http://{found['host']}:{found['port']}" for found in ASKED.finditer(text)}
    assert asked == {hub.url} and not hub.brought


def test_a_served_model_that_only_a_token_shows_is_trained_without_it(tmp_path: Path, hub: Hub) -> None:
    """The server has it in its cache; its jobs ask the hub nothing."""
    hub.repos["models/org/gated"] = model_repo(tmp_path / "gated", token=SECRET)
    words = ["--model", "org/gated", "--hub_token", SECRET, "--threads", "1"]
    with ServerProcess.ready(*words) as server, api_of(server) as api:
        assert hub.brought == {f"Bearer {SECRET}"}
        hub.asked.clear()
        assert trained(api)["status"] == "succeeded"
        assert hub.asked == []


def trained(api: Api) -> dict[str, object]:
    text = "".join(
        f'{{"messages": [{{"role": "user", "content": "{n}"}}, {{"role": "assistant", "content": "b"}}]}}\n'
        for n in range(10)
    )
    hyperparameters = {"n_epochs": 1, "batch_size": 10}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    job = api.fine_tuning.create(model="gated", training_file=api.upload(text), method=method)
    return api.fine_tuning.wait(job["id"])
