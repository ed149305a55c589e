"""What running outputs notice of long prompts: `python -m benchmarks.itl`, without a server.

STREAMS outputs run, by themselves and beside a prompt of `--prompt` tokens until that has its first token, in turns:
what they see grows meanwhile. The time between two tokens of an output (inter-token latency, ITL) is that of a step.
"""

import argparse
import random
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import RESULTS, hardware, machine, percentile, save, say, table
from engines.pt.config import PtConfig
from engines.pt.core import EngineCore
from engines.pt.runner import ModelRunner
from engines.setup.demo import demo_model
from engines.types import GenerationRequest, Sampling

STREAMS = 8
STREAM_PROMPT = 64
QUIET_STEPS = 150
"""Before each prompt and after the last."""
PROMPTS = 3


class Engine:
    def __init__(self, runner: ModelRunner, settings: dict[str, Any]) -> None:
        self._core = EngineCore(runner, PtConfig(**settings), (), None, lambda token: b"")
        self._random = random.Random(0)
        self._vocab_size = runner.vocab_size

    def ask(self, name: str, *, prompt: int, output: int) -> None:
        ids = self._random.choices(range(self._vocab_size), k=prompt)
        sampling = Sampling(max_new_tokens=output, temperature=0.0, ignore_eos=True)
        self._core.add(GenerationRequest(request_id=name, prompt_ids=ids, sampling=sampling))

    def step(self) -> tuple[float, set[str]]:
        """Its seconds, and the names of those who got a token."""
        began = time.perf_counter()
        report = self._core.step()
        return time.perf_counter() - began, {name for name, _ in report.outputs}

    def steps(self, count: int) -> list[float]:
        """Seconds of each of so many steps."""
        return [self.step()[0] for _ in range(count)]

    def steps_until(self, *names: str) -> list[float]:
        """Seconds of each step, until one gives all of these a token."""
        seconds: list[float] = []
        told: set[str] = set()
        while not told.issuperset(names):
            took, told = self.step()
            seconds.append(took)
        return seconds


def measure(folder: str, dtype: str, threads: int, slowdowns: list[float], prompt: int) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"model": folder, "dtype": dtype, "threads": threads}
    runner = ModelRunner(PtConfig(**settings))
    rows = []
    for slowdown in slowdowns:
        engine = Engine(runner, settings | {"max_itl_slowdown": slowdown or None, "enable_prefix_caching": False})
        streams = [f"stream {number}" for number in range(STREAMS)]
        for name in streams:
            engine.ask(name, prompt=STREAM_PROMPT, output=runner.max_model_len - STREAM_PROMPT)
        engine.steps_until(*streams)
        quiet = engine.steps(QUIET_STEPS)
        beside: list[float] = []
        first: list[float] = []
        for number in range(PROMPTS):
            engine.ask(f"prompt {number}", prompt=prompt, output=1)
            steps = engine.steps_until(f"prompt {number}")
            beside += steps
            first.append(sum(steps))
            quiet += engine.steps(QUIET_STEPS)
        row: dict[str, Any] = {
            "max_itl_slowdown": slowdown,
            "prompt_ttft_s": sum(first) / len(first),
            "steps": len(beside),
        }
        for name, times in (("quiet", quiet), ("beside", beside)):
            row |= {f"{name}_p50_ms": percentile(times, 50), f"{name}_p99_ms": percentile(times, 99)}
        rows.append(row)
        say(f"{slowdown or 'no'} max_itl_slowdown: p99 {row['quiet_p99_ms']:.1f}, {row['beside_p99_ms']:.1f} ms")
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    cells = [["max_itl_slowdown", "quiet p50 / p99, ms", "beside p50 / p99, ms", "times, p99", "prompt's TTFT, s"]]
    for row in rows:
        quiet, beside = (f"{row[f'{name}_p50_ms']:.1f} / {row[f'{name}_p99_ms']:.1f}" for name in ("quiet", "beside"))
        times = f"{row['beside_p99_ms'] / row['quiet_p99_ms']:.1f}"
        cells.append([f"{row['max_itl_slowdown'] or 'none'}", quiet, beside, times, f"{row['prompt_ttft_s']:.1f}"])
    return table(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder (default: the demo model)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompts that come")
    parser.add_argument("--slowdowns", nargs="+", type=float, default=[0, 2], help="max_itl_slowdown; 0: none")
    parser.add_argument("--dry", action="store_true", help="write no results")
    arguments = parser.parse_args()
    began = time.monotonic()
    folder = arguments.model or str(demo_model())
    rows = measure(folder, arguments.dtype, arguments.threads, arguments.slowdowns, arguments.prompt)
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.itl {shlex.join(sys.argv[1:])}".strip(),
        "duration_seconds": time.monotonic() - began,
        "machine": machine(),
        "model": Path(folder).name,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "streams": STREAMS,
        "prompt": arguments.prompt,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "rows": rows,
    }
    text = (
        f"# Inter-token latency beside long prompts, {document['date']}\n\n{hardware(machine())}.\n\n"
        f"{document['model']} in {arguments.dtype}, {arguments.threads} threads. `{document['command']}` took "
        f"{document['duration_seconds']:.0f} seconds. {STREAMS} outputs run; {PROMPTS} prompts of "
        f"{arguments.prompt} tokens come, one after another. How: ../README.md.\n\n{as_table(rows)}\n"
    )
    if not arguments.dry:
        save(RESULTS / f"{document['date']}-itl", document, text)
    sys.stdout.write(as_table(rows) + "\n")


if __name__ == "__main__":
    main()
