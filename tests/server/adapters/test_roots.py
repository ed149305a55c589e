"""Adapters are found under their roots and nowhere else, and a refusal does not tell what is there."""

import os
from pathlib import Path

import pytest

from engines.errors import InvalidRequest, NotFound
from server.adapters.roots import AdapterRoots


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret" / "theirs").mkdir(parents=True)
    (tmp_path / "root" / "org" / "sql").mkdir(parents=True)
    (tmp_path / "root" / "file").touch()
    return tmp_path / "root"


def test_a_path_under_a_root_is_found_relative_or_absolute(root: Path, tmp_path: Path) -> None:
    roots = AdapterRoots([str(tmp_path / "secret"), str(root)])
    for path in ("org/sql", f"{root}/org/sql", f"{root}/./org/../org/sql/", "theirs"):
        assert roots.find(path, param="lora_path").name in ("sql", "theirs")


def test_a_root_may_itself_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    found = AdapterRoots([str(tmp_path / "link")]).find(f"{tmp_path}/link/org/sql", param="path")
    assert found == (root / "org" / "sql").resolve()


def test_a_link_that_stays_under_the_roots_is_followed(root: Path) -> None:
    (root / "latest").symlink_to(root / "org" / "sql")
    assert AdapterRoots([str(root)]).find("latest", param="path") == (root / "org" / "sql").resolve()


def outside_paths(root: Path) -> list[str]:
    """Ways out of the root: to what is there, and to what is not."""
    (root / "out").symlink_to(root.parent / "secret")
    (root / "dangling").symlink_to(root.parent / "nowhere")
    (root / "circle").symlink_to(root / "circle")
    secret = root.parent / "secret"
    return [
        f"{secret}/theirs",
        f"{secret}/nothing",
        "../secret/theirs",
        "../secret/nothing",
        f"{root}/../secret/theirs",
        f"{root}/org/../../secret/theirs",
        f"{root}-of-evil",
        "out/theirs",
        "dangling",
        "circle/theirs",
        "/",
        "..",
        "/etc",
        "a\x00b",
        "a" * 5000,
    ]


def test_whatever_leads_out_of_the_roots_is_refused_in_the_same_words(root: Path) -> None:
    roots = AdapterRoots([str(root)])
    messages = set()
    for path in outside_paths(root):
        with pytest.raises(InvalidRequest) as refused:
            roots.find(path, param="lora_path")
        assert refused.value.param == "lora_path", path
        messages.add(refused.value.message)
    assert messages == {"'lora_path' must lie under a folder of adapter_roots."}


def test_what_is_not_under_the_root_is_not_found_and_its_path_is_not_told(root: Path) -> None:
    for path in ("nothing", "org/nothing", "file", "file/nothing", f"{root}/nothing"):
        with pytest.raises(NotFound) as missing:
            AdapterRoots([str(root)]).find(path, param="lora_path")
        assert str(root) not in missing.value.message and "nothing" not in missing.value.message


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is locked for root")
def test_a_locked_folder_is_refused(root: Path) -> None:
    (root / "org").chmod(0)
    try:
        with pytest.raises(InvalidRequest):
            AdapterRoots([str(root)]).find("org/sql", param="path")
    finally:
        (root / "org").chmod(0o700)


def test_without_roots_the_parameter_that_sets_them_is_named(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="adapter_roots"):
        AdapterRoots([]).find(str(root / "org" / "sql"), param="lora_path")
