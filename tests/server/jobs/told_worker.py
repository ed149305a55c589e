"""A worker that prints what it was told: arguments, environment, group, folder and niceness."""

import json
import os
import sys

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "PYTHONSAFEPATH", "TUNESERVE_JOB")

told = {
    "argv": sys.argv[1:],
    "nice": os.nice(0),
    "cwd": os.getcwd(),
    "group": os.getpgid(0) == os.getpid(),
    **{name: os.environ.get(name) for name in VARIABLES},
    "environment": dict(os.environ),
}
print(json.dumps(told))  # noqa: T201  # for the test
