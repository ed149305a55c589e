"""A parent that forks, prints the child's pid and waits."""

import os
import time

from engines.process.children import set_parent_death_signal_of_forks

set_parent_death_signal_of_forks()
child = os.fork()
if child:
    time.sleep(0.2)
    print(child, flush=True)  # noqa: T201  # for the test
time.sleep(600)
