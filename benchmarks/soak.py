"""A server under mixed load for a while: streams whose clients drop, adapters that come and go, and a job that trains.

`python -m benchmarks.soak --minutes 10`. The exit status is 1 where something happened that should not: an answer with
a status of 500 or more, a broken stream, a probe that failed, a job that did not succeed, or memory that grows. See
benchmarks/README.md.
"""

import argparse
import asyncio
import json
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import report
from benchmarks.client import Client, Refused
from benchmarks.environments import HOME, ROOT
from benchmarks.process import MIB, Tree
from benchmarks.servers import Setting, ours
from benchmarks.serving import make_setting, refuse_taken_port

ADAPTERS = 4
WORDS = ("river", "stone", "amber", "quiet", "engine", "market", "window", "paper", "garden", "signal", "copper")
MOST_TOKENS = 64
SAMPLE_SECONDS = 5.0
"""Seconds between two looks at the memory."""
WARM_UP = 1 / 2
"""Share of the time after which the memory has to be flat: before, prefixes fill the engine's cache page by page."""
MOST_GROWTH = 2.0
"""MiB a minute by which a process may grow after the warm-up; over some minutes, as one look may see a prefill."""
PATIENCE = 60.0
"""Seconds without an event after which a stream counts as broken, and for an answer to what is no stream."""
ROWS = 40


@dataclass
class Seen:
    """What happened."""

    busy: float = 0.0
    """Percent of the machine's CPUs that did other work before."""
    outcomes: Counter[str] = field(default_factory=Counter)
    unplanned: Counter[str] = field(default_factory=Counter)
    health_seconds: list[float] = field(default_factory=list)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By process: minutes since the start, and MiB that are its own."""

    def count(self, outcome: str, *, planned: bool = True) -> None:
        self.outcomes[outcome] += 1
        if not planned:
            self.unplanned[outcome] += 1
            report.say(f"UNPLANNED: {outcome}")


# ---- the load


class Load:
    def __init__(self, setting: Setting, folder: Path, seen: Seen, *, seconds: float) -> None:
        self._folder = folder
        self._seen = seen
        self._client = Client(setting.url, "bench")
        self._http = httpx.AsyncClient(base_url=setting.url, timeout=PATIENCE)
        self._ends = time.monotonic() + seconds
        self._loaded: set[str] = set()

    async def run(self, streams: int, server: int) -> None:
        """`server`: the process whose memory is watched."""
        works = [self._ask_one_by_one(number) for number in range(streams)]
        works += [self._change_adapters(), self._train(), self._probe(), self._watch_memory(server)]
        try:
            await asyncio.gather(*works)
        finally:
            await self._http.aclose()

    def _going_on(self) -> bool:
        return time.monotonic() < self._ends

    async def _ask_one_by_one(self, number: int) -> None:
        chance = random.Random(number)
        while self._going_on():
            await self._ask(chance)

    async def _ask(self, chance: random.Random) -> None:
        model = chance.choice(["bench", *sorted(self._loaded)])
        events_to_read = chance.choice([10**6, 10**6, 10**6, 0, 1, 10])
        body = self._body(model, chance)
        read = 0
        try:
            async with aclosing(self._client.stream(body)) as events, asyncio.timeout(None) as patience:
                if events_to_read == 0:
                    patience.reschedule(asyncio.get_running_loop().time() + 0.05)
                async for event in events:
                    if "error" in event:
                        return self._seen.count(f"stream: error event {event['error'].get('code')}", planned=False)
                    read += 1
                    if read >= events_to_read:
                        return self._seen.count("stream: dropped while it ran")
                    patience.reschedule(asyncio.get_running_loop().time() + PATIENCE)
            self._seen.count("stream: read to its end")
        except TimeoutError:
            self._seen.count("stream: dropped before it began" if events_to_read == 0 else "stream: stuck",
                             planned=events_to_read == 0)  # fmt: skip
        except Refused as refused:
            gone = refused.status == 404 and model != "bench"
            planned = gone or refused.status == 429
            self._seen.count(
                f"stream: {refused.status}{' (its adapter was unloaded)' if gone else ''}", planned=planned
            )
            await asyncio.sleep(1)
        except (OSError, EOFError, ValueError) as error:
            self._seen.count(f"stream: {type(error).__name__}: {error}", planned=False)

    def _body(self, model: str, chance: random.Random) -> dict[str, Any]:
        text = " ".join(chance.choices(WORDS, k=chance.randint(3, 80)))
        return {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": chance.randint(1, MOST_TOKENS),
            "ignore_eos": True,
            "stream": True,
            "temperature": chance.choice([0, 0.8]),
        }

    async def _change_adapters(self) -> None:
        chance = random.Random(0)
        while self._going_on():
            name = f"adapter-{chance.randrange(ADAPTERS)}"
            if name in self._loaded:
                self._loaded.discard(name)
                await self._expect("unload an adapter", "POST", "/v1/unload_lora_adapter", {"lora_name": name})
            else:
                path = self._folder / "adapters" / name.removeprefix("adapter-")
                body = {"lora_name": name, "lora_path": str(path)}
                if await self._expect("load an adapter", "POST", "/v1/load_lora_adapter", body) is not None:
                    self._loaded.add(name)
            await asyncio.sleep(chance.uniform(0.5, 3))

    async def _train(self) -> None:
        """One job after another; each is deleted, with the model that it made."""
        row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}
        file = ("rows.jsonl", (json.dumps(row) + "\n").encode() * ROWS)
        answer = await self._http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": file})
        training = {"model": "bench", "dataset": [answer.json()["id"]], "max_steps": 20, "save_steps": 10}
        while self._going_on():
            job = await self._expect("create a job", "POST", "/v1/jobs", {"type": "sft", "parameters": training})
            if job is None:
                return
            ended = await self._wait_for(job["id"])
            if model := ended.get("fine_tuned_model"):
                await self._expect("delete a model", "DELETE", f"/v1/models/{model}")
            await self._delete(job["id"])

    async def _delete(self, id: str) -> None:
        """As soon as its worker has ended."""
        ends = time.monotonic() + PATIENCE
        while (await self._http.delete(f"/v1/jobs/{id}")).status_code == 409 and time.monotonic() < ends:
            await asyncio.sleep(0.5)
        gone = (await self._http.get(f"/v1/jobs/{id}")).status_code == 404
        self._seen.count("delete a job: gone" if gone else "delete a job: still there", planned=gone)

    async def _wait_for(self, id: str) -> dict[str, Any]:
        """The job once it has ended; one that still trains at the end of the time is cancelled."""
        cancelled = False
        while True:
            job = await self._expect("look at a job", "GET", f"/v1/jobs/{id}") or {"status": "unknown"}
            if job["status"] in ("succeeded", "failed", "cancelled"):
                self._seen.count(f"job: {job['status']}", planned=job["status"] == "succeeded" or cancelled)
                return job
            if not self._going_on() and not cancelled:
                cancelled = await self._expect("cancel a job", "POST", f"/v1/jobs/{id}/cancel") is not None
            await asyncio.sleep(1)

    async def _probe(self) -> None:
        while self._going_on():
            began = time.perf_counter()
            await self._expect("health", "GET", "/health")
            self._seen.health_seconds.append(time.perf_counter() - began)
            await self._expect("ready", "GET", "/ready")
            await asyncio.sleep(1)

    async def _watch_memory(self, server: int) -> None:
        began = time.monotonic()
        while self._going_on():
            for name, process in _processes(server).items():
                with suppress(psutil.Error):
                    own = await asyncio.to_thread(process.memory_full_info)
                    minutes = (time.monotonic() - began) / 60
                    self._seen.memory.setdefault(name, []).append((minutes, own.uss / MIB))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _expect(self, what: str, method: str, path: str, body: Any = None) -> Any:
        """The answer, None where it is not 200."""
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            self._seen.count(f"{what}: {type(error).__name__}", planned=False)
            return None
        ok = answer.status_code == 200
        self._seen.count(f"{what}: {answer.status_code}", planned=ok)
        if not ok:
            report.say(answer.text[:300])
            return None
        return answer.json() if answer.headers["content-type"].startswith("application/json") else answer.text


def _processes(server: int) -> dict[str, psutil.Process]:
    """The server's own, and its engine's."""
    found = {"server": psutil.Process(server)}
    for child in found["server"].children():
        with suppress(psutil.Error):
            if any(word.startswith("engines.") for word in child.cmdline()):
                found["engine"] = child
    return found


# ---- what it comes to


def growth(samples: list[tuple[float, float]]) -> float | None:
    """MiB a minute after the warm-up, by least squares over each half minute's least; None of too few.

    What is kept for ever raises the least, too; the rest goes up and down with prefills and with adapters.
    """
    if not samples:
        return None
    least: dict[int, tuple[float, float]] = {}
    for minutes, mib in samples:
        if minutes >= samples[-1][0] * WARM_UP:
            known = least.setdefault(int(2 * minutes), (minutes, mib))
            least[int(2 * minutes)] = min(known, (minutes, mib), key=lambda sample: sample[1])
    rest = list(least.values())
    if len(rest) < 3:
        return None
    middle = sum(minutes for minutes, _ in rest) / len(rest)
    spread = sum((minutes - middle) ** 2 for minutes, _ in rest)
    return sum((minutes - middle) * mib for minutes, mib in rest) / spread


def faults(seen: Seen, *, minutes: float) -> list[str]:
    """What should not have happened. Growth counts in a run of three minutes and more."""
    found = [f"{outcome}, {count} times" for outcome, count in seen.unplanned.items()]
    for needed in ("stream: read to its end", "load an adapter: 200", "unload an adapter: 200", "create a job: 200"):
        if not seen.outcomes[needed]:
            found.append(f"never: {needed}")
    for name, samples in seen.memory.items():
        grown = growth(samples)
        if minutes >= 3 and (grown is None or grown > MOST_GROWTH):
            found.append(f"the memory of the {name} grows by {grown or 0:.2f} MiB a minute")
    return found


def summary(seen: Seen, arguments: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    command = f"python -m benchmarks.soak {shlex.join(sys.argv[1:])}"
    memory = {
        name: {"growth_mib_per_minute": growth(samples), "last_mib": samples[-1][1], "samples": samples}
        for name, samples in seen.memory.items()
    }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": command.strip().replace(setting.model, Path(setting.model).name),
        "minutes": arguments.minutes,
        "streams": arguments.streams,
        "machine": report.machine(),
        "busy_percent": seen.busy,
        "model": Path(setting.model).name,
        "outcomes": dict(sorted(seen.outcomes.items())),
        "health_ms": {f"p{rank}": report.percentile(seen.health_seconds, rank) for rank in (50, 99, 100)},
        "memory": memory,
        "faults": faults(seen, minutes=arguments.minutes),
    }


def as_markdown(document: dict[str, Any]) -> str:
    outcomes = [["what happened", "times"]] + [[name, str(count)] for name, count in document["outcomes"].items()]
    memory = [["process", "MiB at the end", "MiB a minute after the warm-up"]]
    for name, seen in document["memory"].items():
        grown = seen["growth_mib_per_minute"]
        memory.append([name, f"{seen['last_mib']:.0f}", "-" if grown is None else f"{grown:+.2f}"])
    health = ", ".join(f"{name} {value or 0:.0f} ms" for name, value in document["health_ms"].items())
    told = "\n".join(f"- {fault}" for fault in document["faults"]) or "Nothing that should not have happened did."
    return (
        f"# Soak, {document['date']}\n\n{report.hardware(document['machine'])}.\n\n"
        f"{document['model']}, {document['streams']} streams, {document['minutes']:g} minutes. "
        f"`{document['command']}`; what is done: ../README.md. "
        f"{document['busy_percent']:.0f}% of the CPUs did other work before.\n\n"
        f"{report.table(outcomes)}\n\n{report.table(memory)}\n\n`/health`: {health}.\n\n{told}\n"
    )


# ---- the run


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended with us
    HOME.mkdir(exist_ok=True)
    setting, seen = make_setting(arguments), Seen(busy=psutil.cpu_percent(interval=2))
    refuse_taken_port(setting)
    with tempfile.TemporaryDirectory(prefix="tuneserve-soak-") as place:
        folder = Path(place)
        make = [
            sys.executable,
            "-m",
            "benchmarks.adapter_files",
            setting.model,
            str(folder / "adapters"),
            str(ADAPTERS),
        ]
        subprocess.run(make, check=True, cwd=ROOT)
        words = ["--state_dir", str(folder / "state"), "--adapter_roots", str(folder / "adapters")]
        words += ["--max_num_queued_reqs", str(2 * arguments.streams), "--verbose", "false"]
        variables = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
        with Tree([*ours(setting), *words], variables, HOME / "soak.log") as tree:
            wait_until_ready(setting, tree)
            report.say(f"{arguments.streams} streams for {arguments.minutes:g} minutes ({HOME / 'soak.log'})")
            load = Load(setting, folder, seen, seconds=60 * arguments.minutes)
            asyncio.run(load.run(arguments.streams, tree.process.pid))
    document = summary(seen, arguments, setting)
    stem = report.RESULTS / f"{document['date']}-soak"
    report.save(stem, document, as_markdown(document))
    sys.stdout.write(f"\n{as_markdown(document)}")
    return 1 if document["faults"] else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10)
    add("--streams", type=int, default=256, help="clients that ask at a time")
    add("--threads", type=int, help="of the server (default: the physical cores)")
    add("--dtype", choices=["float32", "bfloat16"], help="of the server (default: the fastest on this machine)")
    add("--model", help="a folder (default: the demo model)")
    add("--port", type=int, default=8180)
    return parser.parse_args(argv)


def wait_until_ready(setting: Setting, tree: Tree) -> None:
    while tree.process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{setting.url}/ready").status_code == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"the server has ended: see {HOME / 'soak.log'}")


if __name__ == "__main__":
    sys.exit(main())
