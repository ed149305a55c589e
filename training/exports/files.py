"""The files of a model or an adapter: copied, and written whole."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.adapters.disk import sync
from engines.checkpoint.gguf.named import is_gguf
from engines.checkpoint.loading import load_generation_config, load_tokenizer
from engines.errors import Conflict
from engines.text.templates import CHAT_TEMPLATE, template_in
from training.hub.upload import is_uploaded
from training.report import Report

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
BESIDE_WEIGHTS = (*TOKENIZER, "generation_config.json", "*processor_config.json", "*.py")
"""Files of a model that the merged one shares with it."""


def new_target(report: Report, name: str) -> Path:
    """The folder `name` within the job's, to be made. Raises Conflict where it is there."""
    target = report.folder.path / name
    if target.exists():
        raise Conflict(f"the job's folder has a {name!r} already, and nothing is overwritten")
    return target


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `target` at the end of the block, or goes if that fails."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            if path.suffix == ".safetensors":
                path.chmod(0o644)  # which safetensors leaves to its owner alone
            sync(path)
        partial.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_what_belongs_to_it(base: Path, adapters: list[Path], target: Path) -> None:
    """The base model's files as they are; over them the adapters' tokenizers and chat templates, where they bring
    some."""
    if is_gguf(str(base)):
        load_tokenizer(str(base)).save_pretrained(target)
        load_generation_config(str(base)).save_pretrained(target)
    for folder, patterns in ((base, BESIDE_WEIGHTS), *((adapter, TOKENIZER) for adapter in adapters)):
        template = template_in(folder)
        if template is not None:  # the base model's would go before it in a file of another kind
            shutil.rmtree(target / "additional_chat_templates", ignore_errors=True)
            (target / CHAT_TEMPLATE).write_text(template)
        for source in (path for pattern in patterns for path in folder.glob(pattern) if path.is_file()):
            copy = target / source.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, copy)


def model_folder(model: str, revision: str | None, token: str | None) -> Path:
    """Where the model's files are, or its one GGUF file; of a model on the hub, what the loading of weights did not
    bring is downloaded."""
    if (local := Path(model).expanduser()).is_dir() or is_gguf(model):
        return local
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, token=token, allow_patterns=list(BESIDE_WEIGHTS)))


def shard_bytes(size: str) -> int:
    """`5GB` -> 5000000000; `1MiB` -> 1048576."""
    found = re.fullmatch(r"([\d.]+)\s*([KMGT]?I?)B", size.upper())
    assert found, "the parameter's pattern"
    return int(float(found[1]) * UNITS[found[2]])


def copy_files(folder: Path, target: Path) -> None:
    """Write what a model or an adapter is loaded with, and nothing that only a training reads."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if is_uploaded(name.as_posix()):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
