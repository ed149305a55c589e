"""What memory our engine takes while it loads a model, by how the weights are kept: `python -m benchmarks.loading`.

The model is a Llama with random weights, large enough that little else counts. Each form of it is loaded, packed and
checked by the pt engine in a process of its own, which tells the most that it had, above what it has with all that it
imports: of its own memory (RssAnon), and with the pages of files that lie in memory beside (VmHWM), which the system
takes back where it needs them.
"""

import argparse
import gc
import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import RESULTS, hardware, machine, save, say, table
from engines.checkpoint.loading import load_config, load_model, load_tokenizer
from engines.checkpoint.quantization import Quantization
from engines.setup.demo import demo_model

SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LOOK_SECONDS = 0.003
MIB = 1 << 20


# ---- the forms


def write_plain(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(str(demo_model()))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**SIZES, **ends, vocab_size=len(tokenizer), tie_word_embeddings=True, dtype="bfloat16")
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_gguf(kind: str) -> Callable[[Path, Path], None]:
    def write(plain: Path, target: Path) -> None:
        from training.exports.gguf.model import write_model

        model = load_model(str(plain), config=load_config(str(plain)), dtype=torch.bfloat16, device_map="cpu")
        write_model(model, load_tokenizer(str(plain)), plain, target, kind, name="random")

    return write


def write_w8a8(plain: Path, target: Path) -> None:
    command = [sys.executable, "-c", "from server.commands.cli import main; raise SystemExit(main())", "export"]
    command += ["--model", str(plain), "--output_dir", str(target), "--quant_method", "w8a8"]
    subprocess.run(command, check=True, capture_output=True)


FORMS: dict[str, tuple[str, Callable[[Path, Path], None] | None, int | None]] = {
    "bfloat16": ("plain", None, None),
    "torchao, 8 bits": ("plain", None, 8),
    "torchao, 4 bits": ("plain", None, 4),
    "compressed-tensors, 8 bits": ("w8a8", write_w8a8, None),
    "GGUF, Q8_0": ("q8_0.gguf", write_gguf("q8_0"), None),
    "GGUF, Q4_0": ("q4_0.gguf", write_gguf("q4_0"), None),
}
"""The name of the folder or file, what writes it, and the bits that `--quant_method torchao` makes of it."""


# ---- one of them


def loaded(model: str, bits: int | None) -> dict[str, Any]:
    from engines.pt.config import PtConfig
    from engines.pt.layers.heap import large_tensors_apart
    from engines.pt.runner import ModelRunner

    warm = ModelRunner(PtConfig(model=str(demo_model()), dtype="bfloat16", quantization=_torchao(bits)))
    del warm
    gc.collect()
    with large_tensors_apart():
        pass  # what the heap has kept of it
    FORGET.write_text("5")  # the highest so far
    before, most, done = _status(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            most[0] = max(most[0], _status()["RssAnon"])

    watching = threading.Thread(target=watch)
    watching.start()
    runner = ModelRunner(PtConfig(model=model, dtype="bfloat16", quantization=_torchao(bits), kv_cache_memory=0.01))
    done.set()
    watching.join()
    gc.collect()  # as the engine's process does then
    after = _status()
    return {
        "weights": _bytes_of(runner.model),
        "most": max(most[0], after["RssAnon"]) - before["RssAnon"],
        "most with files": after["VmHWM"] - before["VmRSS"],
        "then": after["VmRSS"] - before["VmRSS"],
    }


def _torchao(bits: int | None) -> Quantization | None:
    return None if bits is None else Quantization(method="torchao", bits=bits)


def _bytes_of(model: Any) -> int:
    packed = sum(layer._packed.nbytes for layer in model.modules() if hasattr(layer, "_packed"))
    return int(packed + sum(each.nbytes for each in (*model.parameters(), *model.buffers())))


def _status() -> dict[str, int]:
    """Bytes."""
    lines = (line.split() for line in STATUS.read_text().splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(number) << 10 for name, number, _ in lines}


# ---- the report


def run(name: str, folder: Path) -> dict[str, Any]:
    """One form, in a process of its own, written first where it is not there yet."""
    called, write, bits = FORMS[name]
    if write is not None and not (folder / called).exists():
        write(folder / "plain", folder / called)
    command = [sys.executable, "-m", "benchmarks.loading", "--one", str(folder / called), "--bits", str(bits or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{done.stderr[-2000:]}")
    row = {"name": name, **json.loads(done.stdout.splitlines()[-1])}
    say(str(row))
    return row


def as_markdown(document: dict[str, Any]) -> str:
    cells = [["weights", "packed, MiB", "most while loading", "of the packed", "most with files", "then"]]
    for row in document["rows"]:
        sizes = [f"{row[part] / MIB:.0f}" for part in ("weights", "most", "most with files", "then")]
        cells.append([row["name"], *sizes[:2], f"{row['most'] / row['weights']:.2f}", *sizes[2:]])
    how = (
        f"A Llama of {document['numbers'] / 1e6:.0f}M random weights in bfloat16. `{document['command']}`. MiB above"
        " what the process has after it has loaded another model in the same way. With files: pages of the checkpoint"
        " that lie in memory count too. How: ../README.md."
    )
    return "\n\n".join((f"# Loading, {document['date']}", hardware(document["machine"]), how, table(cells)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[*FORMS], metavar="NAME", help="; ".join(FORMS))
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--bits", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        sys.stdout.write(json.dumps(loaded(arguments.one, arguments.bits or None)) + "\n")
        return
    with tempfile.TemporaryDirectory() as made:
        write_plain(Path(made) / "plain")
        numbers = (Path(made) / "plain" / "model.safetensors").stat().st_size / 2
        rows = [run(name, Path(made)) for name in arguments.forms]
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", "benchmarks.loading", *sys.argv[1:]]),
        "machine": machine(),
        "numbers": numbers,
        "rows": rows,
    }
    text = as_markdown(document)
    say(text)
    if not arguments.dry:
        save(RESULTS / f"{document['date']}-loading", document, text)


if __name__ == "__main__":
    main()
