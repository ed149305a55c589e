"""Processes that divide a training among them, on CPUs by gloo: they learn what one learns from the same batches, leave
checkpoints that load alone, and go on where they were.

They are started twice, two of them and then four, and train one thing after another.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.training.jobs import ROOT, evaluations, losses, make_job
from training.folder import JobFolder
from training.report import Report
from training.run import run

PATIENCE = 400
COMMON: dict[str, Any] = {
    "torch_dtype": "float32", "max_steps": 4, "logging_steps": 1, "save_steps": 2, "report_to": "none",
    "learning_rate": 1e-2,
}  # fmt: skip
LEARNED: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.0},
    "full": {"train_type": "full", "learning_rate": 1e-3},
    "packed": {"lora_dropout": 0.0, "packing": True, "max_length": 40},
    "pairs": {"rlhf_type": "dpo"},
}
"""What is learned, by one process from batches of four rows and by several from as many together."""
SEQUENCES = {"sequence_parallel_size": 2}
ZERO3 = {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}
TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("lora", {}),
    "zero1": ("lora", {"deepspeed": "zero1"}),
    "zero2": ("full", {"deepspeed": "zero2_offload"}),
    "zero3": ("full", {"deepspeed": "zero3_offload"}),
    "zero3, pairs": ("pairs", {"deepspeed": ZERO3}),
    "fsdp": ("lora", {"fsdp": "full_shard"}),
    "fsdp, offloaded": ("full", {"fsdp": "shard_grad_op offload"}),
    "sequences": ("packed", {**SEQUENCES, "per_device_train_batch_size": 4}),
}
"""Name of a training by two processes -> what is learned, and how they divide it."""
RESUMED = ("zero2", "zero3", "fsdp")
"""Those that go on from their second step."""
FOUR: dict[str, tuple[str, dict[str, Any]]] = {
    "sequences and fsdp": ("full", {**SEQUENCES, "fsdp": "full_shard", "per_device_train_batch_size": 2}),
}
TO_FOUR = ("ddp", "fsdp", "zero2")
"""Trainings by two that four go on with."""


class Trained:
    """Jobs by name."""

    def __init__(self, folder: Path, model: Path, data: Mapping[str, Path]) -> None:
        self.folder, self.model, self.data = folder, model, data
        self.jobs: dict[str, JobFolder] = {}

    def job(self, name: str, learned: str, *given: Mapping[str, Any]) -> JobFolder:
        data = str(self.data[learned])
        params = COMMON | {"model": str(self.model), "dataset": data, "val_dataset": f"{data}#4"} | LEARNED[learned]
        for more in given:
            params |= more
        if "resume_from_checkpoint" in params:
            params.pop("lora_dropout", None)
        self.jobs[name] = make_job(self.folder / name, "rlhf" if "rlhf_type" in params else "sft", **params)
        return self.jobs[name]

    def together(self, processes: int) -> None:
        """Train those that were not trained yet."""
        folders = [str(job.path) for job in self.jobs.values() if job.read_result() is None]
        words = ("--standalone", "--nproc-per-node", str(processes), "-m", "tests.training.parallel.many", *folders)
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]

    def checkpoint(self, name: str, step: int = 4) -> Path:
        result = self.jobs[name].read_result()
        assert result is not None and result.status == "succeeded", (name, result)
        return self.jobs[name].path / f"checkpoint-{step}"

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """What the checkpoint makes of the model, loaded by transformers and PEFT alone."""
        checkpoint = self.checkpoint(name)
        if (checkpoint / "adapter_config.json").exists():
            base = AutoModelForCausalLM.from_pretrained(self.model, dtype="float32")
            return PeftModel.from_pretrained(base, checkpoint).merge_and_unload().state_dict()
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32").state_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path, lines: Path) -> Trained:
    folder = tmp_path_factory.mktemp("divided")
    pairs = folder / "pairs.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    pairs.write_text("".join(json.dumps(row | {"rejected_response": "no value"}) + "\n" for row in rows))
    trained = Trained(folder, tiny, {"lora": lines, "full": lines, "packed": lines, "pairs": pairs})
    for learned in LEARNED:
        job = trained.job(learned, learned, {"per_device_train_batch_size": 4})
        job.write_result(run(job, Report(job)))

    batch = {"ddp_backend": "gloo", "per_device_train_batch_size": 2}
    for name, (learned, how) in TWO.items():
        trained.job(f"two: {name}", learned, batch | of_all_tokens(learned) | how)
    for name in RESUMED:
        learned, how = TWO[name]
        half = trained.folder / f"two: {name}" / "checkpoint-2"
        on = {"resume_from_checkpoint": str(half)}
        trained.job(f"two, resumed: {name}", learned, batch | of_all_tokens(learned) | how, on)
    trained.together(2)

    batch = {"ddp_backend": "gloo", "per_device_train_batch_size": 1}
    for name, (learned, how) in FOUR.items():
        trained.job(f"four: {name}", learned, batch | of_all_tokens(learned) | how)
    for name in TO_FOUR:
        learned, how = TWO[name]
        on = {"resume_from_checkpoint": str(trained.folder / f"two: {name}" / "checkpoint-2")}
        trained.job(f"four, resumed: {name}", learned, batch | of_all_tokens(learned) | how, on)
    trained.together(4)
    return trained


def of_all_tokens(learned: str) -> dict[str, Any]:
    return {} if learned == "pairs" else {"average_tokens_across_devices": True}


BY_SEVERAL = [(f"two: {name}", one) for name, (one, _) in TWO.items()]
BY_SEVERAL += [(f"four: {name}", one) for name, (one, _) in FOUR.items()]


@pytest.mark.parametrize(("name", "one"), BY_SEVERAL)
def test_they_learn_what_one_process_learns_from_the_same_batches(trained: Trained, name: str, one: str) -> None:
    assert sorted(losses(trained.jobs[name])) == [1, 2, 3, 4]
    assert losses(trained.jobs[name]) == pytest.approx(losses(trained.jobs[one]), abs=1e-4)
    evaluated = [{step: each["loss"] for step, each in evaluations(trained.jobs[job]).items()} for job in (name, one)]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-3)

    alone, together = trained.weights(one), trained.weights(name)
    assert alone.keys() == together.keys()
    assert max((alone[key] - together[key]).abs().max().item() for key in alone) < 1e-3


@pytest.mark.parametrize("name", RESUMED)
def test_they_go_on_exactly_where_they_were(trained: Trained, name: str) -> None:
    whole, resumed = trained.weights(f"two: {name}"), trained.weights(f"two, resumed: {name}")

    assert sorted(losses(trained.jobs[f"two, resumed: {name}"])) == [3, 4]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_another_number_of_processes_goes_on_with_weights_and_optimizer(trained: Trained, name: str) -> None:
    whole, resumed = losses(trained.jobs[f"two: {name}"]), losses(trained.jobs[f"four, resumed: {name}"])

    assert resumed == pytest.approx({step: whole[step] for step in (3, 4)}, abs=1e-4)


def test_another_number_of_processes_does_not_go_on_with_what_deepspeed_divided(trained: Trained) -> None:
    result = trained.jobs["four, resumed: zero2"].read_result()

    assert result.error.param == "deepspeed"
    assert "divided checkpoint-2 among 2 processes, not 4" in result.error.message


def test_the_parts_of_a_checkpoint_are_there_once(trained: Trained) -> None:
    for name, part in (("fsdp, offloaded", "sharded"), ("zero3", "global_step4")):
        checkpoint = trained.checkpoint(f"two: {name}")
        assert (checkpoint / part).is_dir()
        assert not (checkpoint / "float32").exists() and not (checkpoint / "optimizer.pt").exists()


def test_tokens_are_counted_once(trained: Trained) -> None:
    alone, together = (trained.jobs[name].read_result() for name in ("packed", "two: sequences"))

    assert together.trained_tokens == alone.trained_tokens
