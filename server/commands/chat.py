"""`tuneserve infer` without a data set: a conversation at the terminal."""

import contextlib
import logging
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from engines.adapters.source import name_adapters
from engines.checkpoint.gguf.named import name_of
from engines.errors import TuneserveError
from engines.setup.cache import cache_folder
from server.commands.train import failed
from server.infer.talk import Ended, Talk, read_message
from training.params.task import InferTask

HISTORY = "infer_history"
"""File of the cache folder with what was typed."""
MOST_LINES = 1000


def talk(task: InferTask) -> int:
    """Talk until the end of the input; return the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _end)
    try:
        with tempfile.TemporaryDirectory(prefix="tuneserve-") as folder:
            return _talk(task, Path(folder))
    except TuneserveError as error:
        return failed(task, error.message, error.param)
    except KeyboardInterrupt:  # while the model is loaded
        return 128 + signal.SIGINT


def _talk(task: InferTask, folder: Path) -> int:
    from server.infer.beginning import merged, with_checkpoint
    from server.infer.speaker import speaking
    from training.folder import JobFolder
    from training.report import Report

    params = with_checkpoint(task.params)
    _tell(f"Loading {name_of(params.model or '')}.\n")
    params = merged(params, Report(JobFolder(folder)))
    with speaking(params) as speaker, _history():
        model = next(iter(name_adapters(params.adapters)), speaker.names()[0])
        _tell(f"{model} listens; /help lists the commands.\n")
        conversation = Talk(speaker, _show, model, system=None)
        with contextlib.suppress(Ended, EOFError):
            while True:
                _hear(conversation)
    return 0


def _hear(conversation: Talk) -> None:
    try:
        conversation.hear(read_message(_read))
    except KeyboardInterrupt:  # of what is being typed nothing is said
        _show("\n")


def _read(prompt: str) -> str:
    return input(prompt if sys.stdin.isatty() else "")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _tell(text: str) -> None:
    """What is no answer."""
    sys.stderr.write(text)


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines can be edited, and those of earlier conversations found again, where Python has readline."""
    try:
        import readline
    except ImportError:  # on Windows
        yield
        return
    file = cache_folder() / HISTORY
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        if sys.stdin.isatty():
            readline.set_history_length(MOST_LINES)
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch(mode=0o600)
                readline.write_history_file(file)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
