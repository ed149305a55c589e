"""Run by a test with the Python of LMDeploy's environment: why engines with these settings do not start, on a CPU.

Given settings of LmdeployConfig by name, as JSON; writes messages by name.
"""

import json
import sys
from typing import Any

from tests.engines.lmdeploy import cpu_shim


def refusal(fields: dict[str, Any]) -> str:
    try:
        make(fields).start()
    except UnsupportedModel as refused:
        return refused.message
    return ""


if __name__ == "__main__":
    cpu_shim.install()

    from engines.errors import UnsupportedModel
    from engines.lmdeploy.process import make

    sys.stdout.write("\n" + json.dumps({name: refusal(fields) for name, fields in json.loads(sys.argv[1]).items()}))
