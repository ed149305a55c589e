"""Where tuneserve keeps what it must know after a restart: adapters, files, jobs."""

import atexit
import shutil
import tempfile
from pathlib import Path

WAY_OUT = (
    "give this one a folder of its own by --state_dir, or have it keep no files, batches, jobs and adapters: "
    "--without_state true"
)
"""What to do where the folder cannot be had."""


def state_folder(state_dir: str | None) -> Path:
    """The folder that the parameter `state_dir` names, or else the user's data folder, as an absolute path: workers of
    jobs run in folders of their own. It need not exist yet."""
    from platformdirs import user_data_path

    return Path(state_dir).expanduser().absolute() if state_dir else user_data_path("tuneserve")


def private_folder(folder: Path) -> Path:
    """`folder`, a part of the state, made where it is missing. Only this user can enter it. Raises OSError."""
    for each in (folder.parent, folder):  # the mode is not for the parents of what is made
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def temporary_folder() -> Path:
    """A new folder in place of the state, for this user alone. It goes when the process ends by itself."""
    folder = Path(tempfile.mkdtemp(prefix="tuneserve-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
