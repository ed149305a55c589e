"""What quantised exports lose: `python -m benchmarks.exports`.

Each form of SmolLM2-135M-Instruct that `tuneserve export` makes is written, loaded as our engine loads it, and asked
for the perplexity of texts that calibration has not seen: docstrings of Python's standard library, those of modules
from a to l for calibration, the first of those from m on for the perplexity.
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


def _by_data(method: str, bits: int, group: int, *, limited: bool = False) -> Form:
    flags = ("--quant_method", method, "--quant_bits", str(bits), "--group_size", str(group))
    return Form(f"{method}, {bits} bits, groups of {group}", flags, limited)


FORMS = (
    _by_data("gptq", 8, 64),
    _by_data("gptq", 4, 64, limited=True),
    _by_data("gptq", 4, 32, limited=True),
    _by_data("awq", 4, 64, limited=True),
    _by_data("awq", 4, 32, limited=True),
    Form("fp8", ("--quant_method", "fp8")),
    Form("w8a8", ("--quant_method", "w8a8")),
)


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
    if form.flags[1] in ("gptq", "awq"):
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


def measured(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, int]]:
    model = demo_model()
    calibration, held_out = texts()
    tokenizer = load_tokenizer(str(model))
    with tempfile.TemporaryDirectory() as temporary:
        dataset = Path(temporary) / "texts.jsonl"
        dataset.write_text("".join(json.dumps({"text": text}) + "\n" for text in calibration))
        base = perplexity(str(model), tokenizer, held_out)
        found = [{"form": "as it is", "perplexity": base, "mib": size_of(model), "seconds": None, "limited": False}]
        say(f"as it is: {base:.3f}")
        for form in (each for each in FORMS if not args.forms or each.name in args.forms):
            folder = Path(temporary) / form.name.replace(" ", "-")
            seconds = exported(form, str(model), dataset, args.samples, folder)
            value = perplexity(str(folder), tokenizer, held_out)
            say(f"{form.name}: {value:.3f} ({value / base:.3f})")
            row = {"form": form.name, "perplexity": value, "mib": size_of(folder), "seconds": seconds}
            found.append({**row, "limited": form.limited})
    counts = {"calibration": min(args.samples, len(calibration)), "held_out": len(held_out)}
    return found, counts


# ---- the report


def as_markdown(document: dict[str, Any]) -> str:
    base = document["rows"][0]["perplexity"]
    cells = [["form", "perplexity", "of the model's", f"at most {LIMIT}", "MiB", "seconds to export"]]
    for row in document["rows"]:
        share = row["perplexity"] / base
        told = "" if not row["limited"] else "reached" if share <= LIMIT else "MISSED"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        cells.append([row["form"], f"{row['perplexity']:.3f}", f"{share:.3f}", told, f"{row['mib']:.0f}", seconds])
    counts = document["counts"]
    how = (
        f"SmolLM2-135M-Instruct. `{document['command']}`. Perplexity in float32 of the weights as they are read, on"
        f" {counts['held_out']} docstrings of at most {TOKENS} tokens; gptq and awq were calibrated on"
        f" {counts['calibration']} others. How: ../README.md."
    )
    return "\n\n".join(
        (
            f"# Exports, {document['date']}",
            hardware(document["machine"]),
            how,
            table(cells),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    parser.add_argument("--samples", type=int, default=128, help="texts of calibration (%(default)s)")
    parser.add_argument("--forms", nargs="+", choices=[form.name for form in FORMS], help="only these")
    args = parser.parse_args()
    rows, counts = measured(args)
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", "benchmarks.exports", *sys.argv[1:]]),
        "machine": machine(),
        "counts": counts,
        "rows": rows,
    }
    text = as_markdown(document)
    save(RESULTS / f"{document['date']}-exports", document, text)
    say(text)


if __name__ == "__main__":
    main()
