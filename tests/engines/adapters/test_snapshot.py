"""Private copies: only the two files, never through a link, shared by what is alike."""

import asyncio
import os
import shutil
import stat
from pathlib import Path

import pytest

from engines.adapters import snapshot as adapter_snapshot
from engines.adapters.snapshot import Snapshots
from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import InvalidAdapter, NotFound
from tests.adapter_folders import ECHO, write_adapter


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    snapshots = Snapshots(tmp_path / "state")
    snapshots.open([])
    return snapshots


def left(tmp_path: Path) -> list[str]:
    """The copies, and what lies in `partial`."""
    return sorted(path.name for name in ("copies", "partial") for path in (tmp_path / "state" / name).iterdir())


async def test_a_copy_has_the_two_files_and_only_its_user_can_read_it(snapshots: Snapshots, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a")
    (source / "optimizer.pt").write_text("large")
    (source / "checkpoint").mkdir()
    snapshot = await snapshots.take(source, ECHO)
    copy = snapshot.spec.folder
    assert {path.name for path in copy.iterdir()} == {CONFIG, WEIGHTS}
    assert all((copy / name).read_bytes() == (source / name).read_bytes() for name in (CONFIG, WEIGHTS))
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert left(tmp_path) == [snapshot.id]


async def test_the_source_may_vanish(snapshots: Snapshots, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a")
    snapshot = await snapshots.take(source, ECHO)
    shutil.rmtree(source)
    assert (await snapshots.read(snapshot.id, ECHO)).spec == snapshot.spec


async def test_what_is_alike_is_kept_once_and_goes_with_its_last_user(snapshots: Snapshots, tmp_path: Path) -> None:
    sources = [write_adapter(tmp_path / name) for name in "abc"]
    taken = await asyncio.gather(*(snapshots.take(source, ECHO) for source in sources))
    assert len({snapshot.id for snapshot in taken}) == 1
    for snapshot in taken:
        assert left(tmp_path) == [snapshot.id]
        await snapshots.drop(snapshot.id)
    assert left(tmp_path) == []


async def test_a_copy_can_be_taken_while_its_last_user_drops_it(snapshots: Snapshots, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a")
    snapshot = await snapshots.take(source, ECHO)
    for _ in range(20):
        _, again = await asyncio.gather(snapshots.drop(snapshot.id), snapshots.take(source, ECHO))
        assert left(tmp_path) == [again.id]
        assert (await snapshots.read(again.id, ECHO)).spec == again.spec


async def test_what_says_something_else_of_its_base_model_is_another_copy_of_the_same_content(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    one = await snapshots.take(write_adapter(tmp_path / "a"), ECHO)
    other = await snapshots.take(write_adapter(tmp_path / "b", base_model_name_or_path=None), ECHO)
    assert one.id != other.id and one.content_hash == other.content_hash


# ---- links and other things that are not files


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
async def test_a_link_is_not_followed(snapshots: Snapshots, tmp_path: Path, name: str) -> None:
    source = write_adapter(tmp_path / "a")
    (source / name).rename(tmp_path / name)
    (source / name).symlink_to(tmp_path / name)
    with pytest.raises(InvalidAdapter, match="symbolic link") as error:
        await snapshots.take(source, ECHO)
    assert error.value.param == name
    assert left(tmp_path) == []


async def test_a_folder_that_is_a_link_is_not_followed(snapshots: Snapshots, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(NotFound):
        await snapshots.take(tmp_path / "b", ECHO)


async def test_links_are_followed_where_that_is_asked_for_and_the_copy_has_files(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    blobs = write_adapter(tmp_path / "blobs")
    (tmp_path / "hub").mkdir()
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "hub" / name).symlink_to(blobs / name)
    (tmp_path / "main").symlink_to(tmp_path / "hub")
    snapshot = await snapshots.take(tmp_path / "main", ECHO, follow_links=True)
    assert not any(path.is_symlink() for path in snapshot.spec.folder.iterdir())


async def test_a_pipe_is_not_waited_for(snapshots: Snapshots, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a")
    (source / CONFIG).unlink()
    os.mkfifo(source / CONFIG)
    with pytest.raises(InvalidAdapter) as error:
        await snapshots.take(source, ECHO)
    assert error.value.param == CONFIG


async def test_a_folder_in_the_place_of_a_file_is_refused(snapshots: Snapshots, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a")
    (source / WEIGHTS).unlink()
    (source / WEIGHTS).mkdir()
    with pytest.raises(InvalidAdapter) as error:
        await snapshots.take(source, ECHO)
    assert error.value.param == WEIGHTS


# ---- what fails leaves nothing


async def test_a_folder_that_is_not_there_is_not_found_and_its_path_is_not_told(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    for folder in (tmp_path / "nothing", write_adapter(tmp_path / "a") / CONFIG):
        with pytest.raises(NotFound) as error:
            await snapshots.take(folder, ECHO)
        assert str(tmp_path) not in error.value.message
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
async def test_a_folder_that_lacks_a_file_is_refused(snapshots: Snapshots, tmp_path: Path, name: str) -> None:
    source = write_adapter(tmp_path / "a")
    (source / name).unlink()
    with pytest.raises(InvalidAdapter) as error:
        await snapshots.take(source, ECHO)
    assert error.value.param == name
    assert left(tmp_path) == []


async def test_what_is_too_large_for_any_adapter_is_not_copied(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_snapshot, "_largest_file", lambda support: 1000)
    with pytest.raises(InvalidAdapter, match="larger") as error:
        await snapshots.take(write_adapter(tmp_path / "a"), ECHO)
    assert error.value.param == WEIGHTS
    assert left(tmp_path) == []


async def test_the_largest_adapter_that_can_be_served_is_not_too_large(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_snapshot, "LONGEST_HEADER", 64 << 10)
    from tests.adapter_folders import lora_tensors

    tensors = lora_tensors([*ECHO.linears, *ECHO.embeddings], rank=ECHO.max_rank)
    tensors = {name: tensor.astype("float64") for name, tensor in tensors.items()}
    snapshot = await snapshots.take(write_adapter(tmp_path / "a", tensors=tensors, r=ECHO.max_rank), ECHO)
    assert snapshot.spec.rank == ECHO.max_rank


# ---- after a crash


async def test_opening_removes_what_nobody_needs(snapshots: Snapshots, tmp_path: Path) -> None:
    kept, orphan = [await snapshots.take(write_adapter(tmp_path / f"{i}", seed=i), ECHO) for i in range(2)]
    (tmp_path / "state" / "partial" / "half").mkdir()
    (tmp_path / "state" / "partial" / "half" / CONFIG).touch()
    again = Snapshots(tmp_path / "state")
    again.open([kept.id, kept.id])
    assert left(tmp_path) == [kept.id]
    await again.drop(kept.id)
    assert left(tmp_path) == [kept.id]
    await again.drop(kept.id)
    assert left(tmp_path) == [] and orphan.id != kept.id


async def test_a_copy_that_has_gone_or_is_damaged_is_refused_and_can_be_dropped(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    snapshot = await snapshots.take(write_adapter(tmp_path / "a"), ECHO)
    (snapshot.spec.folder / WEIGHTS).write_bytes(b"half")
    with pytest.raises(InvalidAdapter):
        await snapshots.read(snapshot.id, ECHO)
    shutil.rmtree(snapshot.spec.folder)
    with pytest.raises(InvalidAdapter):
        await snapshots.read(snapshot.id, ECHO)
    await snapshots.drop(snapshot.id)
    assert left(tmp_path) == []
