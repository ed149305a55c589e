"""Where tuneserve keeps what it must know after a restart: adapters, later files and jobs."""

from pathlib import Path


def state_folder(state_dir: str | None) -> Path:
    """The folder that the parameter `state_dir` names, or else the user's data folder. It need not exist yet."""
    from platformdirs import user_data_path

    return Path(state_dir).expanduser() if state_dir else user_data_path("tuneserve")
