"""Adapters, measured: what they cost a step beside PEFT, what they cost a server beside vLLM, and how fast one is
loaded.

`python -m benchmarks.adapters`, or `--peers ours` for a part of it. See benchmarks/README.md.
"""

import argparse
import http.client
import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report, serving
from benchmarks.environments import HOME, ROOT, NotRun
from benchmarks.servers import SERVERS, Server, Setting, with_port

ADAPTERS = (0, 1, 8, 32)
CONCURRENCY = 32
HOT_LOADS = 20
SERVER_ROUNDS = 3
STEP_SHARES_MOST = {
    ("decode", "1"): 1.10, ("decode", "8"): 1.11, ("decode", "32"): 1.40,
    ("prefill", "1"): 1.15, ("prefill", "8"): 1.15, ("prefill", "32"): 1.15,
}  # fmt: skip
"""Our steps with so many adapters, divided by those of the base."""
HOT_LOAD_MOST_MS = 100.0

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    HOME.mkdir(exist_ok=True)
    setting = serving.make_setting(arguments)
    vllm = next(server for server in SERVERS if server.name == "vllm")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_adapters(Path(scratch), setting, max(ADAPTERS) + HOT_LOADS)
        if "vllm" in arguments.peers:
            serving.prepare([vllm], arguments.torch_index)
        report.check_quiet()
        for which in ("ours", "peft"):
            if which in arguments.peers:
                rows += step_rows(which, setting, folder)
        ours = next(server for server in SERVERS if server.name == "tuneserve")
        for name, server in (("ours", ours), ("vllm", vllm)):
            if name in arguments.peers:
                rows += server_rows(server, with_port(setting, server), folder)
        if "ours" in arguments.peers:
            rows += hot_load_rows(ours, with_port(setting, ours), folder)
    write(rows, setting)
    sys.stdout.write(f"\n{tables(rows)}\n")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.adapters", description=__doc__)
    add = parser.add_argument
    add("--peers", nargs="+", choices=["ours", "peft", "vllm"], default=["ours", "peft", "vllm"])
    add("--threads", type=int, help="of everything (default: the physical cores)")
    add("--dtype", choices=["float32", "bfloat16"], help="(default: the fastest on this machine)")
    add("--model", help="a folder (default: the demo model)")
    add("--port", type=int, default=8290)
    add("--torch-index", help="index that torch comes from in vLLM's environment")
    return parser.parse_args(argv)


def make_adapters(folder: Path, setting: Setting, count: int) -> Path:
    command = [sys.executable, "-m", "benchmarks.adapter_files", setting.model, str(folder / "adapters"), str(count)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return folder / "adapters"


# ---- steps, without a server


def step_rows(which: str, setting: Setting, folder: Path) -> list[Row]:
    report.say(f"{which}: steps")
    command = [sys.executable, "-m", "benchmarks.adapter_steps", which, setting.model, setting.dtype]
    command += [str(setting.threads), str(folder)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return [
        {
            "what": f"{which}: {kind} step",
            "adapters": count,
            "value": step["ms"],
            "unit": "ms",
            "share": step["share"],
        }
        for kind, times in result.items()
        for count, step in times.items()
    ]


# ---- a server whose requests use adapters


def server_rows(server: Server, setting: Setting, folder: Path) -> list[Row]:
    """Output tokens/s at CONCURRENCY, greedy, by how many adapters the requests name in turn: each of these in every
    round, as the steps, and the medians over the rounds."""
    speeds: dict[int, list[float]] = {count: [] for count in ADAPTERS}
    failed = dict.fromkeys(ADAPTERS, 0)
    try:
        with serving.started(with_adapters(server, folder), setting, "greedy") as (_, driver, _):
            for number in range(SERVER_ROUNDS + 1):
                for count in ADAPTERS:
                    seed = 100 * number + count
                    load = serving.make_load(server, setting, "greedy", CONCURRENCY, CONCURRENCY, seed=seed)
                    load = replace(load, models=[str(adapter) for adapter in range(count)])
                    if not number:  # the first round warms up
                        driver.run(replace(load, output_tokens=2))
                        continue
                    summary = report.summarize(driver.run(load), cpu_seconds=0.0)
                    speeds[count].append(summary["output_tokens_per_second"])
                    failed[count] += summary["failed"]
                    report.say(f"{server.title}, {count} adapters: {speeds[count][-1]:.1f} tokens/s")
    except NotRun as reason:
        return [report.not_run(server, str(reason))]
    return [
        {
            "what": f"{server.title}: c={CONCURRENCY}",
            "adapters": str(count),
            "value": statistics.median(own),
            "unit": "tokens/s",
            "share": statistics.median(one / base for one, base in zip(own, speeds[0], strict=True)),
            "failed": failed[count],
        }
        for count, own in speeds.items()
    ]


def with_adapters(server: Server, folder: Path) -> Server:
    """The same server with the adapters 0 to 31 loaded at its start."""
    number = max(ADAPTERS)
    named = [f"{n}={folder / str(n)}" for n in range(number)]
    more = {
        "tuneserve": ["--adapters", *named, "--max_loras", str(number)],
        "vllm": ["--enable-lora", "--max-loras", str(number), "--max-lora-rank", "8", "--lora-modules", *named],
    }[server.name]
    command = server.command
    return replace(server, command=lambda setting: [*command(setting), *more])


# ---- from POST to the first token


def hot_load_rows(server: Server, setting: Setting, folder: Path) -> list[Row]:
    """How long `POST /v1/load_lora_adapter` takes, and a first token after it, for adapters that the server never
    saw."""
    state = folder.parent / "state"
    command = server.command
    server = replace(
        server,
        command=lambda s: [*command(s), "--adapter_roots", str(folder), "--state_dir", str(state)],
    )
    loads, firsts, plain = [], [], []
    with serving.started(server, setting, "greedy"):
        for number in range(max(ADAPTERS), max(ADAPTERS) + HOT_LOADS):
            plain.append(first_token(setting, "bench"))
            began = time.perf_counter()
            post(
                setting, "/v1/load_lora_adapter", {"lora_name": f"hot-{number}", "lora_path": str(folder / str(number))}
            )
            loads.append(time.perf_counter() - began)
            first_token(setting, f"hot-{number}")
            firsts.append(time.perf_counter() - began)
    shutil.rmtree(state)
    return [
        {
            "what": what,
            "adapters": "1",
            "value": 1000 * statistics.median(times),
            "unit": "ms",
            "most_of_all": 1000 * max(times),
        }
        for what, times in (
            ("tuneserve: load an adapter of rank 8 (POST)", loads),
            ("tuneserve: POST to the first token with it", firsts),
            ("tuneserve: the first token of the base model", plain),
        )
    ]


def post(setting: Setting, path: str, body: dict[str, Any]) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", setting.port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path} answered {answer.status}: {data[:300]!r}")
    return data


def first_token(setting: Setting, model: str) -> float:
    """Seconds of a request of a short prompt for one token."""
    began = time.perf_counter()
    post(setting, "/v1/completions", {"model": model, "prompt": "Once upon a time", "max_tokens": 1, "temperature": 0})
    return time.perf_counter() - began


# ---- words


def tables(rows: list[Row]) -> str:
    cells = [["what", "adapters", "value", "", "of the base", "target"]]
    for row in rows:
        if "not_run" in row:
            cells.append([row["title"], "", "not run", row["not_run"], "", ""])
            continue
        share = f"{row['share']:.2f}" if "share" in row else ""
        cells.append([row["what"], row["adapters"], f"{row['value']:.1f}", row["unit"], share, target(row)])
    return report.table(cells)


def target(row: Row) -> str:
    for (kind, count), most in STEP_SHARES_MOST.items():
        if row["what"] == f"ours: {kind} step" and row["adapters"] == count:
            return f"at most {most:g}: {'reached' if row['share'] <= most else 'MISSED'}"
    if "load an adapter" in row["what"]:
        return f"at most {HOT_LOAD_MOST_MS:g}: {'reached' if row['value'] <= HOT_LOAD_MOST_MS else 'MISSED'}"
    return ""


def write(rows: list[Row], setting: Setting) -> None:
    report.RESULTS.mkdir(exist_ok=True)
    machine = report.machine()
    stem = report.RESULTS / f"{time.strftime('%Y-%m-%d')}-adapters"
    document = {"machine": machine, "model": Path(setting.model).name, "dtype": setting.dtype, "rows": rows}
    head = (
        f"# Adapters in {setting.dtype}, {time.strftime('%Y-%m-%d')}\n\n{report.hardware(machine)}.\n"
        f"{Path(setting.model).name} in {setting.dtype}, {setting.threads} threads; adapters of rank 8 on all linear "
        f"layers but the head. `python -m benchmarks.adapters`; what is measured: ../README.md.\n\n"
    )
    report.save(stem, document, f"{head}{tables(rows)}\n")


if __name__ == "__main__":
    sys.exit(main())
