"""`tuneserve sft|pt|rlhf|merge`: with a stand-in for the worker, which does what its script says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.commands import cli, foreground
from tests.server.commands.worker import command
from tests.until import until
from training.folder import JobFolder
from training.machines import ALONE, Machines

ROOT = Path(__file__).parents[3]
PATIENCE = 60
LORA = {"peft_type": "LORA", "bias": "none", "base_model_name_or_path": "its/base"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def worker(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Have the worker do one of `worker.py`'s deeds; returns the words that the last was started with."""
    asked: dict[str, Any] = {}

    def does(deed: str, *words: Any) -> dict[str, Any]:
        stand_in = command(deed, *words)

        def started(folder: Path, processes: int = 1, machines: Machines = ALONE) -> list[str]:
            asked.update(folder=folder, processes=processes, machines=machines)
            return stand_in(folder)

        monkeypatch.setattr(foreground, "worker_command", started)
        return asked

    return does


def test_a_training_says_where_its_adapter_is_and_how_to_serve_it(
    worker: Callable[..., dict[str, Any]], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = worker("trains_an_adapter", LORA)
    assert cli.main(["sft", "--model", "a b", "--dataset", "d.jsonl", "--output_dir", "out"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    made = asked["folder"] / "checkpoint-2"
    assert lines[1]["type"] == "checkpoint"
    assert (
        lines[-1]["message"] == f"The adapter is in {made}. Serve it: tuneserve deploy --model 'a b' --adapters {made}"
    )
    assert json.loads((asked["folder"] / "task.json").read_text()) == {
        "task": "sft",
        "params": {"model": "a b", "dataset": ["d.jsonl"], "output_dir": "out"},
    }


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"bias": "all"}, {"target_parameters": ["experts.down_proj"]}])
def test_an_adapter_that_cannot_be_served_is_to_be_merged(
    worker: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], kind: dict[str, Any]
) -> None:
    worker("trains_an_adapter", LORA | kind)
    assert cli.main(["sft", "--model", "m"]) == 0
    assert "tuneserve merge --adapters /" in capsys.readouterr().out


def test_a_trained_model_is_served_as_it_is(
    worker: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    worker("trains_a_model", "checkpoint-2")
    assert cli.main(["pt", "--model", "m"]) == 0
    assert "Serve it: tuneserve deploy --model /" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "command"),
    [("model.gguf", "Serve it: tuneserve deploy --model /"), ("adapter.gguf", "llama-server --model ... --lora /")],
)
def test_a_gguf_file_is_served_by_what_reads_it(
    name: str, command: str, worker: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    worker("exports", name)
    assert cli.main(["export", "--model", "m", "--to_gguf", "f16", "--output_dir", "out"]) == 0
    said = capsys.readouterr().out
    assert command in said and f"out/{name}" in said


def test_a_failure_is_told_in_the_words_of_the_worker(
    worker: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    worker("fails", "line 3 is no JSON", "dataset")
    assert cli.main(["rlhf", "--rlhf_type", "dpo", "--model", "m"]) == 1
    assert capsys.readouterr().err == "tuneserve rlhf: failed: --dataset: line 3 is no JSON\n"


def test_a_worker_that_dies_leaves_the_end_of_its_log(
    worker: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    worker("dies")
    assert cli.main(["sft", "--model", "m"]) == 1
    told = capsys.readouterr().err
    assert "was killed, as it is where memory runs out" in told
    assert told.endswith("line 49\n")
    assert "line 29\n" not in told


def test_a_checkpoint_is_named_by_its_whole_path(worker: Callable[..., dict[str, Any]], here: Path) -> None:
    asked = worker("trains_a_model", ".")
    cli.main(["sft", "--model", "m", "--resume_from_checkpoint", "out/checkpoint-1"])
    params: Any = JobFolder(asked["folder"]).read_task().params
    assert params.resume_from_checkpoint == str(here / "out" / "checkpoint-1")


def test_several_processes_are_asked_for_as_the_reference_does(
    worker: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = worker("trains_a_model", ".")
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    assert cli.main(["sft", "--model", "m"]) == 0
    assert asked["processes"] == 2
    monkeypatch.setenv("NPROC_PER_NODE", "many")
    assert cli.main(["sft", "--model", "m"]) == 1
    assert "not 'many'" in capsys.readouterr().err


def test_several_machines_are_asked_for_as_the_reference_does(
    worker: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = worker("trains_a_model", ".")
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["sft", "--model", "m"]) == 0
    assert asked["machines"] == Machines(2, 1, "10.0.0.1")
    assert "Done: the first machine has what was made." in capsys.readouterr().out
    monkeypatch.setenv("NODE_RANK", "2")
    assert cli.main(["sft", "--model", "m"]) == 1
    assert "NODE_RANK has to number this machine, from 0 to 1" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").touch()
    assert cli.main(["sft", "--model", "m", "--output_dir", "file"]) == 1
    assert "--output_dir" in capsys.readouterr().err


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trl" else object())
    assert cli.main(["sft", "--model", "m"]) == 1
    assert capsys.readouterr().err == "tuneserve sft: failed: trl is missing: pip install 'tuneserve[train]'\n"


# ---- merge


def test_a_merged_model_appears_beside_its_adapter_and_nothing_else_does(
    worker: Callable[..., dict[str, Any]], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "run" / "checkpoint-3").mkdir(parents=True)
    worker("merges")
    assert cli.main(["merge", "--adapters", "run/checkpoint-3"]) == 0
    assert {path.name for path in (here / "run").iterdir()} == {"checkpoint-3", "checkpoint-3-merged"}
    assert [path.name for path in (here / "run" / "checkpoint-3-merged").iterdir()] == ["config.json"]
    assert f"tuneserve deploy --model {here}/run/checkpoint-3-merged" in capsys.readouterr().out
    assert cli.main(["merge", "--adapters", "run/checkpoint-3"]) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_merge_that_fails_leaves_nothing(
    worker: Callable[..., dict[str, Any]], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "run" / "checkpoint-3").mkdir(parents=True)
    worker("fails", "no", None)
    assert cli.main(["merge", "--adapters", "run/checkpoint-3"]) == 1
    assert [path.name for path in (here / "run").iterdir()] == ["checkpoint-3"]
    assert capsys.readouterr().err == "tuneserve merge: failed: no\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--adapters: name the adapter to merge"),
        (
            ["--adapters", "a", "--safe_serialization", "false"],
            "--safe_serialization: false is not supported in this version; choose true",
        ),
        (["--adapters", "a", "--quant_method", "gptq"], "quant_method: Input should be 'bnb'"),
    ],
)
def test_what_merge_cannot_do_is_refused(capsys: pytest.CaptureFixture[str], words: list[Any], told: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["merge", *words])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "m"], "--merge_lora: say what is to be made of it: give merge_lora, quant_method, to_gguf"),
        (["--model", "m", "--quant_method", "gptq", "--dataset", "d"], "--quant_method: say how many bits"),
        (["--model", "m", "--quant_method", "awq"], "--dataset: awq measures on texts which weights matter"),
        (["--model", "m", "--quant_method", "fp8", "--group_size", "64"], "--group_size: only gptq and awq read it"),
        (["--model", "m", "--quant_method", "hqq"], "--quant_method: say how many bits each weight is to have"),
        (["--model", "m", "--quant_method", "fp8", "--hqq_axis", "1"], "--hqq_axis: only quant_method hqq reads it"),
        (["--adapters", "a", "--quant_method", "fp8"], "--merge_lora: what is quantised is a whole model"),
        (["--adapters", "a", "--to_gguf", "q8_0"], "--to_gguf: a GGUF file of an adapter is f32, f16 or bf16"),
        (["--model", "m", "--to_peft_format"], "--adapters: name the adapter to write as PEFT has it"),
        (["--model", "m", "--to_gguf", "f16", "--quant_method", "fp8"], "--quant_method: to_gguf says how"),
    ],
)
def test_what_export_cannot_do_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", *words])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_what_is_exported_appears_beside_the_adapter_named_after_what_was_done(
    worker: Callable[..., dict[str, Any]], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "run" / "checkpoint-3").mkdir(parents=True)
    worker("merges")
    words = ["--adapters", "run/checkpoint-3", "--merge_lora", "--quant_method", "awq", "--dataset", "d"]
    assert cli.main(["export", *words]) == 0
    assert {path.name for path in (here / "run").iterdir()} == {"checkpoint-3", "checkpoint-3-merged-awq-int4"}
    assert f"tuneserve deploy --model {here}/run/checkpoint-3-merged-awq-int4" in capsys.readouterr().out


# ---- signals


def start(deed: str, here: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.commands.sft_command", deed],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    while '"ready"' not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    watchdog.cancel()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_training_at_a_checkpoint(here: Path, number: signal.Signals) -> None:
    with start("stops_when_told", here) as process:
        wait_until_ready(process)
        process.send_signal(number)
        told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert "Stopped after step 5; go on with --resume_from_checkpoint /" in told
    assert "/checkpoint-5." in told


def test_a_second_signal_ends_it_at_once(here: Path) -> None:
    with start("does_not_stop", here) as process:
        wait_until_ready(process)
        process.send_signal(signal.SIGINT)
        while "Stopping" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGINT
    assert "ended at once, nothing was kept" in told


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="nothing here ties a process to its parent")
def test_the_worker_dies_with_the_command(here: Path) -> None:
    with start("does_not_stop", here) as process:
        wait_until_ready(process)
        worker = int(next(here.glob("output/m/*/pid")).read_text())
        process.kill()
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
