"""A worker that prints its limit of memory, in bytes, and its oom_score_adj, as soon as both are set."""

import json
import resource
import time
from pathlib import Path

SCORE = Path("/proc/self/oom_score_adj")

while SCORE.read_text() != "1000\n" or resource.getrlimit(resource.RLIMIT_DATA)[0] < 0:
    time.sleep(0.01)
print(json.dumps([resource.getrlimit(resource.RLIMIT_DATA)[0], SCORE.read_text()]))  # noqa: T201  # for the test
