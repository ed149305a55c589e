"""The commands that train and merge, from words to a folder, with the real worker."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from tests.engines.pt.adapters import save_adapter
from tests.training.jobs import ROOT, make_data, make_model, trained, weights
from training.folder import JobFolder

PATIENCE = 240
STEPS = 150
"""Enough that a training still runs once a step of it was told, on a quick machine."""
PROGRAM = "import sys; from server.commands.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    make_model(folder / "tiny")
    make_data(folder / "lines.jsonl", rows=24)
    pairs = [
        {
            "messages": [{"role": "user", "content": f"number {i}"}, {"role": "assistant", "content": "the red"}],
            "rejected_response": "the blue value",
        }
        for i in range(12)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def start(here: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(here: Path, *words: str, status: int = 0) -> tuple[list[dict[str, Any]], str]:
    """The events that were shown, and the last line."""
    with start(here, *words) as process:
        told, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, errors
    events = [json.loads(line) for line in told.splitlines()]
    return events, events[-1]["message"] if status == 0 else errors


TRAINING = ("--model", "tiny", "--dataset", "lines.jsonl", "--split_dataset_ratio", "0", "--report_to", "none")


def test_sft_then_dpo_then_merge(here: Path) -> None:
    events, last = finish(here, "sft", *TRAINING, "--num_train_epochs", "1", "--logging_steps", "1")
    losses = [event["metrics"]["loss"] for event in events if event["type"] == "step"]
    assert len(losses) == 24
    made = re.search(r"Serve it: tuneserve deploy --model tiny --adapters (\S+)$", last)
    assert made, last
    assert JobFolder(Path(made[1]).parent).read_result().final_step == 24

    words = ("--rlhf_type", "dpo", "--adapters", made[1], "--dataset", "pairs.jsonl", "--split_dataset_ratio", "0")
    events, last = finish(here, "rlhf", *words, "--num_train_epochs", "3", "--learning_rate", "1e-3")
    margins = [event["metrics"]["rewards/margins"] for event in events if event["type"] == "step"]
    assert margins[-1] > margins[0]
    preferred = re.search(r"--adapters (\S+)$", last)[1]

    _, last = finish(here, "merge", "--adapters", preferred)
    merged = Path(f"{preferred}-merged")
    assert last.endswith(f"tuneserve deploy --model {merged}")
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in merged.iterdir()
    }


def test_a_file_that_cannot_be_used_is_told_without_a_traceback(here: Path) -> None:
    (here / "broken.jsonl").write_text('{"messages": [{"role": "user"')
    words = ("--model", "tiny", "--dataset", "broken.jsonl", "--strict", "true")
    _, errors = finish(here, "sft", *words, status=1)
    assert errors.startswith("tuneserve sft: failed: --dataset: ")
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1


def wait_for_a_step(process: subprocess.Popen[str]) -> None:
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    while '"type":"step"' not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    watchdog.cancel()


def test_ctrl_c_keeps_a_checkpoint_and_it_alone_goes_on_as_if_undisturbed(here: Path, tmp_path: Path) -> None:
    """What began with an adapter, and from wherever it is resumed."""
    save_adapter(here / "tiny", here / "taught", r=3, lora_alpha=24, lora_dropout=0.1)
    length = ("--max_steps", str(STEPS), "--save_steps", "1000", "--logging_steps", "1")
    with start(here, "sft", *TRAINING, "--adapters", "taught", *length) as process:
        wait_for_a_step(process)
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGINT, errors
    checkpoint = re.search(r"go on with --resume_from_checkpoint (\S+)\.", told)[1]
    words = ("--dataset", str(here / "lines.jsonl"), "--split_dataset_ratio", "0", "--report_to", "none")
    events, last = finish(tmp_path, "sft", *words, *length, "--resume_from_checkpoint", checkpoint)
    resumed = re.search(r"--adapters (\S+)$", last)[1]

    first = next(event["step"] for event in events if event["type"] == "step")
    assert first == int(checkpoint.rpartition("-")[2]) + 1 > 1
    undisturbed = trained(
        tmp_path / "undisturbed", "sft", model=str(here / "tiny"), dataset=[str(here / "lines.jsonl")],
        adapters=[str(here / "taught")], max_steps=STEPS, save_steps=1000, split_dataset_ratio=0, report_to=["none"],
    )  # fmt: skip
    one, other = weights(undisturbed, STEPS), load_file(Path(resumed) / "adapter_model.safetensors")
    assert one.keys() == other.keys()
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties processes to one another")
def test_no_process_of_a_training_outlives_the_command(here: Path) -> None:
    words = ("--rlhf_type", "dpo", "--model", "tiny", "--dataset", "pairs.jsonl", "--output_dir", "two")
    more = ("--split_dataset_ratio", "0", "--report_to", "none", "--num_train_epochs", "9999")
    with start(here, "rlhf", *words, *more, NPROC_PER_NODE="2") as process:
        wait_for_a_step(process)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 3  # torchrun and its two
        process.kill()
    assert psutil.wait_procs(started, timeout=PATIENCE)[1] == []
