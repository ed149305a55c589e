"""Processes that divide a training among them, on CPUs by gloo: they learn what one learns from the same batches, leave
checkpoints that load alone, and go on where they were.

They are started together, one of them, two and then four, and train one thing after another.
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

from engines.errors import InvalidRequest
from tests.training.jobs import ROOT, evaluations, losses, make_job
from training.folder import JobFolder
from training.pipelines.beginning import with_beginning
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
LAYERS = {"tensor_model_parallel_size": 2}
ZERO3 = {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}
TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("lora", {}),
    "zero1": ("lora", {"deepspeed": "zero1"}),
    "zero2": ("full", {"deepspeed": "zero2_offload"}),
    "zero3": ("full", {"deepspeed": "zero3_offload"}),
    "zero3, pairs": ("pairs", {"deepspeed": ZERO3}),
    "fsdp": ("lora", {"fsdp": "full_shard"}),
    "fsdp, offloaded": ("full", {"fsdp": "shard_grad_op offload"}),
    "sequences": ("packed", SEQUENCES),
    "layers": ("full", LAYERS),
    "layers, lora": ("packed", LAYERS),
}
"""Name of a training by two processes -> what is learned, and how they divide it."""
RESUMED = ("zero2", "zero3", "fsdp", "layers", "layers, lora")
"""Those that go on from their second step."""
FOUR: dict[str, tuple[str, dict[str, Any]]] = {
    "sequences and fsdp": ("full", {**SEQUENCES, "fsdp": "full_shard"}),
    "layers": ("full", LAYERS),
}
ONE = ("zero1", "zero2", "zero3", "layers")
"""Trainings of two that one process begins, for two to go on with."""
CHANGED = {
    "two to four": ("ddp", "fsdp", "zero1", "zero2", "zero3", "layers"),
    "two to one": ("zero1", "zero2", "zero3", "layers", "layers, lora"),
    "one to two": ONE,
    "four to two": ("layers",),
}
"""Those that another number of processes goes on with from the second step."""
NUMBERS = {"one": 1, "two": 2, "four": 4}


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

    def start(self, *groups: tuple[str, list[str]]) -> "subprocess.Popen[str]":
        """Have processes train; each group: how many, and the names of what they train one after the other."""
        words = []
        for number, names in groups:
            words += ["--", str(NUMBERS[number]), *(str(self.jobs[name].path) for name in names)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.training.parallel.many", *words[1:]],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

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

    ones = [add(trained, "one", name, *TWO[name]) for name in ONE]
    twos = [add(trained, "two", name, *how) for name, how in TWO.items()]
    twos += [add(trained, "two", name, *TWO[name], resumed="two") for name in RESUMED]
    twos += [add(trained, "two", name, *TWO[name], resumed="one") for name in CHANGED["one to two"]]
    fours = [add(trained, "four", name, *how) for name, how in FOUR.items()]
    fours += [add(trained, "four", name, *TWO[name], resumed="two") for name in CHANGED["two to four"]]
    again = [add(trained, "one", name, *TWO[name], resumed="two") for name in CHANGED["two to one"]]
    fewer = [add(trained, "two", name, *FOUR[name], resumed="four") for name in CHANGED["four to two"]]
    process = trained.start(("one", ones), ("two", twos), ("four", fours), ("one", again), ("two", fewer))
    try:
        for learned in LEARNED:  # meanwhile
            job = trained.job(learned, learned, {"per_device_train_batch_size": 4})
            job.write_result(run(job, Report(job)))
        _, told = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, told[-4000:]
    return trained


def add(trained: Trained, by: str, name: str, learned: str, how: Mapping[str, Any], resumed: str = "") -> str:
    """Name of the job by which `by` processes train, or go on with what `resumed` processes began."""
    how = {**how, "tensor_model_parallel_size": min(how.get("tensor_model_parallel_size", 1), NUMBERS[by])}
    alike = how["tensor_model_parallel_size"] * how.get("sequence_parallel_size", 1)  # processes with the same batch
    batch = {"ddp_backend": "gloo", "per_device_train_batch_size": 4 * alike // NUMBERS[by]}
    before = trained.folder / f"{resumed}: {name}" / "checkpoint-2"
    on = {"resume_from_checkpoint": str(before)} if resumed else {}
    called = f"{by}, of {resumed}: {name}" if resumed else f"{by}: {name}"
    trained.job(called, learned, batch, of_all_tokens(learned), how, on)
    return called


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
    whole, resumed = trained.weights(f"two: {name}"), trained.weights(f"two, of two: {name}")

    assert sorted(losses(trained.jobs[f"two, of two: {name}"])) == [3, 4]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize(("change", "name"), [(change, name) for change, names in CHANGED.items() for name in names])
def test_another_number_of_processes_goes_on_with_weights_and_optimizer(
    trained: Trained, change: str, name: str
) -> None:
    began, goes_on = change.split(" to ")
    whole, resumed = f"{began}: {name}", f"{goes_on}, of {began}: {name}"
    assert losses(trained.jobs[resumed]) == pytest.approx(
        {step: losses(trained.jobs[whole])[step] for step in (3, 4)}, abs=1e-4
    )

    apart, together = trained.weights(whole), trained.weights(resumed)
    assert max((apart[key] - together[key]).abs().max().item() for key in apart) < 1e-3


def test_another_number_of_processes_needs_to_know_whose_numbers_are_where(trained: Trained) -> None:
    unknown = {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}
    on = {"deepspeed": unknown, "resume_from_checkpoint": str(trained.checkpoint("two: zero2", 2))}
    params = trained.job("refused", "full", on).read_task().params

    with pytest.raises(InvalidRequest, match="another number of processes, which cannot go on with round_robin"):
        with_beginning(params)  # type: ignore[type-var]  # those of a training


def test_the_parts_of_a_checkpoint_are_there_once(trained: Trained) -> None:
    for name, part in (("fsdp, offloaded", "sharded"), ("zero3", "global_step4")):
        checkpoint = trained.checkpoint(f"two: {name}")
        assert (checkpoint / part).is_dir()
        assert not (checkpoint / "float32").exists() and not (checkpoint / "optimizer.pt").exists()


def test_tokens_are_counted_once(trained: Trained) -> None:
    alone, *together = (trained.jobs[name].read_result() for name in ("packed", "two: sequences", "two: layers, lora"))

    assert [each.trained_tokens for each in together] == [alone.trained_tokens] * 2
