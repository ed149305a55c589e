"""A Python grader's code computes a grade, and can do nothing else, whatever it tries."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.until import until
from training.rewards.graders.errors import GradeError
from training.rewards.graders.sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is Linux's")

SAMPLE = {"output_text": "a"}
Make = Callable[..., Sandbox]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Sandbox] = []

    def make(body: str, seconds: float = 5.0) -> Sandbox:
        source = body if "def grade" in body else f"def grade(sample, item):\n    {body}"
        made.append(Sandbox(source, seconds=seconds))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


def failure(sandbox: Sandbox) -> str:
    with pytest.raises(GradeError) as failed:
        sandbox.grade(SAMPLE, {})
    assert failed.value.kind == "python_grader_runtime_error"
    return failed.value.details


def test_it_grades_a_sample_by_its_row(make: Make) -> None:
    sandbox = make("return sample['output_text'] == item['label']")
    assert [sandbox.grade(SAMPLE, {"label": label}) for label in "aba"] == [1, 0, 1]


@pytest.mark.parametrize(
    ("source", "grade"),
    [
        ("import math, re, json, statistics\ndef grade(s, i): return math.sqrt(statistics.mean([4]))", 2),
        ("from rapidfuzz import fuzz\ndef grade(s, i): return fuzz.ratio('a', s['output_text']) / 100", 1),
        ("import numpy as np\ndef grade(s, i): return np.ones(4).sum()", 4),
        ("grade = lambda sample, item: 0.25\n# def grade", 0.25),
        ("def grade(s, i):\n    print('told nowhere' * 10000)\n    return '1' == '1'", 1),
        ("seen = []\ndef grade(s, i):\n    seen.append(1)\n    return len(seen)", 1),
    ],
)
def test_code_may_use_what_computes(make: Make, source: str, grade: float) -> None:
    sandbox = make(source)
    assert [sandbox.grade(SAMPLE, {}) for _ in range(2)] == [grade, grade]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("open('/etc/passwd').read()", "PermissionError"),
        ("open('/tmp/tuneserve-was-here', 'w')", "PermissionError"),
        ("import os; os.listdir('/')", "PermissionError"),
        ("import os; os.stat('/etc/passwd')", "PermissionError"),
        ("import os; os.remove('/tmp/tuneserve')", "PermissionError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "Error"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1')", "Error"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import os; os.killpg(0, 9)", "PermissionError"),
        ("import os; os.execv('/bin/sh', ['sh'])", "PermissionError"),
        ("import subprocess; subprocess.run(['ls'])", "PermissionError"),
        ("import os\n    while True: os.fork()", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import mmap; mmap.mmap(-1, 1 << 40)", "Error"),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "Error"),
        ("return len(bytearray(1 << 34))", "MemoryError"),
        ("keep = [bytearray(1 << 24)]\n    while True: keep.append(bytearray(1 << 24))", "MemoryError"),
        ("raise ValueError('not today')", "ValueError: not today (line 2)"),
        ("return float('nan')", "grade returned nan"),
        ("return '1.0'", "grade returned '1.0'"),
        ("return None", "TypeError"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os; os._exit(0)", "its process died with status 0"),
        ("import ctypes; ctypes.string_at(0)", "its process died of signal 11"),
        ("import os\n    while True: os.write(3, b'x' * 1000)", "it wrote more than"),
        ("import os\n    os.write(3, b'[1]\\n')", "it answered in no known form"),
        ("return grade(sample, item)", "RecursionError"),
        ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()", "the code failed"),
    ],
)
def test_what_it_tries_is_an_error_of_that_grade_alone(make: Make, body: str, told: str) -> None:
    sandbox = make(body)
    assert told in failure(sandbox)
    assert told in failure(sandbox)


SYSTEM_CALLS = {"open": 2, "socket": 41, "fork": 57, "kill": 62, "ptrace": 101, "unshare": 272, "clone3": 435}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_the_kernel_refuses_a_system_call_that_is_made_without_python(make: Make, name: str) -> None:
    call = f"libc.syscall({SYSTEM_CALLS[name]}, 0, 0, 0)"
    code = f"import ctypes\n    libc = ctypes.CDLL(None, use_errno=True)\n    {call}\n    return ctypes.get_errno()"
    assert make(code).grade(SAMPLE, {}) == 1  # EPERM


@pytest.mark.parametrize("body", ["while True: pass", "import time; time.sleep(60)", "return 9 ** 9 ** 9 % 2"])
def test_endless_work_ends(make: Make, body: str) -> None:
    assert "longer than 0.3 s" in failure(make(body, seconds=0.3))


def test_code_that_cannot_be_read_is_an_error(make: Make) -> None:
    assert "SyntaxError" in failure(make("def grade(:"))
    assert "no function grade" in failure(make("# def grade"))


def test_it_gets_no_secret_of_the_environment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESERVE_API_KEY", "secret-0123456789")
    assert make("import os; return any('secret' in value for value in os.environ.values())").grade(SAMPLE, {}) == 0


def test_it_has_no_open_file_but_its_two_pipes(make: Make, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        code = "import os, ctypes\n    return sum(ctypes.CDLL(None).lseek(n, 0, 1) == 0 for n in range(256))"
        assert make(code).grade(SAMPLE, {}) == 0


def test_one_that_died_is_started_again(make: Make) -> None:
    sandbox = make("import os\n    return 1.0 if item else os._exit(1)")
    assert sandbox.grade(SAMPLE, {"a": 1}) == 1
    failure(sandbox)
    assert sandbox.grade(SAMPLE, {"a": 1}) == 1


def test_closed_it_has_left_no_process(make: Make) -> None:
    sandbox = make("import time; time.sleep(60)", seconds=0.2)
    failure(sandbox)
    sandbox = make("return 1")
    sandbox.grade(SAMPLE, {})
    child = sandbox._child
    sandbox.close()
    until(lambda: child.poll() is not None)


def test_where_a_process_cannot_be_isolated_nothing_runs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(GradeError) as failed:
        make("return 1").grade(SAMPLE, {})
    assert failed.value.kind == "python_grader_server_error" and "cannot isolate" in failed.value.details


def test_a_large_sample_reaches_it(make: Make) -> None:
    assert make("return len(sample['output_text'])").grade({"output_text": "é" * 500_000}, {}) == 500_000
