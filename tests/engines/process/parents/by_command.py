"""A parent that runs a command, prints its pid and waits."""

import subprocess
import sys
import time

from engines.process.children import with_parent_death_signal

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]

child = subprocess.Popen(with_parent_death_signal(SLEEPER), stdout=subprocess.PIPE)
assert child.stdout is not None
child.stdout.readline()
print(child.pid, flush=True)  # noqa: T201  # for the test
time.sleep(600)
