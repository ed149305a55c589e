"""Run by a test in a process of its own: vLLM as an `Engine`, without a server. Writes what came of it as JSON.

vLLM changes the process that imports it (logging, environment), so no test process does.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.usage.usage_lib import UsageContext

from engines.checkpoint.loading import load_config
from engines.checkpoint.structure import describe
from engines.errors import EngineUnavailable, TuneserveError, UnsupportedParameter
from engines.library.engine import LibraryEngine
from engines.types import EngineState, TokenLogprob
from engines.vllm.arguments import engine_settings
from engines.vllm.config import VllmConfig
from engines.vllm.core import VllmCore
from engines.vllm.sampling import to_output
from engines.vllm.waiting import wait_asleep
from tests.contract.engines import answer, request
from tests.engines.pt.tiny import CONFIGS
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


def told_of_steps(count: int, at_once: bool) -> list[TokenLogprob]:
    """Of steps whose own token is the likeliest, the second, and neither: fetched at once, or one by one."""
    steps = [([7, 7, 5], [-0.1, -0.1, -3.0], 1), ([9, 2, 9], [-2.0, -0.5, -2.0], 2), ([4, 8, 6], [-9, -0.5, -2.0], 6)]
    made = []
    for tokens, values, rank in steps:
        one = FlatLogprobs()
        one.append_fast(tokens[: count + 1], values, chain((rank,), (1, 2)), repeat(None))
        made.append(CompletionOutput(0, "", [tokens[0]], None, one))
    first, *others = made
    for other in others if at_once else ():  # as RequestOutput.add joins them
        first.token_ids += other.token_ids
        first.logprobs.extend(other.logprobs)
    return [told for output in made[: 1 if at_once else None] for told in to_output(0, output, count).logprobs or ()]


async def experts() -> list[str]:
    """What is told of experts where vLLM takes adapters of a mixture, which it does on GPUs."""

    async def adapted(*_: Any, **__: Any) -> list[list[str]]:
        return [["model.layers.0.self_attn.q_proj"]]

    with_adapters: Any = SimpleNamespace(vllm_config=SimpleNamespace(lora_config=True), collective_rpc=adapted)
    support = await VllmCore(VllmConfig(**TINY, model="m"))._adapter_support(
        with_adapters, describe(CONFIGS["mixtral"]()), None
    )
    assert support is not None
    return sorted(support.experts)


async def main(model: str, wrong: dict[str, dict[str, Any]]) -> None:
    refusals = {name: await refusal(settings) for name, settings in wrong.items()}
    seen = {"refusals": refusals, "sleep": await sleep(model), "tokens of a step": tokens_of_a_step(model)}
    seen["experts"] = await experts()
    seen["joined"] = {count: [repr(told_of_steps(count, at_once)) for at_once in (True, False)] for count in (0, 1, 2)}
    sys.stdout.write(json.dumps(seen))


wait_asleep()
if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
