"""A model's folder compared with the repository of the hub that it came from."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from engines.checkpoint.hub import hub_errors, reason_of
from training.params.sft import SftParams
from training.report import Report

REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")
"""Name of a model's folder in the hub's cache."""
MOST_READ = 1 << 28
"""Bytes of a file that is read; of larger ones the size is compared."""
TIMEOUT = 10.0
"""Seconds for the hub to answer."""
MOST_TOLD = 5


def check_files(params: SftParams, report: Report) -> None:
    """Warn where the model's files are not what the hub has, and say where the hub cannot tell."""
    folder = Path(params.model or "").expanduser()
    if not params.check_model or report.discreet or not folder.is_dir():
        return  # what is named by an id was compared when it was downloaded
    repository = repository_of(folder)
    if repository is None:
        return
    try:
        wrong = differences(folder, repository, revision=params.model_revision, token=params.hub_token)
    except hub_errors() as error:
        told = f"the files of {folder.name} could not be compared with those of {repository} on the hub: "
        report.message(f"{told}{reason_of(error)}. check_model false leaves it out.")
        return
    if wrong:
        more = f" and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
        told = f"{folder.name} is not what {repository} is on the hub: {', '.join(wrong[:MOST_TOLD])}{more}"
        report.message(f"{told}. If that is meant, check_model false leaves the check out.", level="warn")


def repository_of(folder: Path) -> str | None:
    """The repository that the folder says it is a copy of: by its place in the hub's cache, or by its config.json."""
    for part in reversed(folder.absolute().parts):
        if found := CACHED.fullmatch(part):
            return f"{found['owner']}/{found['name']}"
    try:
        said = json.loads((folder / "config.json").read_bytes()).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) and REPOSITORY.fullmatch(said) and not Path(said).exists() else None


def differences(folder: Path, repository: str, *, revision: str | None, token: str | None) -> list[str]:
    """The files of both that are not the same, each with what differs. Raises what huggingface_hub raises."""
    from huggingface_hub import HfApi

    info = HfApi(token=token).model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT)
    found = ((each, folder / each.rfilename) for each in info.siblings or ())
    told = ((path.relative_to(folder), _difference(path, each)) for each, path in found if path.is_file())
    return [f"{path} has {what}" for path, what in told if what is not None]


def _difference(path: Path, there: Any) -> str | None:
    """What of a file is another than the hub's, which huggingface_hub describes by a RepoSibling."""
    size = path.stat().st_size
    if there.size is not None and size != there.size:
        return f"{size} bytes in place of {there.size}"
    if size > MOST_READ:
        return None
    content = path.read_bytes()
    if there.lfs is not None:
        same = hashlib.sha256(content).hexdigest() == there.lfs.sha256
    else:
        blob = hashlib.sha1(b"blob %d\0" % size + content, usedforsecurity=False).hexdigest()
        same = there.blob_id in (None, blob)
    return None if same else "another content"
