"""Whatever goes wrong with the disk or the database, beside an engine of each kind: the model is served as before,
requests that need the store wait or are told so, nothing is half-written, and all is well again afterwards.
"""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.disks import fill
from tests.faults.served import Hosted, Pt, Served
from tests.postgres import Postgres
from tests.until import PATIENCE, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults are made by means of Linux")

DISK = "16m"
LINES = b"".join(
    json.dumps(
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "m", "prompt": "x", "max_tokens": 20, "ignore_eos": True},
        }
    ).encode()
    + b"\n"
    for number in range(8)
)
OVER = ("completed", "failed", "expired", "cancelled")


class Store:
    """What a client asks of the store of a server, over connections of its own."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.folder = served.folder / "state"
        self.http = httpx.Client(base_url=served.process.url, timeout=PATIENCE)

    def upload(self) -> httpx.Response:
        return self.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", LINES)})

    def create_batch(self, file: str) -> httpx.Response:
        body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        return self.http.post("/v1/batches", json=body)

    def batch(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/batches/{id}").json()
        return found

    def check_completed(self, id: str) -> None:
        """Each request was answered once."""
        batch = until(lambda: now if (now := self.batch(id)).get("status") in OVER else None, told=self.served.log)
        assert (batch["status"], batch.get("errors")) == ("completed", None), self.served.log()
        lines = self.http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
        assert sorted(json.loads(line)["custom_id"] for line in lines) == [f"r{number}" for number in range(8)]

    def ids(self, path: str) -> set[str]:
        return {each["id"] for each in self.http.get(path).json()["data"]}

    def check_whole(self) -> None:
        """What the database knows of is there, and nothing else."""
        files = self.ids("/v1/files")
        until(lambda: {path.name for path in self.folder.glob("files/*/*")} == files)
        until(lambda: not [*self.folder.glob("batches/*/*")])


# ---- what goes wrong: each is there once it has been entered, and goes at its end


@contextmanager
def slow_disk(store: Store) -> Iterator[None]:
    if not (store.served.folder / "slow_disk.so").exists():
        pytest.skip("there is no C compiler")
    slow = store.served.folder / "slow"
    slow.touch()
    yield
    slow.unlink()


@contextmanager
def full_disk(store: Store) -> Iterator[None]:
    if not store.folder.is_mount():
        pytest.skip("no file system can be mounted here")
    rest = fill(store.folder)
    yield
    rest.unlink()


@contextmanager
def locked_database(store: Store) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(_file(store), timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def lost_database(store: Store) -> Iterator[None]:
    elsewhere = _file(store).with_name("elsewhere")
    _file(store).rename(elsewhere)
    yield
    elsewhere.rename(_file(store))


def _file(store: Store) -> Path:
    return store.folder / "store" / "tuneserve.sqlite3"


# ---- the matrix


@dataclass(frozen=True, kw_only=True)
class Fault:
    make: Callable[[Store], AbstractContextManager[None]]
    upload: int
    """Status of the answer to an upload."""
    batch: int
    """Status of the answer to a new batch."""
    lasts: bool = field(default=False)
    """Answers take a while."""


FAULTS = {
    "slow disk": Fault(make=slow_disk, upload=200, batch=200, lasts=True),
    "full disk": Fault(make=full_disk, upload=507, batch=507),
    "locked database": Fault(make=locked_database, upload=503, batch=503, lasts=True),
    "lost database": Fault(make=lost_database, upload=503, batch=503),
}
ENGINES: dict[str, type[Served]] = {"pt": Pt, "hosted": Hosted}


@pytest.fixture(scope="module", params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch, _small_disk(folder / "state"):
        if (shim := _slow_disk(folder)) is not None:
            patch.setenv("LD_PRELOAD", str(shim))
            patch.setenv("SLOW_DISK", str(folder / "slow"))
        with ENGINES[request.param].begun(folder, disk_reserve=0) as served:
            yield Store(served)


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own, where that can be had."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _slow_disk(folder: Path) -> Path | None:
    if (compiler := shutil.which("cc")) is None:
        return None
    source, shim = Path(__file__).with_name("slow_disk.c"), folder / "slow_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(shim), str(source)], check=True)
    return shim


@pytest.mark.parametrize("fault", FAULTS)
def test_the_model_is_served_and_nothing_is_half_written_by(store: Store, fault: str) -> None:
    check(store, FAULTS[fault])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_postgres_that_ends_and_comes_back_costs_only_what_needs_it(
    postgres: Postgres, tmp_path: Path, engine: str
) -> None:
    @contextmanager
    def lost_postgres(store: Store) -> Iterator[None]:
        postgres.stop()
        yield
        postgres.start()

    with postgres.database() as url, ENGINES[engine].begun(tmp_path, database_url=url) as served:
        check(Store(served), Fault(make=lost_postgres, upload=503, batch=503))


def check(store: Store, fault: Fault) -> None:
    served = store.served
    file = store.upload().json()["id"]
    running = store.create_batch(file).json()["id"]
    files, batches = store.ids("/v1/files"), store.ids("/v1/batches")
    made: list[str] = []
    with fault.make(store), ThreadPoolExecutor(2) as pool:
        asking = [(pool.submit(store.upload), fault.upload), (pool.submit(store.create_batch, file), fault.batch)]
        looks = 0
        while looks == 0 or not all(asked.done() for asked, _ in asking):
            assert (served.status("/health"), served.status("/ready")) == (200, 200)
            assert served.answers()
            looks += 1
        assert looks > 2 or not fault.lasts
        for asked, status in asking:
            assert asked.result().status_code == status, (asked.result().text, served.log())
        assert store.http.get("/v1/files").status_code in (200, 503)
        assert served.status("/metrics") == 200
        made = [asked.result().json()["id"] for asked, status in asking if status == 200]
    until(lambda: store.http.get("/v1/files").status_code == 200, told=served.log)
    new = store.ids("/v1/files") - files | store.ids("/v1/batches") - batches
    outputs = {each["id"] for each in store.http.get("/v1/files").json()["data"] if each["purpose"] == "batch_output"}
    assert new - outputs == set(made)
    for id in (running, *(id for id in made if id.startswith("batch_")), store.create_batch(file).json()["id"]):
        store.check_completed(id)
    store.check_whole()
