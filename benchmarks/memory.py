"""What `--dry_run` says that trainings take of memory, beside what they take: the highest resident size of a training
of two steps (in the second, Adam's averages are there), above that of a process that has imported the same.

    python -m benchmarks.memory [--threads 1] [--only NAME ...]

Prints a table, and keeps it in benchmarks/results/.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.report import RESULTS, hardware, machine, save, say
from engines.setup.demo import demo_model
from training.folder import JobFolder
from training.params.task import TASK

WITHIN = 0.15
"""How far the estimate may be from what was measured."""
COMMON: dict[str, Any] = {
    "max_steps": 2, "split_dataset_ratio": 0, "report_to": ["none"], "truncation_strategy": "right", "logging_steps": 1,
}  # fmt: skip
MANY: dict[str, Any] = {"per_device_train_batch_size": 1, "max_length": 256, "max_steps": 24}
SETUPS: dict[str, dict[str, Any]] = {
    "demo lora": {"per_device_train_batch_size": 2, "max_length": 256},
    "demo lora, all kept": {"per_device_train_batch_size": 1, "max_length": 384, "gradient_checkpointing": False},
    "demo full": {"train_type": "full", "per_device_train_batch_size": 1, "max_length": 256},
    "demo dpo": {"rlhf_type": "dpo", "per_device_train_batch_size": 1, "max_length": 320},
    "wide lora": {"per_device_train_batch_size": 4, "max_length": 128},
    "wide full, all kept": {
        "train_type": "full", "per_device_train_batch_size": 4, "max_length": 128, "gradient_checkpointing": False,
    },
    "demo qlora": {"quant_method": "bnb", "quant_bits": 4, "per_device_train_batch_size": 2, "max_length": 256},
    "demo dora": {"use_dora": True, "per_device_train_batch_size": 2, "max_length": 256},
    "demo orpo": {"rlhf_type": "orpo", "per_device_train_batch_size": 2, "max_length": 256},
    "demo kto": {"rlhf_type": "kto", "per_device_train_batch_size": 4, "max_length": 256},
    "demo packed": {"packing": True, "per_device_train_batch_size": 1, "max_length": 1024},
    "demo lora, many lengths": MANY,
    "demo full, many lengths": {"train_type": "full", **MANY},
    "demo qlora, many lengths": {"quant_method": "bnb", "quant_bits": 4, **MANY},
    "demo dpo, many lengths": {"rlhf_type": "dpo", **MANY},
}  # fmt: skip
VARIED = tuple(name for name in SETUPS if name == "demo packed" or name.endswith("many lengths"))
"""Set-ups whose samples differ in length."""
SIZES = {"wide": (4, 1536, 4096), "tiny": (1, 64, 128)}
"""Random models with the demo model's tokenizer: layers, width, width within."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=list(SETUPS), choices=SETUPS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = {"demo": str(demo_model())} | {name: random_model(root / name, *SIZES[name]) for name in SIZES}
        for name in given.only:
            table = write(measure(root, name, models, given.threads), given)
    say(table)


def random_model(folder: Path, layers: int, width: int, within: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=within,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(root: Path, name: str, models: dict[str, str], threads: int) -> dict[str, Any]:
    params = COMMON | SETUPS[name]
    task = "rlhf" if "rlhf_type" in params else "sft"
    method = params.get("rlhf_type", task)
    params["dataset"] = [data(root, method, params["max_length"], varied=name in VARIED)]
    number = len(list(root.iterdir()))

    def job(what: str, model: str, **changes: Any) -> Path:
        folder = JobFolder(root / f"{number}-{what}")
        folder.path.mkdir()
        folder.write_task(TASK.validate_python({"task": task, "params": params | {"model": model} | changes}))
        return folder.path

    model = models[name.split()[0]]
    dry = job("dry", model, dry_run=True)
    started("training.run", [dry], threads)
    result = JobFolder(dry).read_result()
    assert result is not None and result.memory is not None, result
    warm_up = job("warm-up", models["tiny"], per_device_train_batch_size=2, max_length=64)
    measured = int(started("benchmarks.memory_probe", [job("run", model), warm_up], threads).splitlines()[-1])
    row = {
        "set-up": name,
        "parameters": {key: value for key, value in params.items() if key not in ("dataset", *COMMON)},
        "parts": result.memory.parts,
        "estimate": result.memory.total,
        "measured": measured,
        "ratio": result.memory.total / measured,
    }
    say(json.dumps(row))
    return row


def data(root: Path, method: str, length: int, *, varied: bool = False) -> str:
    """Rows that are cut at `length`; `varied`: that differ in length, and are shorter."""
    file = root / f"{method}-{length}{'-varied' if varied else ''}.jsonl"
    sentence, question = "The quick brown fox jumps over the lazy dog. ", [{"role": "user", "content": "Say it."}]

    def row(number: int) -> dict[str, Any]:
        answer = "word " * (length * (number + 8) // 100) if varied else sentence * (length // 5)
        beside: dict[str, dict[str, Any]] = {
            "dpo": {"rejected_response": answer[4:]},
            "orpo": {"rejected_response": answer[4:]},
            "kto": {"label": number % 2 == 0},
        }
        return {"messages": [*question, {"role": "assistant", "content": answer}]} | beside.get(method, {})

    file.write_text("".join(json.dumps(row(number)) + "\n" for number in range(64)))
    return str(file)


def started(module: str, folders: list[Path], threads: int) -> str:
    """What a process says at its end."""
    command = [sys.executable, "-m", module, *map(str, folders)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def write(measured: dict[str, Any], given: argparse.Namespace) -> str:
    """Beside what was measured today of other set-ups. The table."""
    stem = RESULTS / f"{time.strftime('%Y-%m-%d')}-memory"
    before = json.loads(stem.with_suffix(".json").read_text())["rows"] if stem.with_suffix(".json").exists() else []
    known = {row["set-up"]: row for row in (*before, measured)}
    rows = [known[name] for name in SETUPS if name in known]
    lines = ["| set-up | estimate, MiB | measured, MiB | ratio | of it |", "|---|---|---|---|---|"]
    for row in rows:
        parts = ", ".join(f"{name} {size >> 20}" for name, size in row["parts"].items())
        sizes = f"{row['estimate'] >> 20} | {row['measured'] >> 20} | {row['ratio']:.3f}"
        lines.append(f"| {row['set-up']} | {sizes} | {parts} |")
    furthest = max(abs(row["ratio"] - 1) for row in rows)
    lines.append(f"\nThe estimate is {furthest:.1%} off at most (target: {WITHIN:.0%}).")
    facts = machine()
    document = {
        "date": time.strftime("%Y-%m-%d"), "command": "python -m benchmarks.memory", "machine": facts,
        "threads": given.threads, "rows": rows, "furthest": furthest, "within": WITHIN,
    }  # fmt: skip
    head = [
        f"# Memory of trainings, {document['date']}",
        "",
        f"{hardware(facts)}; {given.threads} threads. What `--dry_run` says, and the highest resident size of",
        "a training of two steps above that of a process that has imported the same; `many lengths`: of 24 steps.",
        "",
    ]
    table = "\n".join(lines)
    save(stem, document, "\n".join([*head, table]) + "\n")
    return table


if __name__ == "__main__":
    main()
