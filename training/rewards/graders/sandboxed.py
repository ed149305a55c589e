"""The process that a Python grader's code runs in: `python -I sandboxed.py < LINES`, which answers each line in one.

Before the code is looked at, the process gives up, for good, all that a process can do but to compute: a filter of the
kernel (seccomp) allows the few system calls below and refuses all others with EPERM. So there are no files, no network,
no other process and no signal to one, whatever the code finds in Python, ctypes or its own machine code. It imports the
modules that the code names beforehand, as it cannot open a file afterwards. Its parent bounds the time of an answer and
its length; memory and processor time are bounded here.

This file stands alone: it imports nothing of ours, and its process gets no environment, no secrets and no open files.
"""

import ast
import codecs
import ctypes
import importlib
import io
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
import traceback
from contextlib import suppress

MEMORY = 1 << 30
"""Bytes of addresses."""
CPU_SECONDS = 600
"""Of all its answers together: the parent bounds each."""
MAX_FILES = 256
"""Files that this process has opened by itself, at most."""
MAX_DETAILS = 2000
"""Characters of what went wrong."""
READY = "ready"
NOT_IMPORTED = ("_", "antigravity", "this", "idlelib", "tkinter", "turtle", "ensurepip", "test", "venv")
"""What modules begin with that do something when they are imported, or have no use here."""
ENCODINGS = ("ascii", "latin-1", "utf-16", "utf-32", "unicode-escape")
PACKAGES = frozenset({"numpy", "rapidfuzz", "rouge_score", "nltk", "sacrebleu", "regex", "yaml", "jsonschema", "scipy"})
"""Modules beside Python's own that may be imported, where they are installed."""

# System calls by their numbers on x86-64 and on AArch64 (0: it has none of this name).
ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, 0),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""Column of the table, the kernel's name of the machine (AUDIT_ARCH_*), and the system call that sets a filter."""
LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of classic BPF (linux/bpf_common.h)."""
KILL_PROCESS, REFUSE, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
"""Verdicts of a filter (linux/seccomp.h); REFUSE is with EPERM."""
OTHER_ABI = 0x40000000
"""Calls from here on are x86-64's x32 ABI, which names the same calls otherwise."""
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
SET_MODE_FILTER, ALL_THREADS = 1, 1


def main() -> None:
    lines, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    source = json.loads(lines.readline())
    limit()
    problem = None
    try:
        import_named(source)
    except BaseException as error:  # noqa: BLE001 (told with the first answer: what cannot be read cannot be graded)
        problem = told(error)
    close_files(keep=(0, answers.fileno()))
    isolate()
    tell(answers, {"ready": READY})
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), Nowhere(), Nowhere()
    while line := lines.readline():
        tell(answers, {"problem": problem} if problem else graded(source, *json.loads(line)))


def limit() -> None:
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(what, (most, most))


def import_named(source: str) -> None:
    """Import what the code imports, and what Python itself opens files for."""
    for encoding in ENCODINGS:
        codecs.lookup(encoding)
    for node in ast.walk(ast.parse(source, "grader.py")):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if may_import(name):
                try:
                    importlib.import_module(name)
                except ImportError:
                    continue  # the code finds out by itself; or it was the name of a function


def may_import(name: str) -> bool:
    root = name.partition(".")[0]
    return root in PACKAGES or (root in sys.stdlib_module_names and not root.startswith(NOT_IMPORTED))


def close_files(keep: tuple[int, ...]) -> None:
    for number in range(MAX_FILES):
        if number not in keep:
            with suppress(OSError):
                os.close(number)


def isolate() -> None:
    """Give up all but ALLOWED, in all threads. Raises OSError where the system does not let us."""
    column, machine, seccomp = MACHINES[platform.machine()]
    numbers = sorted(each[column] for name, each in ALLOWED.items() if each[column] or name == "read")
    program = filter_of(numbers, machine)
    code = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for call, *arguments in (
        (libc.prctl, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        (libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0),
        (libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (libc.syscall, seccomp, SET_MODE_FILTER, ALL_THREADS, ctypes.addressof(fprog)),
    ):
        if call(*(ctypes.c_ulong(argument) for argument in arguments)):
            raise OSError(ctypes.get_errno(), "the kernel refuses to filter system calls")


def filter_of(numbers: list[int], machine: int) -> bytes:
    """The filter's program: `struct sock_filter` after `struct sock_filter`, run on `struct seccomp_data`."""
    lines = [
        (LOAD, 0, 0, 4),  # the machine
        (JUMP_IF_EQUAL, 1, 0, machine),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, 0),  # the system call
        (JUMP_IF_AT_LEAST, 0, 1, OTHER_ABI),
        (RETURN, 0, 0, KILL_PROCESS),
    ]
    for number in numbers:
        lines += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    lines.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def graded(source: str, sample: object, item: object) -> dict[str, object]:
    try:
        names: dict[str, object] = {"__name__": "grader"}
        exec(compile(source, "grader.py", "exec"), names)  # noqa: S102 (what this process is for)
        if not callable(grade := names.get("grade")):
            return {"problem": "the code has no function grade(sample, item)"}
        grade = grade(sample, item)
        if isinstance(grade, str | bytes) or not math.isfinite(value := float(grade)):
            return {"problem": f"grade returned {repr(grade)[:100]}, and not a number"}
        return {"grade": value}
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is the code's)
        return {"problem": told(error)}


def told(error: BaseException) -> str:
    """The error, and the last line of the code that it came through."""
    try:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"line {frame.lineno}" for frame in frames if frame.filename == "grader.py"]
        return f"{type(error).__name__}: {error}"[:MAX_DETAILS] + (f" ({lines[-1]})" if lines else "")
    except BaseException:  # noqa: BLE001 (an exception may be made so that it cannot be shown)
        return "the code failed"


class Nowhere(io.TextIOBase):
    """Where what the code prints goes."""

    def write(self, text: str) -> int:
        return len(text)


def tell(answers: io.RawIOBase, answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
