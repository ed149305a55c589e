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
STEP_SHARE_MOST = 1.30
"""A decode of 32 sequences with 8 adapters, divided by one without."""
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
    add("--torch-index", help="one more package index for vLLM's environment")
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
            "value": value,
            "unit": "ms",
            "share": value / times["base"],
        }
        for kind, times in result.items()
        for count, value in times.items()
    ]


# ---- a server whose requests use adapters


def server_rows(server: Server, setting: Setting, folder: Path) -> list[Row]:
    """Output tokens/s at CONCURRENCY, greedy, by how many adapters the requests name in turn."""
    rows: list[Row] = []
    try:
        with serving.started(with_adapters(server, folder), setting, "greedy") as (_, driver, _):
            for count in ADAPTERS:
                models = [str(number) for number in range(count)]
                warm_up, load = (
                    replace(
                        serving.make_load(server, setting, "greedy", CONCURRENCY, CONCURRENCY, seed=seed), models=models
                    )
                    for seed in (2 * count, 2 * count + 1)
                )
                driver.run(replace(warm_up, output_tokens=2))
                done = driver.run(load)
                summary = report.summarize(done, cpu_seconds=0.0)
                speed = summary["output_tokens_per_second"]
                base = rows[0]["value"] if rows else speed
                row = {"what": f"{server.title}: c={CONCURRENCY}", "adapters": str(count), "value": speed}
                rows.append(row | {"unit": "tokens/s", "share": speed / base, "failed": summary["failed"]})
                report.say(f"{row['what']}, {count} adapters: {speed:.1f} tokens/s, {summary['failed']} failed")
    except NotRun as reason:
        rows.append(report.not_run(server, str(reason)))
    return rows


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
    if row["what"] == "ours: decode step" and row["adapters"] == "8":
        return f"at most {STEP_SHARE_MOST:g}: {'reached' if row['share'] <= STEP_SHARE_MOST else 'MISSED'}"
    if "load an adapter" in row["what"]:
        return f"at most {HOT_LOAD_MOST_MS:g}: {'reached' if row['value'] <= HOT_LOAD_MOST_MS else 'MISSED'}"
    return ""


def write(rows: list[Row], setting: Setting) -> None:
    report.RESULTS.mkdir(exist_ok=True)
    machine = report.machine()
    stem = report.RESULTS / f"{time.strftime('%Y-%m-%d')}-adapters"
    document = {"machine": machine, "model": Path(setting.model).name, "dtype": setting.dtype, "rows": rows}
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    head = (
        f"# Adapters, {time.strftime('%Y-%m-%d')}\n\n{machine['cpu']}, {machine['physical_cores']} cores, "
        f"{', '.join(machine['flags'])}; {machine['system']}.\n{Path(setting.model).name} in {setting.dtype}, "
        f"{setting.threads} threads; adapters of rank 8 on all linear layers but the head. "
        f"`python -m benchmarks.adapters`; what is measured: ../README.md.\n\n"
    )
    stem.with_suffix(".md").write_text(f"{head}{tables(rows)}\n")


if __name__ == "__main__":
    sys.exit(main())
