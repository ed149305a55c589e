"""How the process is started that runs a job's folder."""

import os
import shutil
import sys
from pathlib import Path


def worker_command(folder: Path, *, processes: int = 1) -> list[str]:
    """The words that run `folder`: by torchrun where it takes several processes, which then belong to one training."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "training.run", str(folder)]
    # Else a worker whose parent is killed lives on: nobody would watch it, and its job might be started again.
    watched = shutil.which("setpriv")
    return [watched, "--pdeathsig", "KILL", *command] if watched else command


def worker_environment() -> dict[str, str]:
    """Ours, but that a file beside the user's data is not taken for a library, and that no library reports home."""
    return os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
