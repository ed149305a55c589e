"""The trainers that are compared: how each is told what to train, and where it says how long that took."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.environments import LLAMA_FACTORY_REQUIREMENTS, Environment, LlamaFactory, NotRun
from benchmarks.servers import SWIFT, TUNESERVE
from training.folder import JobFolder

SAMPLE_TOKENS = 256
OURS = "tuneserve"
LLAMAFACTORY = LlamaFactory("llamafactory", LLAMA_FACTORY_REQUIREMENTS)


@dataclass(frozen=True, slots=True)
class Training:
    """What all trainers are told."""

    model: str
    dtype: str
    steps: int
    batch_size: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    full: bool = False
    """Train all weights, in place of an adapter."""
    rank: int = 8
    alpha: int = 32
    dropout: float = 0.0
    dora: bool = False
    nf4: bool = False
    """The base model in bitsandbytes' 4 bits, with double quantisation."""
    packing: bool = False
    """Rows of `max_length` tokens, each of several samples that do not see one another."""
    max_length: int = 2 * SAMPLE_TOKENS
    gradient_checkpointing: bool = True
    logging_steps: int = 5
    seed: int = 42
    cpu: bool = not torch.cuda.is_available()

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size * (self.max_length // SAMPLE_TOKENS if self.packing else 1)

    @property
    def tokens(self) -> int:
        return self.samples * SAMPLE_TOKENS


@dataclass(frozen=True, slots=True)
class Trainer:
    name: str
    title: str
    command: Callable[[Training, Path], list[str]]
    """Given what to train and a folder of its own, in which `data/` lies."""
    runtime: Callable[[Path], float]
    """Seconds of the training itself, as transformers' trainer counts them in all of them."""


def tuneserve(training: Training, folder: Path) -> list[str]:
    return our_command("sft", training, folder, folder / "data" / "messages.jsonl")


def our_command(name: str, training: Training, folder: Path, data: Path, *more: str) -> list[str]:
    """Our command of that name, on `data`. `more`: what it is told besides."""
    t = training
    words: list[object] = [
        *("--model", t.model, "--dataset", data, "--output_dir", folder / "out"),
        *("--add_version", "false", "--torch_dtype", t.dtype, "--max_length", t.max_length, "--max_steps", t.steps),
        *("--per_device_train_batch_size", t.batch_size, "--learning_rate", t.learning_rate),
        *("--weight_decay", t.weight_decay, "--gradient_checkpointing", t.gradient_checkpointing),
        *("--logging_steps", t.logging_steps, "--seed", t.seed, "--split_dataset_ratio", "0"),
        *("--packing", t.packing, "--save_strategy", "no"),  # a checkpoint is written once the time is taken
        *more,
    ]
    if t.full:
        words += ["--train_type", "full"]
    else:
        words += ["--lora_rank", t.rank, "--lora_alpha", t.alpha, "--lora_dropout", t.dropout, "--use_dora", t.dora]
    if t.nf4:
        words += ["--quant_method", "bnb", "--quant_bits", 4, "--bnb_4bit_compute_dtype", t.dtype]
    return [sys.executable, "-c", TUNESERVE, name, *map(str, words)]


def tuneserve_runtime(folder: Path) -> float:
    result = JobFolder(folder / "out").read_result()
    if result is None or result.status != "succeeded":
        raise NotRun(f"it did not succeed: {result.error if result else 'see its log under .bench/'}")
    return result.metrics["train_runtime"]


def trl(training: Training, folder: Path) -> list[str]:
    settings = asdict(training) | {"dataset": str(folder / "data" / "pairs.jsonl"), "output_dir": str(folder / "out")}
    (folder / "settings.json").write_text(json.dumps(settings))
    return [sys.executable, "-m", "benchmarks.trl_sft", str(folder / "settings.json")]


def llamafactory(training: Training, folder: Path) -> list[str]:
    t = training
    tags = {"role_tag": "role", "content_tag": "content", "system_tag": "system"}
    tags |= {"user_tag": "user", "assistant_tag": "assistant"}
    data = {"file_name": "messages.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"bench": data}))
    settings = {
        "model_name_or_path": t.model,
        "stage": "sft",
        "do_train": True,
        "output_dir": str(folder / "out"),
        "dataset": "bench",
        "dataset_dir": str(folder / "data"),
        "template": "qwen",
        "cutoff_len": t.max_length,
        "finetuning_type": "full" if t.full else "lora",
        "packing": t.packing,
        "neat_packing": t.packing,
        "per_device_train_batch_size": t.batch_size,
        "max_steps": t.steps,
        "learning_rate": t.learning_rate,
        "weight_decay": t.weight_decay,
        "lr_scheduler_type": "cosine",
        "disable_gradient_checkpointing": not t.gradient_checkpointing,
        "logging_steps": t.logging_steps,
        "bf16": t.dtype == "bfloat16",
        "use_cpu": t.cpu,
        "save_strategy": "no",
        "seed": t.seed,
        "report_to": "tensorboard",
    }
    if not t.full:
        settings |= {"lora_rank": t.rank, "lora_alpha": t.alpha, "lora_dropout": t.dropout, "lora_target": "all"}
        settings |= {"use_dora": t.dora}
    if t.nf4:
        settings |= {"quantization_method": "bnb", "quantization_bit": 4, "double_quantization": True}
    (folder / "settings.json").write_text(json.dumps(settings))  # JSON is YAML too, and it asks for that ending
    (folder / "settings.json").rename(folder / "settings.yaml")
    return [LLAMAFACTORY.program("llamafactory-cli"), "train", str(folder / "settings.yaml")]


def swift(training: Training, folder: Path) -> list[str]:
    t = training
    words: list[object] = [
        *("--model", t.model, "--model_type", "llama", "--template", "chatml", "--use_hf", "true"),
        *("--dataset", folder / "data" / "messages.jsonl", "--output_dir", folder / "out", "--add_version", "false"),
        *("--torch_dtype", t.dtype, "--max_length", t.max_length, "--max_steps", t.steps),
        *("--per_device_train_batch_size", t.batch_size, "--learning_rate", t.learning_rate),
        *("--weight_decay", t.weight_decay, "--gradient_checkpointing", str(t.gradient_checkpointing).lower()),
        *("--logging_steps", t.logging_steps, "--seed", t.seed, "--split_dataset_ratio", "0"),
        *("--packing", str(t.packing).lower(), "--save_strategy", "no", "--report_to", "tensorboard"),
        *("--use_cpu", str(t.cpu).lower(), "--dataloader_num_workers", 0, "--tuner_type", "full" if t.full else "lora"),
    ]
    if not t.full:
        words += ["--lora_rank", t.rank, "--lora_alpha", t.alpha, "--lora_dropout", t.dropout]
        words += ["--target_modules", "all-linear", "--use_dora", str(t.dora).lower()]
    if t.nf4:
        words += ["--quant_method", "bnb", "--quant_bits", 4, "--bnb_4bit_compute_dtype", t.dtype]
    return [SWIFT.program("swift"), "sft", *map(str, words)]


def swift_runtime(folder: Path) -> float:
    """Its last line of the log has what transformers' trainer counted."""
    file = folder / "out" / "logging.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = [float(line["train_runtime"]) for line in lines if "train_runtime" in line]
    if not found:
        raise NotRun("it made no result: see its log under .bench/")
    return found[-1]


def train_runtime(name: str) -> Callable[[Path], float]:
    def read(folder: Path) -> float:
        file = folder / "out" / name
        if not file.exists():
            raise NotRun("it made no result: see its log under .bench/")
        return float(json.loads(file.read_text())["train_runtime"])

    return read


TRAINERS = (
    Trainer(OURS, "tuneserve sft", tuneserve, tuneserve_runtime),
    Trainer("trl", "TRL's SFTTrainer, bare", trl, train_runtime("train_runtime.json")),
    Trainer("llamafactory", "llamafactory-cli train", llamafactory, train_runtime("train_results.json")),
    Trainer("swift", "swift sft", swift, swift_runtime),
)
ENVIRONMENTS: dict[str, Environment] = {"llamafactory": LLAMAFACTORY, "swift": SWIFT}
