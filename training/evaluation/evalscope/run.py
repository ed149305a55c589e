"""EvalScope over a server: what it is told, and the process that it has."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines.errors import TuneserveError
from engines.process.children import with_parent_death_signal
from engines.setup.install import require_evalscope
from training.evaluation.evalscope.benchmarks import Benchmark
from training.evaluation.evalscope.found import Found, read
from training.evaluation.on_engine import AT_ONCE
from training.evaluation.over_http import AT_ONCE as AT_ONCE_OF_SERVERS
from training.evaluation.served import Served
from training.params.eval import EvalParams

CHILD = Path(__file__).with_name("child.py")
LOOK_SECONDS = 0.2
NO_KEY = "none"


def measure(
    server: Served, benchmarks: Sequence[Benchmark], params: EvalParams, folder: Path, checkpoint: Callable[[], None]
) -> list[Found]:
    """What was found, by benchmark. `folder` is to write to, and nothing of it stays; `checkpoint` is called a few
    times a second, and may raise. Raises NotInstalled, TuneserveError."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="evalscope-") as made:
        places = [Path(made) / str(number) for number in range(len(benchmarks))]
        told = [_task(server, each, params, place) for each, place in zip(benchmarks, places, strict=True)]
        _run(told, Path(made) / "reason", checkpoint)
        return [read(each, place / "found") for each, place in zip(benchmarks, places, strict=True)]


def _task(server: Served, benchmark: Benchmark, params: EvalParams, folder: Path) -> dict[str, Any]:
    """EvalScope's TaskConfig. What is not said here is as EvalScope has it."""
    shots = {} if params.eval_few_shot is None else {"few_shot_num": params.eval_few_shot}
    arguments = {**benchmark.arguments(folder / "data"), **shots}
    asked: dict[str, Any] = {"temperature": params.temperature}
    if params.temperature:
        asked["seed"] = params.seed
    if params.max_new_tokens is not None:
        asked["max_tokens"] = params.max_new_tokens
    return {
        "model": server.model,
        "api_url": server.url,
        "api_key": server.key or NO_KEY,
        "eval_type": "openai_api",
        "datasets": [benchmark.kind],
        "dataset_args": {benchmark.kind: arguments} if arguments else {},
        "generation_config": asked,
        "eval_batch_size": params.eval_num_proc or (AT_ONCE_OF_SERVERS if params.eval_url else AT_ONCE),
        "seed": params.seed,
        "work_dir": str(folder / "found"),
        "no_timestamp": True,
    } | ({} if params.eval_limit is None else {"limit": params.eval_limit})


def _run(tasks: Sequence[dict[str, Any]], reason: Path, checkpoint: Callable[[], None]) -> None:
    """Its key is in no list of processes, as it comes by standard input."""
    command = [str(require_evalscope()), "-I", str(CHILD), str(reason)]
    local = ",".join(filter(None, ("127.0.0.1,localhost", os.environ.get("NO_PROXY"))))
    process = subprocess.Popen(
        with_parent_death_signal(command),
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_PROXY": local, "no_proxy": local},
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(tasks))
        process.stdin.close()
        while process.poll() is None:
            checkpoint()
            time.sleep(LOOK_SECONDS)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        said = reason.read_text() if reason.exists() else f"it ended with status {process.returncode}; see the log"
        raise TuneserveError(f"EvalScope failed: {said}", param="eval_dataset")
