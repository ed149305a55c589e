"""How long a job takes from its creation to its first step, on a running server.

`python -m benchmarks.first_step`. See benchmarks/README.md.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks import report, serving
from benchmarks.environments import HOME
from benchmarks.process import Tree
from benchmarks.servers import Setting, ours
from benchmarks.workload import WORDS

MOST_SECONDS = 20.0
JOBS = 3
PATIENCE = 300.0

Event = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    HOME.mkdir(exist_ok=True)
    setting = serving.make_setting(arguments)
    report.check_quiet()
    seconds = first_steps(setting)
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": report.machine(),
        "setting": {"model": setting.model, "dtype": setting.dtype, "threads": setting.threads},
        "median_seconds": statistics.median(seconds),
        "seconds": seconds,
    }
    text = _page(document)
    report.save(report.RESULTS / f"{document['date']}-first-step", document, text)
    sys.stdout.write(f"\n{text}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.first_step", description=__doc__)
    add = parser.add_argument
    add("--threads", type=int, help="of the server and its jobs (default: the physical cores)")
    add("--dtype", choices=["float32", "bfloat16"], help="(default: the fastest on this machine)")
    add("--model", help="a folder (default: the demo model)")
    add("--port", type=int, default=8390)
    return parser.parse_args(argv)


def first_steps(setting: Setting) -> list[float]:
    """Seconds from POST /v1/fine_tuning/jobs to the first step of JOBS jobs in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        command = [*ours(setting), "--state_dir", str(state)]
        serving.refuse_taken_port(setting)
        variables = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
        with (
            Tree(command, variables, HOME / "tuneserve-jobs.log"),
            httpx.Client(base_url=setting.url, timeout=PATIENCE) as client,
        ):
            _wait(lambda: _ready(client))
            return [_first_step(client) for _ in range(JOBS)]


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def _first_step(client: httpx.Client) -> float:
    lines = [
        {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": f"{word}!"}]}
        for word in WORDS[:60]
    ]
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    upload = client.post("/v1/files", files={"file": ("words.jsonl", data)}, data={"purpose": "fine-tune"})
    began = time.time()
    job = client.post("/v1/fine_tuning/jobs", json={"model": "bench", "training_file": upload.json()["id"]}).json()
    path = f"/v1/jobs/{job['id']}"

    def started() -> list[Event]:
        return [event for event in client.get(f"{path}/events").json()["data"] if event["type"] == "started"]

    _wait(lambda: bool(started()))
    seconds: float = started()[0]["time"] - began
    client.post(f"{path}/cancel")
    _wait(lambda: client.get(path).json()["status"] == "cancelled")
    report.say(f"the first step began after {seconds:.1f} s")
    return seconds


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit("it did not happen in time: see .bench/tuneserve-jobs.log")
        time.sleep(0.1)


def _page(document: dict[str, Any]) -> str:
    median, setting = document["median_seconds"], document["setting"]
    verdict = "reached" if median <= MOST_SECONDS else "MISSED"
    return (
        f"# To the first step, {document['date']}\n\n{report.hardware(document['machine'])}.\n\n"
        f"{Path(setting['model']).name} in {setting['dtype']}, {setting['threads']} threads. What is measured and how: "
        f"../README.md.\n\nFrom creating a job to its first step: {median:.1f} s, the median of {JOBS} "
        f"(at most {MOST_SECONDS:g}: {verdict}).\n"
    )


if __name__ == "__main__":
    sys.exit(main())
