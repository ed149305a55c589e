"""How a process is started that works on a job's folder, by a command or by the server."""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from training.machines import ALONE, Machines

Program = Literal["run", "validate"]
SECRET = re.compile(
    r"(^|_)(TOKENS?|KEYS?|SECRETS?|(PG)?PASSWORD|PASSWD|CREDENTIALS?|DATABASE_URL)($|_(ID|FILE|PATH)$)", re.IGNORECASE
)
"""Names of environment variables that give access to something, or say where it lies."""


def worker_command(
    folder: Path, *, program: Program = "run", processes: int = 1, machines: Machines = ALONE
) -> list[str]:
    """The words that run `folder`: by torchrun where it takes several processes, which then belong to one training.
    `processes`: on this one of the `machines`."""
    if machines.count > 1:
        return [sys.executable, "-m", "training.torchrun", str(folder), str(processes), *machines.as_words()]
    if processes > 1:
        return [sys.executable, "-m", "training.torchrun", str(folder), str(processes)]
    return [sys.executable, "-m", f"training.{program}", str(folder)]


def worker_environment(secrets: Mapping[str, str]) -> dict[str, str]:
    """Ours with `secrets`, but that a file beside the user's data is not taken for a library, that the log has every
    line at once, and that no library reports home."""
    settings = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **secrets, **settings}


def client_environment(*, online: bool) -> dict[str, str]:
    """The environment of a worker that runs a client's job: the server's, without secrets, and with those hidden that
    libraries look for by themselves. Unless `online`, the hub is not asked either: the served model is in its cache."""
    ours = {name: value for name, value in worker_environment({}).items() if not SECRET.search(name)}
    without = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN_PATH": os.devnull, "NETRC": os.devnull}
    return {**ours, **without, **({} if online else {"HF_HUB_OFFLINE": "1"})}


def missing_for_training() -> str | None:
    """Why no worker could run here."""
    missing = [name for name in ("peft", "trl", "datasets") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} is missing: pip install 'tuneserve[train]'" if missing else None
