"""Processes beside the test's own, any of which may end, or be a zombie, while it is looked at."""

import contextlib
from collections.abc import Iterable, Iterator

import psutil

ENGINE = "engines.pt.process"


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def command_of(process: psutil.Process) -> str:
    """Its name and the words it was started with; nothing where it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join([process.name(), *process.cmdline()])
    return ""


def whose_commands_have(word: str, processes: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
    return (process for process in processes if word in command_of(process))


def family(pid: int) -> list[psutil.Process]:
    """The process and all it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def engine_of(pid: int, program: str = ENGINE) -> psutil.Process:
    """The process of the engine that the server `pid` has started."""
    return next(whose_commands_have(program, psutil.Process(pid).children()))
