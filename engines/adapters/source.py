"""The parameter `adapters`: folders or repositories on the Hugging Face hub, each with the name to serve it by."""

from collections.abc import Iterable
from pathlib import Path, PurePath

from engines.adapters.spec import CONFIG, INSERTED_CONFIG, INSERTED_WEIGHTS, MODEL_CONFIG, WEIGHTS
from engines.checkpoint.gguf.named import is_gguf
from engines.checkpoint.hub import reason_of
from engines.errors import InvalidAdapter
from engines.text.templates import TEMPLATES


def name_adapters(texts: Iterable[str]) -> dict[str, str]:
    """Name -> folder or hub id, from `NAME=PATH` or a path alone, which is named by its last part.

    A text that is a folder is a path alone, whatever signs are in it. Raises InvalidAdapter where a name comes twice.
    """
    named: dict[str, str] = {}
    for text in texts:
        name, source = _split(text)
        if not name or not source:
            raise InvalidAdapter(f"{text!r} is neither a path nor NAME=PATH", param="adapters")
        if name in named:
            message = f"two adapters have the name {name!r}: give them others, as NAME=PATH"
            raise InvalidAdapter(message, param="adapters")
        named[name] = source
    return named


def _split(text: str) -> tuple[str, str]:
    if "=" not in text or Path(text).expanduser().is_dir():
        return PurePath(text).name, text
    name, _, source = text.partition("=")
    return name, source


def whole_path(text: str) -> str:
    """`text`, a path, a hub id or `NAME=PATH`, with its folder or GGUF file by its whole path, where it names one."""
    name, source = _split(text)
    folder = Path(source).expanduser()
    if not source or not (folder.is_dir() or is_gguf(source)):
        return text
    return str(folder.resolve()) if source == text else f"{name}={folder.resolve()}"


def fetch_adapter(source: str, *, token: str | None) -> Path:
    """The folder of an adapter, downloaded where `source` is no folder but a hub id. Raises InvalidAdapter."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if is_gguf(source):
        message = (
            f"{folder.name!r} is a GGUF file: adapters are read as PEFT writes them, so name the folder it was made of"
        )
        raise InvalidAdapter(message, param="adapters")
    if folder.is_absolute():
        raise InvalidAdapter(f"there is no folder {folder.name!r}", param="adapters")
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download

    files = [CONFIG, WEIGHTS, MODEL_CONFIG, INSERTED_CONFIG, INSERTED_WEIGHTS, *TEMPLATES]
    try:
        return Path(snapshot_download(source, token=token, allow_patterns=files))
    except (OSError, ValueError, HTTPError) as error:
        message = f"{source!r} is no folder, so it was looked up as a hub id: {reason_of(error)}"
        raise InvalidAdapter(message, param="adapters") from error
