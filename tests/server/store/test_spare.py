"""On a disk that is full to the last byte, what makes room is done, and nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.errors import StorageFull
from server.store import spare
from server.store.database import Database
from server.store.spare import Spare
from tests.disks import fill, small_disk
from tests.server.files.test_files import Api
from tests.server.process import ServerProcess
from tests.server.states import as_state

MIB = 1 << 20
SPARE = "tuneserve.spare"


@pytest.fixture(autouse=True)
def as_large_as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "SIZE", MIB)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 8 * MIB) as disk:
        yield disk


def test_files_are_deleted_through_the_api(disk: Path, start_echo: Callable[..., ServerProcess]) -> None:
    settings = {"state_dir": str(as_state(disk / "state")), "disk_reserve": 0, "verbose": False}
    api = Api(start_echo(params=settings), disk / "state")
    spared = api.folder / "store" / SPARE
    ids = [api.upload(content=b"x" * MIB, purpose="batch").json()["id"] for _ in range(2)]
    assert spared.stat().st_size == MIB
    fill(disk)
    assert api.upload(purpose="batch").status_code == 507
    for id in ids:
        assert api.http.delete(f"/v1/files/{id}").json() == {"id": id, "object": "file", "deleted": True}
    assert api.contents() == [] and api.http.get("/v1/files").json()["data"] == []
    assert not spared.exists()
    (disk / "rest").unlink()
    api.http.delete(f"/v1/files/{api.upload(purpose='batch').json()['id']}")
    assert spared.stat().st_size == MIB


async def test_a_server_starts(disk: Path) -> None:
    database = Database(disk)
    await database.open()
    await database.close()
    fill(disk)
    await database.open()
    async with database.freeing():
        pass
    await database.close()


async def test_without_it_a_change_is_refused_as_any_other(disk: Path) -> None:
    database = Database(disk)
    await database.open()
    (disk / "store" / SPARE).unlink()
    fill(disk)
    with pytest.raises(StorageFull):
        async with database.freeing() as connection:
            await connection.exec_driver_sql("CREATE TABLE notes (words TEXT)")
    await database.close()


def test_room_that_is_not_there_is_not_held(disk: Path) -> None:
    held = Spare(disk / SPARE)
    rest = fill(disk)
    held.restore()
    assert not held.file.exists()
    rest.unlink()
    held.restore()
    held.give_up_if_full()  # it is not
    assert held.file.stat().st_size == MIB
