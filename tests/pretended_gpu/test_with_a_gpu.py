"""Tests that need a GPU, and others that then take other ways, with a pretended one (`device.py`)."""

import os
import subprocess
import sys

import pytest
import torch

from tests.pretended_gpu.hooks import COMPILER

ENGINE = "tests/engines/pt"
SELECTED: dict[str, tuple[str, ...]] = {
    "what needs a GPU": ("-m", "gpu", f"{ENGINE}/layers", f"{ENGINE}/lora", f"{ENGINE}/test_runner.py"),
    "steps in float32": (f"{ENGINE}/test_parity.py", "-k", "llama or gemma2 or qwen3-moe"),
    "trainings": (
        "tests/training/pipelines/sft",
        "-k",
        "loss_of_lora or loss_of_full or full_training_writes or resumed_full",
    ),
}


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler, which pretending takes")
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA itself")
@pytest.mark.parametrize("selected", SELECTED.values(), ids=SELECTED)
def test_tests_pass_where_torch_finds_a_gpu(selected: tuple[str, ...]) -> None:
    pretending = "-p", "tests.pretended_gpu.plugin", "-p", "no:cacheprovider", "-rs"
    command = [sys.executable, "-m", "pytest", *pretending, *selected]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "SKIPPED" not in done.stdout, done.stdout[-6000:]
