"""Structured output, measured: how many answers under a JSON schema come to their end and are what it describes.

`python -m benchmarks.structured`: the same requests to our server and to vLLM, greedy, 256 tokens at most. It may run
in parts (`--peers`, `--sets`): answers are kept in .bench/, and the report is of all that are there. See
benchmarks/README.md.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from benchmarks import report, serving
from benchmarks.environments import HOME, NotRun
from benchmarks.schemas import EACH, FOLDER, SETS, Named, choose
from benchmarks.servers import SERVERS, Server, Setting, with_port

NAMES = ("tuneserve", "tuneserve-vllm", "vllm")
TOKENS = 256
CONCURRENCY = 64
SECONDS = 1800
"""For one answer."""
OUTCOMES = ("valid", "cut", "invalid", "refused", "failed")
PROMPT = "Write an example of the JSON that this schema describes. Answer with the JSON alone.\n\n{}"


def main(argv: list[str] | None = None) -> int:
    given = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended with us
    HOME.mkdir(exist_ok=True)
    try:
        schemas = choose(given.schemas, given.sets, given.each)
    except FileNotFoundError as error:
        raise SystemExit(f"no schemas: {error}; see {choose.__module__}") from None
    setting = serving.make_setting(given)
    ready, missing = serving.prepare([server for server in SERVERS if server.name in given.peers], given.torch_index)
    for server in ready:
        try:
            measure(server, with_port(setting, server), schemas, given.url)
        except NotRun as reason:
            missing.append(report.not_run(server, str(reason)))
    document = report_of(setting, given.each, given.note)
    sys.stdout.write(f"\n{tables(document)}\n")
    return 0 if not missing and all(compared["reached"] for compared in comparisons(document)) else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.structured", description=__doc__)
    add = parser.add_argument
    add("--peers", nargs="+", choices=NAMES, default=list(NAMES), help="what to measure (default: all)")
    add("--url", help="of the one peer to measure, where it runs already")
    add("--note", default="", help="a sentence for the report, such as how what listens at --url was started")
    add("--schemas", type=Path, default=FOLDER, help="the folder `data` of JSONSchemaBench")
    add("--sets", nargs="+", choices=SETS, default=list(SETS), help="of its sets (default: all)", metavar="SET")
    add("--each", type=int, default=EACH, help="schemas of each set")
    add("--threads", type=int, help="of every server (default: the physical cores)")
    add("--dtype", choices=["float32", "bfloat16"], help="of every server (default: the fastest on this machine)")
    add("--model", help="a folder (default: the demo model)")
    add("--port", type=int, default=8390, help="the first of one for each server")
    add("--torch-index", help="index that torch comes from in the peers' environments")
    return parser.parse_args(argv)


# ---- one server


def measure(server: Server, setting: Setting, schemas: list[Named], url: str | None) -> None:
    """Ask a server for everything, and keep its answers beside those that are kept already. Raises NotRun."""
    document = {"answers": {}, **kept_of(server.name), "versions": report.versions(server)}

    def keep(answer: dict[str, Any]) -> None:
        document["answers"][answer["schema"]] = answer
        kept_file(server.name).write_text(json.dumps(document, indent=1))

    if url is not None:
        asyncio.run(ask_all(url, schemas, keep))
    else:
        with serving.started(server, setting, "greedy"):
            asyncio.run(ask_all(setting.url, schemas, keep))


def kept_file(name: str) -> Path:
    return HOME / f"structured-{name}.json"


def kept_of(name: str) -> dict[str, Any]:
    file = kept_file(name)
    document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return document


async def ask_all(url: str, schemas: list[Named], keep: Callable[[dict[str, Any]], None]) -> None:
    at_once = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:

        async def one(named: Named) -> None:
            async with at_once:
                keep(await ask(client, named))

        await asyncio.gather(*map(one, schemas))


async def ask(client: httpx.AsyncClient, named: Named) -> dict[str, Any]:
    schema_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": named.schema}}
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": PROMPT.format(json.dumps(named.schema))}],
        "response_format": schema_format,
        "temperature": 0,
        "max_tokens": TOKENS,
    }
    try:
        answer = await client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        return {"schema": named.name, "outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {"schema": named.name, **outcome_of(answer, named.schema)}


def outcome_of(answer: httpx.Response, schema: dict[str, Any]) -> dict[str, Any]:
    if answer.status_code != 200:
        said = " ".join(answer.text.split())[:300]
        return {"outcome": "refused" if answer.status_code == 400 else "failed", "reason": said}
    choice, tokens = answer.json()["choices"][0], answer.json()["usage"]["completion_tokens"]
    text = choice["message"]["content"] or ""
    if choice["finish_reason"] != "stop":
        return {"outcome": "cut", "tokens": tokens, "text": text}
    reason = problem(text, schema)
    return {"outcome": "valid" if reason is None else "invalid", "tokens": tokens, "text": text, "reason": reason}


def problem(text: str, schema: dict[str, Any]) -> str | None:
    """Say why a text is not what the schema describes; None where it is. Formats are not looked at."""
    try:
        jsonschema.validators.validator_for(schema)(schema).validate(json.loads(text))
    except ValueError as error:
        return f"not JSON: {error}"
    except (jsonschema.exceptions.ValidationError, jsonschema.exceptions.SchemaError, re.error) as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    return None


# ---- words


def report_of(setting: Setting, each: int, note: str) -> dict[str, Any]:
    """All that is kept, as a document, written to the results; only what every server was asked counts."""
    kept = {name: document for name in NAMES if (document := kept_of(name))}
    asked = set.intersection(*(set(document["answers"]) for document in kept.values()))
    rows = [
        {
            "server": name,
            "versions": document["versions"],
            "answers": [
                _without_text(answer) for schema, answer in sorted(document["answers"].items()) if schema in asked
            ],
        }
        for name, document in kept.items()
    ]
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": report.machine(),
        "model": Path(setting.model).name,
        "dtype": setting.dtype,
        "note": note,
        "rows": rows,
        "not_run": [name for name in NAMES if name not in kept],
    }
    report.RESULTS.mkdir(exist_ok=True)
    quick = "" if len(asked) >= each * len(SETS) >= 200 else "-quick"
    stem = report.RESULTS / f"{document['date']}-structured{quick}"
    report.save(stem, document, as_markdown(document))
    return document


def _without_text(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "text" and value is not None}


def comparisons(document: dict[str, Any]) -> list[dict[str, Any]]:
    valid = {row["server"]: outcomes_of(row)["valid"] for row in document["rows"]}
    if "vllm" not in valid:
        return []
    return [
        {"what": f"{name}: at least as many valid answers as vllm", "reached": valid[name] >= valid["vllm"]}
        for name in NAMES[:2]
        if name in valid
    ]


def outcomes_of(row: report.Row, within: str = "") -> Counter[str]:
    return Counter(answer["outcome"] for answer in row["answers"] if answer["schema"].startswith(within))


def tables(document: dict[str, Any]) -> str:
    rows = document["rows"]
    cells = [["server", "schemas", *OUTCOMES, "tokens, mean"], *map(counts_of, rows)]
    sets = sorted({answer["schema"].partition("/")[0] for row in rows for answer in row["answers"]})
    by_set = [["valid", *(row["server"] for row in rows), "of"]]
    for name in sets:
        counts = [outcomes_of(row, f"{name}/") for row in rows]
        by_set.append([name, *(str(count["valid"]) for count in counts), str(counts[0].total())])
    reached = [f"- {c['what']}: {'reached' if c['reached'] else 'MISSED'}" for c in comparisons(document)]
    missing = [f"- {name}: not run" for name in document["not_run"]]
    parts = (report.table(cells), report.table(by_set), "\n".join([*reached, *missing]))
    return "\n\n".join(part for part in parts if part)


def counts_of(row: report.Row) -> list[str]:
    counts = outcomes_of(row)
    tokens = [answer["tokens"] for answer in row["answers"] if "tokens" in answer]
    mean = f"{sum(tokens) / len(tokens):.0f}" if tokens else "-"
    return [row["server"], str(counts.total()), *(str(counts[outcome]) for outcome in OUTCOMES), mean]


def as_markdown(document: dict[str, Any]) -> str:
    lost = [
        f"- {row['server']}, {answer['schema']}: {answer['outcome']}: {answer['reason']}"
        for row in document["rows"]
        for answer in row["answers"]
        if answer["outcome"] in ("refused", "invalid", "failed")
    ]
    versions = "; ".join(
        f"{row['server']}: {', '.join(f'{name} {version}' for name, version in row['versions'].items())}"
        for row in document["rows"]
    )
    return (
        f"# Structured output, {document['date']}\n\n{report.hardware(document['machine'])}.\n\n"
        f"{document['model']} in {document['dtype']}, greedy, {TOKENS} tokens at most, {CONCURRENCY} at once. "
        f"{versions}. "
        f"`python -m benchmarks.structured`; what is measured: ../README.md. {document['note']}\n\n"
        f"{tables(document)}\n\n## Refused, or not valid\n\n" + "\n".join(lost or ["None."]) + "\n"
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
