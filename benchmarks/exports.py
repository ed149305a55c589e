"""What quantised exports lose: `python -m benchmarks.exports [--forms NAME ...]`.

Each form of SmolLM2-135M-Instruct that `tuneserve export` makes is written, loaded as our engine loads it, and asked
for the perplexity of texts that calibration has not seen: docstrings of Python's standard library, those of modules
from a to l for calibration, the first of those from m on for the perplexity. What was measured today of other forms is
kept beside: so a part can be measured at a time.
"""

import argparse
import ast
import json
import math
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import RESULTS, hardware, machine, save, say, table
from engines.checkpoint.loading import load_config, load_model, load_tokenizer
from engines.setup.demo import demo_model

SHORTEST = 400
"""Characters of a docstring that is taken."""
HELD_OUT = 48
"""Texts whose perplexity is measured."""
TOKENS = 256
"""Tokens of a text at most, here and there."""
LIMIT = 1.05


@dataclass(frozen=True, slots=True)
class Form:
    name: str
    flags: tuple[str, ...]
    limited: bool = False
    """Whether its perplexity is to be at most LIMIT of the model's."""

    calibrated: bool = False


def _by_data(method: str, bits: int, group: int, *, limited: bool = False) -> Form:
    flags = ("--quant_method", method, "--quant_bits", str(bits), "--group_size", str(group))
    return Form(f"{method}-{bits}-{group}", flags, limited, calibrated=True)


def _by_itself(method: str, bits: int | None = None) -> Form:
    if bits is None:
        return Form(method, ("--quant_method", method))
    return Form(f"{method}-{bits}", ("--quant_method", method, "--quant_bits", str(bits)))


FORMS = (
    _by_data("gptq", 8, 64),
    _by_data("gptq", 4, 64, limited=True),
    _by_data("gptq", 4, 32, limited=True),
    _by_data("awq", 4, 64, limited=True),
    _by_data("awq", 4, 32, limited=True),
    _by_itself("fp8"),
    _by_itself("w8a8"),
    _by_itself("bnb", 4),
    _by_itself("bnb", 8),
    _by_itself("torchao", 4),
    _by_itself("torchao", 8),
)
"""Their names tell method, bits and the size of groups."""
BASE = "as it is"


# ---- the texts


def docstrings() -> Iterator[tuple[str, str]]:
    """Each with the name of its module, in the order of names."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= SHORTEST:
                    yield path.stem.lower(), text


def texts() -> tuple[list[str], list[str]]:
    """For calibration, and for the perplexity."""
    all = [(name.lstrip("_"), text) for name, text in docstrings()]
    return [text for name, text in all if name < "m"], [text for name, text in all if name >= "m"][:HELD_OUT]


# ---- the models


def exported(form: Form, model: str, dataset: Path, samples: int, folder: Path) -> float:
    """Write it to `folder`. Returns the seconds that took."""
    command = [sys.executable, "-c", "from server.commands.cli import main; raise SystemExit(main())", "export"]
    command += ["--model", model, "--output_dir", str(folder), *form.flags]
    if form.calibrated:
        command += ["--dataset", str(dataset), "--quant_n_samples", str(samples), "--max_length", str(TOKENS)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is untyped here
def perplexity(folder: str, tokenizer: Any, held_out: list[str]) -> float:
    """Of each token after the first of each text, in float32."""
    model = load_model(folder, config=load_config(folder), dtype=torch.float32, device_map="cpu")
    lost, count = 0.0, 0
    for text in held_out:
        ids = torch.tensor([tokenizer(text)["input_ids"][:TOKENS]])
        lost += torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return math.exp(lost / count)


def size_of(folder: Path) -> float:
    """MiB of weights on the disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20


def measured(args: argparse.Namespace, known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by their forms' names, those of `known` too."""
    model, (calibration, held_out) = demo_model(), texts()
    tokenizer, rows = load_tokenizer(str(model)), dict(known)
    if BASE not in rows:
        rows[BASE] = {"form": BASE, "perplexity": perplexity(str(model), tokenizer, held_out), "mib": size_of(model)}
    with tempfile.TemporaryDirectory() as temporary:
        dataset = Path(temporary) / "texts.jsonl"
        dataset.write_text("".join(json.dumps({"text": text}) + "\n" for text in calibration))
        for form in (each for each in FORMS if each.name in args.forms):
            folder = Path(temporary) / form.name
            seconds = exported(form, str(model), dataset, args.samples, folder)
            row = {"form": form.name, "perplexity": perplexity(str(folder), tokenizer, held_out)}
            row |= {"mib": size_of(folder), "seconds": seconds, "limited": form.limited}
            if form.calibrated:
                row["samples"] = min(args.samples, len(calibration))
            rows[form.name] = row
            say(json.dumps(row))
            write(rows)
    return rows


# ---- the report


def as_markdown(document: dict[str, Any]) -> str:
    rows = document["rows"]
    cells = [["form", "perplexity", "of the model's", f"at most {LIMIT}", "MiB", "seconds to export", "samples"]]
    for row in rows:
        share = row["perplexity"] / rows[0]["perplexity"]
        told = "" if not row.get("limited") else "reached" if share <= LIMIT else "MISSED"
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        numbers = [f"{row['perplexity']:.3f}", f"{share:.3f}", told, f"{row['mib']:.0f}", seconds]
        cells.append([row["form"], *numbers, str(row.get("samples", ""))])
    how = (
        f"SmolLM2-135M-Instruct. `{document['command']}`. Perplexity in float32 of the weights as they are read, on"
        f" {HELD_OUT} docstrings of at most {TOKENS} tokens; samples are others, of as many tokens at most. Names tell"
        " method, bits and the size of groups; seconds include the start of the command. How: ../README.md."
    )
    return "\n\n".join((f"# Exports, {document['date']}", hardware(document["machine"]), how, table(cells)))


def stem() -> Path:
    return RESULTS / f"{time.strftime('%Y-%m-%d')}-exports"


def measured_before() -> dict[str, dict[str, Any]]:
    """Today, on a machine like this one."""
    file = stem().with_suffix(".json")
    document: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {"machine": None}
    return {row["form"]: row for row in document["rows"]} if document["machine"] == machine() else {}


def write(rows: dict[str, dict[str, Any]]) -> str:
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.exports",
        "machine": machine(),
        "rows": [rows[name] for name in (BASE, *(form.name for form in FORMS)) if name in rows],
    }
    text = as_markdown(document)
    save(stem(), document, text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    names = [form.name for form in FORMS]
    parser.add_argument("--samples", type=int, default=128, help="texts of calibration (%(default)s)")
    parser.add_argument("--forms", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    say(write(measured(parser.parse_args(), measured_before())))


if __name__ == "__main__":
    main()
