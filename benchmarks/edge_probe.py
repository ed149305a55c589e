"""What one request costs others: how long `/health` takes meanwhile, and how far the server's memory goes up."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.edge_cases import Case

MIB = 1 << 20
EVERY_SECONDS = 0.01
PATIENCE = 120
GONE = 0
"""Status of a request that was not waited for to its end."""
GRAMMARS_SECONDS = 0.5
"""Until the server is at the grammars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    name: str
    status: int
    """GONE where the engine took too long."""
    seconds: float
    """Until the request was answered."""
    worst_health_seconds: float
    body_mib: float
    memory_mib: float
    """Highest resident memory of the server's process meanwhile, above that before."""

    @property
    def memory_allowed_mib(self) -> float:
        return 10 * self.body_mib + 100


def cost_of(case: Case, url: str, pid: int, *, patience: float = PATIENCE) -> Cost:
    """Send the case to the server with this process, alone, and watch; go away after `patience` seconds."""
    _ask(url, "GET", "/health")
    before = _forget_peak(pid)
    watched = _Watched(url)
    began = time.perf_counter()
    try:
        status = _ask(url, "POST", case.path, case.body, patience=patience)
    except TimeoutError:
        status = GONE
    finally:
        seconds = time.perf_counter() - began
        worst = watched.end()
    return Cost(
        name=case.name,
        status=status,
        seconds=seconds,
        worst_health_seconds=worst,
        body_mib=len(case.body) / MIB,
        memory_mib=max(0.0, (_memory(pid, "VmHWM") - before) / MIB),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """How long prompts took to be tokenized beside hostile grammars."""

    worst_seconds: float
    statuses: list[int]
    """Of the requests with grammars that have been answered meanwhile."""


def beside_grammars(grammars: Sequence[Case], prompts: Iterable[Case], url: str) -> Beside:
    """Send all grammars at once, and then the prompts, one after another. Does not wait for the grammars' answers."""
    statuses: list[int] = []

    def send(grammar: Case) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the server may end first
            statuses.append(_ask(url, "POST", grammar.path, grammar.body))

    for grammar in grammars:
        threading.Thread(target=send, args=(grammar,), daemon=True).start()
    time.sleep(GRAMMARS_SECONDS)
    worst = 0.0
    for prompt in prompts:
        began = time.perf_counter()
        if (status := _ask(url, "POST", prompt.path, prompt.body)) != 200:
            raise RuntimeError(f"the prompt was answered with {status}")
        worst = max(worst, time.perf_counter() - began)
    return Beside(worst_seconds=worst, statuses=sorted(statuses))


class _Watched:
    """A thread that asks for /health every 10 ms until `end`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._worst = 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """The longest that an answer took, in seconds."""
        self._ending.set()
        self._thread.join()
        return self._worst

    def _run(self) -> None:
        connection = _connection(self._url)
        while True:
            began = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self._worst = max(self._worst, time.perf_counter() - began)
            if self._ending.wait(EVERY_SECONDS):
                return connection.close()


def _connection(url: str, patience: float = PATIENCE) -> http.client.HTTPConnection:
    address = urlsplit(url)
    assert address.hostname is not None
    return http.client.HTTPConnection(address.hostname, address.port, timeout=patience)


def _ask(url: str, method: str, path: str, body: bytes | None = None, *, patience: float = PATIENCE) -> int:
    connection, deadline = _connection(url, patience), time.perf_counter() + patience
    headers = {} if body is None else {"content-type": "application/json"}
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    while reply.read1(MIB):
        if time.perf_counter() > deadline:
            raise TimeoutError
    connection.close()
    return reply.status


def _forget_peak(pid: int) -> int:
    """Let the peak of the process's memory begin anew, at what it has now (proc(5)); bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _memory(pid, "VmRSS")


def _memory(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))
