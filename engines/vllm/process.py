"""The process of vLLM: `python -m engines.vllm.process FD`.

vLLM starts its own processes below this one, and each of them imports this file again: it must do nothing then.
"""

from typing import Any

import msgspec

from engines.hosted import host
from engines.vllm.config import VllmConfig
from engines.vllm.core import VllmCore


def make(config: dict[str, Any]) -> VllmCore:
    return VllmCore(msgspec.convert(config, VllmConfig))


if __name__ == "__main__":
    host(make)
