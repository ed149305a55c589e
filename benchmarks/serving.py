"""Serving, measured: our server and its peers, one after another and all of them again, on the same requests.

`make bench`, or `python -m benchmarks.serving --peers swift vllm --concurrency 1 32 --quick`. See benchmarks/README.md.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

from benchmarks import report
from benchmarks.environments import HOME, NotRun
from benchmarks.process import Tree
from benchmarks.servers import SERVERS, Server, Setting, with_port
from benchmarks.shapes import SHAPES, model_of
from benchmarks.workload import MODES, OUTPUT_TOKENS, PROMPT_TOKENS, Load, make_prompts
from engines.checkpoint.loading import choose_dtype, load_config, load_tokenizer
from engines.process.machine import usable_cores

REQUESTS = {1: 3, 8: 16, 32: 64}
"""How many, by concurrency; others: twice the concurrency."""
WARM_UP_TOKENS = 8
START_SECONDS = 600
"""vLLM compiles at its first start."""


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended with us
    HOME.mkdir(exist_ok=True)
    if arguments.shape:
        arguments.model = str(model_of(arguments.shape))
    setting = replace(
        make_setting(arguments), prompt_tokens=arguments.prompt_tokens, output_tokens=arguments.output_tokens
    )
    servers = [server for server in SERVERS if server.name in arguments.peers]
    ready, runs = prepare(servers, arguments.torch_index)
    report.check_quiet()
    began = time.time()
    for measured in (measure_together if arguments.together else measure_in_turns)(ready, setting, arguments):
        runs += measured
        report.write(runs, setting, arguments, time.time() - began)  # a run that is cut off keeps what it has
    document = report.write(runs, setting, arguments, time.time() - began)
    sys.stdout.write(f"\n{report.tables(document)}\n")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    names = [server.name for server in SERVERS]
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    add = parser.add_argument
    add("--peers", nargs="+", choices=names, default=names, help="what to measure (default: all)", metavar="NAME")
    add("--concurrency", nargs="+", type=int, default=[1, 8, 32], metavar="N")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--requests", type=int, help="for each measurement (default: 3, 16, 64 at concurrency 1, 8, 32)")
    add("--prompt-tokens", type=int, default=PROMPT_TOKENS, help="of each request (default: %(default)s)")
    add("--output-tokens", type=int, default=OUTPUT_TOKENS, help="of each answer (default: %(default)s)")
    add(
        "--repeats", type=int, default=2, help="how often each is started and measured, all in turns; the median counts"
    )
    add("--together", action="store_true", help="start all at once: each measurement of one is followed by the others'")
    add("--quick", action="store_true", help="one round, few requests: does everything run?")
    add("--threads", type=int, help="of every server (default: as many as the engine takes)")
    add("--dtype", choices=["float32", "bfloat16"], help="of every server (default: the fastest on this machine)")
    add("--model", help="a folder (default: the demo model)")
    add("--shape", choices=SHAPES, help="in place of a model: one of this shape with random weights")
    add("--port", type=int, default=8190, help="the first of one for each server")
    add("--torch-index", help="index that torch comes from in the peers' environments")
    arguments = parser.parse_args(argv)
    alone = [server.name for server in SERVERS if server.one_mode and server.name in arguments.peers]
    if arguments.together and alone and len(arguments.modes) > 1:
        parser.error(f"--together: {alone[0]} is started anew for each mode: name one of --modes")
    return arguments


def make_setting(arguments: argparse.Namespace) -> Setting:
    from engines.setup.demo import demo_model

    model = arguments.model or str(demo_model())
    dtype = str(choose_dtype(arguments.dtype, load_config(model), "cpu")).removeprefix("torch.")
    threads = arguments.threads or usable_cores()
    return Setting(model=model, dtype=dtype, threads=threads, port=arguments.port)


def prepare(servers: list[Server], torch_index: str | None) -> tuple[list[Server], list[report.Row]]:
    """Make the environments before anything is measured. Returns the servers to run, and why each other one is not."""
    ready, runs = [], []
    for server in servers:
        try:
            if server.environment is not None:
                report.say(f"{server.name}: its environment")
                server.environment.prepare(torch_index)
            ready.append(server)
        except NotRun as reason:
            runs.append(report.not_run(server, str(reason)))
    return ready, runs


def measure_in_turns(
    servers: list[Server], setting: Setting, arguments: argparse.Namespace
) -> Iterator[list[report.Row]]:
    """All of them before any again: a machine is faster at one time than at another, and so both sides of a ratio get
    some of each."""
    for number in range(rounds(arguments)):
        for server in servers:
            yield measure_server(server, with_port(setting, server), arguments, number)


def measure_together(
    servers: list[Server], setting: Setting, arguments: argparse.Namespace
) -> Iterator[list[report.Row]]:
    """The same while all of them are up, so that both sides of a ratio are measured within seconds. Who comes first
    changes from round to round."""
    with ExitStack() as stack:
        running = []
        for server in servers:
            own = with_port(setting, server)
            try:
                running.append((server, own, *stack.enter_context(started(server, own, arguments.modes[0]))))
            except NotRun as reason:
                yield [report.not_run(server, str(reason))]
            else:
                running[-1][2].watched = False
        for number in range(rounds(arguments)):
            for mode in arguments.modes:
                for concurrency in arguments.concurrency:
                    for one in [one for one in running if mode in one[0].modes][:: -1 if number % 2 else 1]:
                        server, own, tree, driver, startup = one
                        tree.watched = True
                        try:
                            run = measure(server, own, tree, driver, mode, concurrency, arguments, number)
                        except NotRun as reason:
                            running.remove(one)
                            yield [report.not_run(server, str(reason))]
                            continue
                        finally:
                            tree.watched = False
                        report.say_row(run)
                        yield [run | {"startup_seconds": startup, **asdict(tree.peak)}]


def rounds(arguments: argparse.Namespace) -> int:
    return 1 if arguments.quick else arguments.repeats


def measure_server(server: Server, setting: Setting, arguments: argparse.Namespace, number: int) -> list[report.Row]:
    """All measurements of one server in one round, the last of which may say why there are no more."""
    runs: list[report.Row] = []
    modes = [mode for mode in arguments.modes if mode in server.modes]
    lives = [[mode] for mode in modes] if server.one_mode else [modes] if modes else []
    try:
        for life in lives:
            with started(server, setting, life[0]) as (tree, driver, startup):
                for mode in life:
                    for concurrency in arguments.concurrency:
                        run = measure(server, setting, tree, driver, mode, concurrency, arguments, number)
                        runs.append(run | {"startup_seconds": startup, **asdict(tree.peak)})
                        report.say_row(runs[-1])
    except NotRun as reason:
        runs.append(report.not_run(server, str(reason)))
    return runs


@contextmanager
def started(server: Server, setting: Setting, mode: str) -> Iterator[tuple[Tree, "Driver", float]]:
    """The server, running and ready; its driver; and how long it took to its first answer."""
    log = HOME / f"{server.name}.log"
    report.say(f"{server.name}: starting ({log})")
    variables = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1", **server.variables}
    if not server.http:
        with Tree(server.command(setting), variables, log, talks=True) as tree:
            driver = Driver(tree.process)
            driver.wait_until_ready()
            wait_for_answer(server, setting, driver, tree, mode)
            yield tree, driver, time.perf_counter() - tree.started
        return
    refuse_taken_port(setting)
    client = [sys.executable, "-m", "benchmarks.client", setting.url, server.model_name(setting)]
    with Tree(client, {}, HOME / "client.log", talks=True) as asking:
        driver = Driver(asking.process)
        driver.wait_until_ready()
        with Tree(server.command(setting), variables, log) as tree:
            wait_for_answer(server, setting, driver, tree, mode)
            yield tree, driver, time.perf_counter() - tree.started


class Driver:
    """What sends requests, in a process of its own: see `driver`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def wait_until_ready(self) -> None:
        self._read()

    def run(self, load: Load) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(load)) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise NotRun("its process ended; see its log under .bench/")


def refuse_taken_port(setting: Setting) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", setting.port)) == 0:
            raise SystemExit(f"port {setting.port} is taken: end what listens there, or choose another with --port")


def wait_for_answer(server: Server, setting: Setting, driver: Driver, tree: Tree, mode: str) -> None:
    """Ask until it answers. Raises NotRun where it ends or takes too long."""
    load = make_load(server, setting, mode, 1, 1, seed=0)
    load = replace(load, output_tokens=WARM_UP_TOKENS)
    while True:
        answer = driver.run(load)["answers"][0]
        if not answer["error"]:
            return
        if tree.process.poll() is not None:
            raise NotRun(f"it ended while it started, with status {tree.process.returncode}: {last_line(server)}")
        if time.perf_counter() - tree.started > START_SECONDS:
            raise NotRun(f"it gave no answer in {START_SECONDS} s: {answer['error'][:300]}")
        time.sleep(0.1)


def last_line(server: Server) -> str:
    """The last thing its log says, which usually names the reason."""
    lines = (HOME / f"{server.name}.log").read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "its log is empty"


def make_load(server: Server, setting: Setting, mode: str, concurrency: int, requests: int, *, seed: int) -> Load:
    return Load(
        messages=make_prompts(load_tokenizer(setting.model), requests, seed=seed, tokens=setting.prompt_tokens),
        concurrency=concurrency,
        sampling=MODES[mode],
        output_tokens=setting.output_tokens,
        extra=server.body(MODES[mode]),
    )


def measure(
    server: Server,
    setting: Setting,
    tree: Tree,
    driver: Driver,
    mode: str,
    concurrency: int,
    arguments: argparse.Namespace,
    number: int,
) -> report.Row:
    """A warm-up, then one measurement, each on prompts of its own."""
    head = {"server": server.name, "title": server.title, "mode": mode, "concurrency": concurrency}
    if concurrency > server.most:
        return head | {"not_run": f"it answers one request at a time: above {server.most} they only queue"}
    warm_up = make_load(server, setting, mode, concurrency, concurrency, seed=seed_of(mode, concurrency, 0))
    driver.run(replace(warm_up, output_tokens=WARM_UP_TOKENS))
    requests = arguments.requests or (concurrency if arguments.quick else REQUESTS.get(concurrency, 2 * concurrency))
    load = make_load(server, setting, mode, concurrency, requests, seed=seed_of(mode, concurrency, 1 + number))
    before = tree.cpu_seconds()
    done = driver.run(load)
    return head | report.summarize(done, cpu_seconds=tree.cpu_seconds() - before) | {"requests": requests}


def seed_of(mode: str, concurrency: int, number: int) -> int:
    """A seed for the prompts of one measurement; the same for every server."""
    return (list(MODES).index(mode) * 1000 + concurrency) * 100 + number + 1


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
