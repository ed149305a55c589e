"""A parent whose child leaves its process group; it prints the child's pid and waits."""

import subprocess
import sys
import time

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]

child = subprocess.Popen(SLEEPER, start_new_session=True)
print(child.pid, flush=True)  # noqa: T201  # for the test
time.sleep(600)
