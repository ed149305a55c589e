"""The parameter `adapters`: names, folders, hub ids."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from engines.adapters.source import fetch_adapter, name_adapters
from engines.adapters.spec import CONFIG, INSERTED_CONFIG, INSERTED_WEIGHTS, MODEL_CONFIG, WEIGHTS
from engines.errors import InvalidAdapter
from engines.text.templates import TEMPLATES


def test_an_adapter_has_the_name_it_is_given_or_the_last_part_of_its_path() -> None:
    named = name_adapters(["sql=/adapters/sql-v3", "/adapters/polite/", "org/translator"])
    assert named == {"sql": "/adapters/sql-v3", "polite": "/adapters/polite/", "translator": "org/translator"}


def test_a_folder_is_a_path_whatever_signs_are_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1e-4"
    folder.mkdir()
    assert name_adapters([str(folder)]) == {"lr=1e-4": str(folder)}
    assert name_adapters([f"a={folder}"]) == {"a": str(folder)}


@pytest.mark.parametrize("text", ["=path", "name=", "", "/"])
def test_what_lacks_a_name_or_a_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidAdapter, match="NAME=PATH"):
        name_adapters([text])


def test_two_adapters_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidAdapter, match="'a'"):
        name_adapters(["a=x", "y/a"])


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert fetch_adapter(str(tmp_path), token=None) == tmp_path


def test_what_is_no_folder_is_downloaded_without_what_could_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch_adapter("org/translator", token="t") == tmp_path
    files = [CONFIG, WEIGHTS, MODEL_CONFIG, INSERTED_CONFIG, INSERTED_WEIGHTS, *TEMPLATES]
    assert asked == [("org/translator", {"token": "t", "allow_patterns": files})]


def test_what_is_neither_a_folder_nor_on_the_hub_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidAdapter, match="no folder") as refused:
        fetch_adapter("./not/a/folder/at/all", token=None)
    assert refused.value.param == "adapters"


def test_an_adapter_in_a_gguf_file_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidAdapter, match=r"'sql\.gguf' is a GGUF file: adapters are read as PEFT writes them"):
        fetch_adapter("/adapters/sql.gguf", token=None)
