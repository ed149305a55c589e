"""Run by a test in a process of its own: vLLM as an `Engine`, without a server. Writes what came of it as JSON.

vLLM changes the process that imports it (logging, environment), so no test process does.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext

from engines.checkpoint.loading import load_config
from engines.checkpoint.structure import describe
from engines.errors import EngineUnavailable, TuneserveError, UnsupportedParameter
from engines.library.engine import LibraryEngine
from engines.types import EngineState
from engines.vllm.arguments import engine_settings
from engines.vllm.config import VllmConfig
from engines.vllm.core import VllmCore
from engines.vllm.waiting import wait_asleep
from tests.contract.engines import answer, request
from tests.engines.vllm.tiny import TINY


def engine(config: VllmConfig) -> LibraryEngine:
    return LibraryEngine(VllmCore(config), max_loras=config.max_loras, max_num_seqs=config.max_num_seqs)


async def refusal(settings: dict[str, Any]) -> tuple[str, str]:
    core = engine(VllmConfig(**TINY | settings))
    try:
        await core.start()
        return "none", ""
    except TuneserveError as error:
        return type(error).__name__, error.message
    finally:
        await core.stop()


async def raises(error: type[Exception], awaitable: Awaitable[object]) -> bool:
    try:
        await awaitable
    except error:
        return True
    return False


async def sleep(model: str) -> dict[str, bool]:
    """Also without adapters, which is another way through vLLM."""
    core = engine(VllmConfig(**TINY, model=model, max_loras=0, enable_sleep_mode=True))
    await core.start()
    seen = {"no adapters": core.capabilities().adapters is None}
    seen["adapters are refused"] = await raises(UnsupportedParameter, core.load_adapter("a@1", None))
    before = await answer(core, request(ignore_eos=True))
    running = asyncio.create_task(answer(core, request("x", "long", max_new_tokens=200, ignore_eos=True)))
    await asyncio.sleep(0)
    await asyncio.gather(core.sleep(), core.sleep())
    seen["running ones end in peace"] = running.done() and len((await running).token_ids) == 200
    seen["new ones are refused"] = await raises(EngineUnavailable, answer(core, request()))
    seen["no death"] = core.health().state is EngineState.SLEEPING
    await core.wake_up()
    await core.wake_up()
    seen["the same afterwards"] = (await answer(core, request(ignore_eos=True))) == before
    await core.stop()
    await core.stop()
    seen["stopped"] = core.health().state is EngineState.STOPPED
    return seen


def tokens_of_a_step(model: str) -> dict[str, int]:
    """What `max_num_batched_tokens` is unless told.

    On two processes: on one, no way of using vLLM differs from another.
    """
    asked: dict[str, Any] = {"model": model, "tensor_parallel_size": 2}
    settings = {
        "ours": engine_settings(VllmConfig(**asked), describe(load_config(model))),
        "vllm serve": AsyncEngineArgs(**asked).create_engine_config(UsageContext.OPENAI_API_SERVER),
        "elsewhere": AsyncEngineArgs(**asked).create_engine_config(),
    }
    return {user: made.scheduler_config.max_num_batched_tokens for user, made in settings.items()}


async def main(model: str, wrong: dict[str, dict[str, Any]]) -> None:
    refusals = {name: await refusal(settings) for name, settings in wrong.items()}
    seen = {"refusals": refusals, "sleep": await sleep(model), "tokens of a step": tokens_of_a_step(model)}
    sys.stdout.write(json.dumps(seen))


wait_asleep()
if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
