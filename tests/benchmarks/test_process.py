"""A measured server ends with everything it started."""

import sys
import time
from pathlib import Path

import psutil

from benchmarks.process import Tree
from tests.processes import ended

PARENT = str(Path(__file__).with_name("parent.py"))


def test_a_child_that_left_the_process_group_is_ended_too(tmp_path: Path) -> None:
    with Tree([sys.executable, PARENT], {}, tmp_path / "log", talks=True) as tree:
        assert tree.process.stdout is not None
        child = psutil.Process(int(tree.process.stdout.readline()))
        tree.cpu_seconds()

    assert ended(child)
    assert tree.process.returncode is not None


def test_the_peak_of_the_memory_and_the_processor_time_are_of_the_whole_tree(tmp_path: Path) -> None:
    busy = "data = bytearray(b'x') * 100_000_000; sum(range(3_000_000)); print('up', flush=True); input()"
    with Tree([sys.executable, "-c", busy], {}, tmp_path / "log", talks=True) as tree:
        assert tree.process.stdout is not None
        tree.process.stdout.readline()
        while tree.peak.rss_mib < 90:  # the watcher comes round
            time.sleep(0.1)
        assert tree.cpu_seconds() > 0
