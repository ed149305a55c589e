"""What a step of our engine takes, without a server, and what the machine would need at least: `python -m
benchmarks.steps`.

Decode steps of 1, 8 and 32 sequences with CONTEXT tokens each, and of one with LONG; prefills of 128, 2048 and LONG
tokens; with `--parts`, what each part of them takes. The least is the time to read the weights and the cache once from
memory, or to multiply, whichever is longer, at the rates that this machine is measured to read and to multiply at, with
as many threads. With `--beside`, instead, what busy loops, one for each core, leave of the speed of decodes of 8 and a
prefill of CHUNK tokens: half of it would be their share.
"""

import argparse
import ctypes
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.beside import shares
from benchmarks.report import RESULTS, hardware, machine, save, say, table
from engines.process.resources import thread_environment
from engines.pt.config import PtConfig
from engines.pt.decoder import PARTS
from engines.pt.kernels import build
from engines.pt.layers.pages import Pages
from engines.pt.runner import ModelRunner, Segment
from engines.setup.demo import demo_model

CONTEXT = 128
DECODES = (1, 8, 32)
LONG = 8064
PREFILLS = (128, 2048, LONG)
CHUNK = 256
"""Tokens of a prefill that one step takes, as the engine's default has it."""
SECONDS = 4.0
"""Time that is given to each measurement."""


def seconds_of(step: Callable[[], object], least: int = 5) -> float:
    """The median of as many runs as the time allows, after one to warm up."""
    step()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < least or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fastest(step: Callable[[], object]) -> float:
    """The shortest of as many runs as the time allows."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


# ---- the machine


READ = 1 << 28
"""Bytes: about what the demo model has."""
MULTIPLIED = 1 << 20


def read_rate(library: ctypes.CDLL) -> float:
    """Bytes of memory that are read in a second, from large pages as weights lie in."""
    values = Pages().zeros([READ], torch.uint8).fill_(1)
    return READ / fastest(lambda: library.read_memory(values.data_ptr(), READ))


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations of a large product of matrices in a second, by torch."""
    size = 2048
    x, y = torch.randn(2, size, size, dtype=dtype)
    return 2 * size**3 / fastest(lambda: x @ y)


def tile_rate(library: ctypes.CDLL) -> float:
    """Those of products of AMX's tiles alone, with nothing loaded; 0: there are none."""
    return float(library.multiply_tiles(MULTIPLIED)) / fastest(lambda: library.multiply_tiles(MULTIPLIED))


# ---- the model


@dataclass(frozen=True, slots=True)
class Work:
    """What a step cannot do without."""

    bytes: float
    operations: float


class Model:
    def __init__(self, folder: str, dtype: str, threads: int, **more: Any) -> None:
        settings: dict[str, Any] = {"model": folder, "dtype": dtype, "threads": threads, **more}
        self.runner = ModelRunner(PtConfig(**settings))
        config = self.runner.model.config
        self._size = self.runner.cache.block_size
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
        layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
        self._layers = config.num_hidden_layers * layer
        self._head = config.hidden_size * config.vocab_size
        self._keys, self._queries = config.num_hidden_layers * keys, config.num_hidden_layers * queries
        self._width = 2 if self.runner.dtype is torch.bfloat16 else 4

    def decode(self, rows: int, context: int = CONTEXT) -> tuple[Callable[[], object], Work]:
        blocks = -(-(context + 1) // self._size)
        segments = [
            Segment([100 + i], context, list(range(i * blocks, (i + 1) * blocks)), wants=1) for i in range(rows)
        ]
        return lambda: self.runner.step(segments), self._work(rows, rows, rows * context, rows * context)

    def prefill(self, tokens: int) -> tuple[Callable[[], object], Work]:
        blocks = list(range(-(-tokens // self._size)))
        spans = [(start, min(start + CHUNK, tokens)) for start in range(0, tokens, CHUNK)]

        def run() -> None:
            for start, end in spans:
                self.runner.step([Segment(list(range(start, end)), start, blocks, wants=int(end == tokens))])

        steps = [self._work(end - start, end == tokens, end, (end - start) * (start + end) / 2) for start, end in spans]
        return run, Work(sum(s.bytes for s in steps), sum(s.operations for s in steps))

    def parts(self, step: Callable[[], object]) -> dict[str, float]:
        """Milliseconds of each part of a step, a median; empty where transformers' modules compute it."""
        decoder = self.runner._decoder
        if decoder is None:
            return {}
        runs = []
        for _ in range(5):
            before = list(decoder.nanoseconds)
            step()
            runs.append([(after - was) / 1e6 for was, after in zip(before, decoder.nanoseconds, strict=True)])
        return dict(zip(PARTS, map(statistics.median, zip(*runs, strict=True)), strict=True))

    def _work(self, rows: int, wanted: int, read: float, seen: float) -> Work:
        """`read`: tokens whose keys and values are read; `seen`: the same for each row, all added up."""
        weights = self._layers + (self._head if wanted else 0)
        products = 2.0 * (rows * self._layers + wanted * self._head) + 4.0 * seen * self._queries
        return Work(2.0 * weights + 2.0 * self._width * read * self._keys, products)


def measure(folder: str, dtype: str, threads: int, *, parts: bool = False) -> dict[str, Any]:
    torch.set_num_threads(threads)
    model = Model(folder, dtype, threads)
    library = build.load()
    if library is None:
        raise SystemExit("there is no C compiler, and so no kernels to measure")
    narrow = model.runner.dtype is torch.bfloat16
    rates = {
        "read": read_rate(library),
        "product": product_rate(model.runner.dtype),
        "tiles": tile_rate(library) if narrow else 0.0,
    }
    say(said(rates))
    steps = {f"decode {rows}": model.decode(rows) for rows in DECODES}
    steps[f"decode 1 after {LONG}"] = model.decode(1, LONG)
    steps |= {f"prefill {tokens}": model.prefill(tokens) for tokens in PREFILLS}
    rows = []
    for name, (step, work) in steps.items():
        least = max(work.bytes / rates["read"], work.operations / max(rates["product"], rates["tiles"]))
        took = seconds_of(step)
        rows.append({"step": name, "ms": 1000 * took, "least_ms": 1000 * least, "share": least / took})
        if parts:
            rows[-1]["parts"] = model.parts(step)
        say(f"{name}: {1000 * took:.2f} ms, {least / took:.0%} of what the machine could do")
    return {"rates": rates, "rows": rows}


def measure_beside(folder: str, dtype: str, threads: int) -> dict[str, Any]:
    """By the decoder, and by transformers' modules on torch's threads, which wait as in the engine's process."""
    torch.set_num_threads(threads)
    rows = []
    for name, more in (("decoder", {}), ("modules", {"attn_impl": "sdpa"})):
        model = Model(folder, dtype, threads, **more)
        for what, (step, _) in {"decode 8": model.decode(8), f"prefill {CHUNK}": model.prefill(CHUNK)}.items():
            quiet, beside = shares(step)
            rows.append({"step": f"{what}, {name}", "ms": 1000 * quiet, "beside_ms": 1000 * beside})
            say(f"{what}, {name}: {1000 * quiet:.2f} ms, {1000 * beside:.2f} beside the loops")
    return {"rows": rows}


# ---- what is told


def beside_table(rows: list[dict[str, Any]]) -> str:
    cells = [["step", "quiet, ms", "beside, ms", "of the quiet speed"]]
    for row in rows:
        cells.append(
            [row["step"], f"{row['ms']:.2f}", f"{row['beside_ms']:.2f}", f"{row['ms'] / row['beside_ms']:.2f}"]
        )
    return table(cells)


def said(rates: dict[str, float]) -> str:
    tiles = f", {rates['tiles'] / 1e9:.0f} by AMX's tiles alone" if rates["tiles"] else ""
    return f"reads {rates['read'] / 1e9:.1f} GB/s and multiplies {rates['product'] / 1e9:.0f} GF/s by torch{tiles}"


def as_table(rows: list[dict[str, Any]]) -> str:
    parts = list(rows[0].get("parts", ()))
    cells = [["step", "ms", "at least", "share", *parts]]
    for row in rows:
        cell = [row["step"], f"{row['ms']:.2f}", f"{row['least_ms']:.2f}", f"{row['share']:.0%}"]
        cells.append(cell + [f"{row['parts'][part]:.2f}" for part in parts])
    return table(cells)


def write(found: dict[str, Any], folder: str, dtype: str, threads: int, seconds: float) -> None:
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.steps {shlex.join(sys.argv[1:])}".strip(),
        "duration_seconds": seconds,
        "machine": machine(),
        "model": Path(folder).name,
        "dtype": dtype,
        "threads": threads,
        "context": CONTEXT,
        "chunk": CHUNK,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        **found,
    }
    rates = found.get("rates")
    if rates is None:
        name, title, rows = "beside", "Steps beside other load", beside_table(found["rows"])
        what = "Beside: a busy loop for each core, in turns with quiet."
    else:
        name, title, rows = "steps", "Steps", as_table(found["rows"])
        what = f"The machine {said(rates)}."
    save(
        RESULTS / f"{document['date']}-{name}",
        document,
        f"# {title}, {document['date']}\n\n{hardware(machine())}.\n\n"
        f"{document['model']} in {dtype}, {threads} threads. `{document['command']}` took {seconds:.0f} seconds. "
        f"Decodes see {CONTEXT} tokens each; prefills are computed {CHUNK} tokens at a time. {what} "
        f"How: ../README.md.\n\n{rows}\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder (default: the demo model)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--parts", action="store_true", help="what each part of a step takes, too, in ms")
    how.add_argument("--beside", action="store_true", help="what other load on the machine leaves of the speed")
    parser.add_argument("--dry", action="store_true", help="write no results")
    arguments = parser.parse_args()
    variables = thread_environment(arguments.threads)
    if arguments.beside and not variables.items() <= os.environ.items():
        # They are read when the threads are made.
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.steps", *sys.argv[1:]], os.environ | variables)
    began = time.monotonic()
    folder = arguments.model or str(demo_model())
    if arguments.beside:
        found = measure_beside(folder, arguments.dtype, arguments.threads)
    else:
        found = measure(folder, arguments.dtype, arguments.threads, parts=arguments.parts)
    if not arguments.dry:
        write(found, folder, arguments.dtype, arguments.threads, time.monotonic() - began)
    rows = found["rows"]
    sys.stdout.write((beside_table(rows) if arguments.beside else as_table(rows)) + "\n")


if __name__ == "__main__":
    main()
