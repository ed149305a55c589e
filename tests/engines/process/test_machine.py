"""What of the machine a process may use, as the kernel tells it: cores, quotas and limits of memory."""

from pathlib import Path

import psutil
import pytest

from engines.process.machine import available_memory, usable_cores
from engines.process.resources import GIB, kv_cache_bytes, thread_environment

EIGHT = set(range(8))


def machine(root: Path, files: dict[str, str]) -> Path:
    """Eight CPUs on four cores, and `files`."""
    for cpu in EIGHT:
        files = {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n"} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    assert usable_cores(machine(tmp_path, {}), EIGHT) == 4


@pytest.mark.parametrize(("allowed", "cores"), [({0, 4}, 1), ({0, 1, 4}, 2), ({6, 7}, 2)])
def test_cores_are_those_that_the_process_may_run_on(tmp_path: Path, allowed: set[int], cores: int) -> None:
    assert usable_cores(machine(tmp_path, {}), allowed) == cores


def test_a_machine_that_does_not_tell_its_cores_has_one_for_each_cpu(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, {0, 1, 2}) == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/not/seen/here\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, 4),
    ],
    ids=["v2", "v2, none", "v2, above", "v2, half a core", "v2, in a container", "v1", "v1, none"],
)
def test_a_quota_of_cpu_time_leaves_fewer_cores(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert usable_cores(machine(tmp_path, files), EIGHT) == cores


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1000),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "900\n",
                "sys/fs/cgroup/memory.stat": "anon 300\ninactive_file 500\n",
            },
            600,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "400\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            },
            700,
        ),
    ],
    ids=["v2", "v2, above", "v1"],
)
def test_memory_is_what_is_left_below_the_limit(tmp_path: Path, files: dict[str, str], left: int) -> None:
    assert available_memory(machine(tmp_path, files)) == left


def test_memory_without_a_limit_is_what_the_machine_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()._replace(available=12345)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    none = {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert available_memory(machine(tmp_path, none)) == 12345


def test_an_engine_has_a_thread_for_each_usable_core_unless_told_otherwise() -> None:
    assert thread_environment(None)["OMP_NUM_THREADS"] == str(usable_cores())
    assert thread_environment(3)["OMP_NUM_THREADS"] == "3"


def test_the_kv_cache_takes_a_quarter_of_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.process.resources.available_memory", lambda: GIB)
    assert kv_cache_bytes(None, weights=2 * GIB) == GIB // 4
