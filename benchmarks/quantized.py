"""Weights of 8 and 4 bits beside bfloat16 ones, and beside llama.cpp's: `python -m benchmarks.quantized`.

Ours are what `--quant_method torchao` makes: decode steps of 1 and 8 sequences and a prefill of 256 tokens without a
server, and the perplexity of texts that are not of the model's making (`benchmarks.exports`). llama.cpp's speed is
what its server tells of its decoding, of one request and of eight at once. Each runs in a process of its own.

With `--caches`: keys and values of 8 bits (`--kv_cache_dtype`) beside those in bfloat16, after LONG tokens of one text.
"""

import argparse
import json
import math
import resource
import shlex
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.environments import HOME
from benchmarks.exports import TOKENS, texts
from benchmarks.report import RESULTS, hardware, machine, save, say, table
from benchmarks.servers import MOST_AT_ONCE
from benchmarks.steps import CHUNK, LONG, Model, seconds_of
from engines.checkpoint.loading import load_config, load_model, load_tokenizer
from engines.checkpoint.quantization import Quantization
from engines.process.resources import GIB
from engines.pt.layers.eight_bits import KINDS
from engines.pt.runner import Segment
from engines.setup.demo import demo_model
from engines.setup.install import install_llamacpp

OURS = {"bfloat16": None, "8 bits": 8, "4 bits": 4}
LLAMACPP = {"llama.cpp bf16": "bf16", "llama.cpp Q8_0": "q8_0", "llama.cpp Q4_K_M": "q4_k_m"}
CACHES = {"bfloat16 cache": "auto", **{f"{name} cache": name for name in KINDS}}
PROMPT = "The capital of France is"
ANSWER = 12
DECODED = 64
HELD_OUT = 16
"""Texts whose perplexity is measured."""
PREFILL = 256


# ---- ours


def ours(bits: int | None, threads: int) -> dict[str, Any]:
    folder = str(demo_model())
    torch.set_num_threads(threads)
    chosen = None if bits is None else Quantization(method="torchao", bits=bits)
    model = Model(folder, "bfloat16", threads, quantization=chosen)
    tokenizer = load_tokenizer(folder)
    found: dict[str, Any] = {"answer": _answer(model, tokenizer), "perplexity": _perplexity(model, tokenizer)}
    for rows in (1, 8):
        found[f"decode {rows}"] = rows / seconds_of(model.decode(rows)[0])
    found["prefill"] = PREFILL / seconds_of(model.prefill(PREFILL)[0])
    return found


def _blocks(model: Model, tokens: int) -> list[int]:
    return list(range(-(-tokens // model.runner.cache.block_size)))


def _answer(model: Model, tokenizer: Any) -> str:
    ids: list[int] = tokenizer(PROMPT).input_ids
    blocks, start, length = _blocks(model, len(ids) + ANSWER), 0, len(ids)
    for _ in range(ANSWER):
        logits = model.runner.step([Segment(ids[start:], start, blocks, wants=1)]).logits
        start = len(ids)
        ids.append(int(logits[0].argmax()))
    return str(tokenizer.decode(ids[length:]))


def _perplexity(model: Model, tokenizer: Any) -> float:
    """Of each token after the first of each text, as the engine computes it."""
    lost, count = 0.0, 0
    for text in texts()[1][:HELD_OUT]:
        ids = tokenizer(text).input_ids[:TOKENS]
        logits = model.runner.step([Segment(ids, 0, _blocks(model, len(ids)), wants=len(ids))]).logits
        target = torch.tensor(ids[1:])
        lost += torch.nn.functional.cross_entropy(logits[:-1].float(), target, reduction="sum").item()
        count += len(ids) - 1
    return math.exp(lost / count)


def cache(kind: str, threads: int) -> dict[str, Any]:
    folder = str(demo_model())
    torch.set_num_threads(threads)
    model = Model(folder, "bfloat16", threads, kv_cache_dtype=kind)
    tokenizer = load_tokenizer(folder)
    ids: list[int] = tokenizer("\n\n".join(texts()[1])).input_ids[: LONG + 1]
    blocks, lost = _blocks(model, len(ids)), []
    for start in range(0, LONG, CHUNK):
        given = ids[start : min(start + CHUNK, LONG)]
        logits = model.runner.step([Segment(given, start, blocks, wants=len(given))]).logits
        target = torch.tensor(ids[start + 1 : start + 1 + len(given)])
        lost.append(torch.nn.functional.cross_entropy(logits.float(), target, reduction="none"))
    losses = torch.cat(lost)
    each = sum(shape.bytes_per_token for shape in model.runner.cache.layers.values())
    return {
        "perplexity": math.exp(losses.mean().item()),
        "of its second half": math.exp(losses[LONG // 2 :].mean().item()),
        "tokens of a GiB": int(GIB // each),
        "decode": 1000 * seconds_of(model.decode(1, LONG)[0]),
        "attention": model.parts(model.decode(1, LONG)[0])["attention"],
    }


# ---- llama.cpp's


def gguf(kind: str) -> Path:
    """The model in a GGUF file, written where it is not there yet."""
    from training.exports.gguf.model import write_model

    model = demo_model()
    target = HOME / f"{model.name}-{kind}.gguf"
    if not target.exists():
        HOME.mkdir(exist_ok=True)
        loaded = load_model(str(model), config=load_config(str(model)), dtype=torch.bfloat16, device_map="cpu")
        partial = target.with_suffix(".partial")
        write_model(loaded, load_tokenizer(str(model)), model, partial, kind, name=model.name)
        partial.rename(target)
    return target


def llamacpp(kind: str, threads: int) -> dict[str, Any]:
    sys.path.append(str(install_llamacpp().parent))
    import xllamacpp

    ids = load_tokenizer(str(demo_model()))(texts()[1][0]).input_ids[:128]
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf(kind))
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = MOST_AT_ONCE, MOST_AT_ONCE * 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def complete(prompt: Any, tokens: int) -> dict[str, Any]:
        asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(asked).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return dict(json.load(response))

    found: dict[str, Any] = {"answer": complete(PROMPT, ANSWER)["content"]}
    with ThreadPoolExecutor(8) as pool:
        for rows in (1, 8):
            done = list(pool.map(lambda _: complete(ids, DECODED)["timings"], range(rows)))
            if rows == 1:
                found["prefill"] = 1000 * done[0]["prompt_n"] / done[0]["prompt_ms"]
            found[f"decode {rows}"] = rows * DECODED / max(each["predicted_ms"] for each in done) * 1000
    return found


# ---- the report


def run(name: str, threads: int) -> dict[str, Any]:
    """One of them, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.quantized", "--one", name, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{done.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(str(row))
    return row


def one(name: str, threads: int) -> None:
    if name in CACHES:
        row = cache(CACHES[name], threads)
    else:
        row = ours(OURS[name], threads) if name in OURS else llamacpp(LLAMACPP[name], threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({"name": name, **row, "peak_mib": peak}) + "\n")
    sys.stdout.flush()


def as_markdown(document: dict[str, Any]) -> str:
    base = next(row for row in document["rows"] if row["name"] == "bfloat16")
    cells = [["weights", "decode 1, tokens/s", "of bfloat16's", "decode 8", "of bfloat16's", "prefill", "perplexity",
              "peak MiB", f"after '{PROMPT}'"]]  # fmt: skip
    for row in document["rows"]:
        shares = {name: row[name] / base[name] for name in ("decode 1", "decode 8")}
        prefill = "" if row.get("prefill") is None else f"{row['prefill']:.0f}"
        told = "" if row.get("perplexity") is None else f"{row['perplexity']:.2f}"
        speeds = [text for name, share in shares.items() for text in (f"{row[name]:.1f}", f"{share:.2f}")]
        cells.append([row["name"], *speeds, prefill, told, f"{row['peak_mib']:.0f}", repr(row["answer"])])
    how = (
        f"SmolLM2-135M-Instruct, {document['threads']} threads. `{document['command']}`, one run of each. Perplexity of"
        f" {HELD_OUT} docstrings of at most {TOKENS} tokens. The head is bfloat16 in ours, 8 or 6 bits in llama.cpp's."
        " Peak memory is that of the process, loading included. llama.cpp's of eight at once has their prefills in it,"
        " ours has not. How: ../README.md."
    )
    return "\n\n".join((f"# Quantised weights, {document['date']}", hardware(document["machine"]), how, table(cells)))


def caches_as_markdown(document: dict[str, Any]) -> str:
    base = document["rows"][0]
    quality = ["perplexity", "of bfloat16's", "of its second half"]
    cells = [["cache", "tokens of a GiB", *quality, f"decode 1 after {LONG}, ms", "attention, ms"]]
    for row in document["rows"]:
        share = f"{row['perplexity'] / base['perplexity']:.4f}"
        numbers = [f"{row[name]:.3f}" for name in ("perplexity", "of its second half")]
        times = [f"{row[name]:.2f}" for name in ("decode", "attention")]
        cells.append([row["name"], str(row["tokens of a GiB"]), numbers[0], share, numbers[1], *times])
    how = (
        f"SmolLM2-135M-Instruct in bfloat16, {document['threads']} threads. `{document['command']}`, one run of each."
        f" Perplexity of {LONG} tokens of docstrings in one text, {CHUNK} a step. How: ../README.md."
    )
    return "\n\n".join((f"# KV caches, {document['date']}", hardware(document["machine"]), how, table(cells)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantized", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without_llamacpp", action="store_true")
    parser.add_argument("--caches", action="store_true", help="KV caches instead of weights")
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--one", choices=[*OURS, *LLAMACPP, *CACHES], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        one(arguments.one, arguments.threads)
        return
    names = [*CACHES] if arguments.caches else [*OURS, *([] if arguments.without_llamacpp else LLAMACPP)]
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", "benchmarks.quantized", *sys.argv[1:]]),
        "machine": machine(),
        "threads": arguments.threads,
        "versions": {name: version(name) for name in ("torch", "torchao", "transformers")},
        "rows": [run(name, arguments.threads) for name in names],
    }
    text = caches_as_markdown(document) if arguments.caches else as_markdown(document)
    say(text)
    if not arguments.dry:
        save(RESULTS / f"{document['date']}-{'caches' if arguments.caches else 'quantized'}", document, text)


if __name__ == "__main__":
    main()
