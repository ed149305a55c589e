"""Prompts to the numbers that the model has after their last token: embeddings, and logits of a head."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from engines.logs import current_http_request_id
from engines.types import PoolingRequest
from server.http.keys.caller import Caller
from server.inference.inference import Inference

CONCURRENCY = 16
"""Prompts of one request that the engine has at a time, so that a long list does not fill its queue."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks, of which adapter, and before or after whom."""

    caller: Caller
    adapter: str | None
    priority: int = 0
    cache_salt: str | None = None


async def pool(
    inference: Inference,
    prompts: list[list[int]],
    task: Literal["embed", "classify"],
    asker: Asker,
    read: Callable[[list[float]], Result],
) -> list[Result]:
    """What `read` makes of the numbers of each prompt, in their order. Raises RateLimited, and what the engine does."""
    salt = inference.salts.of(asker.caller.name, asker.cache_salt)
    name = f"pool-{uuid.uuid4().hex}"  # the caller's own request id need not be unique
    requests = [
        PoolingRequest(
            request_id=f"{name}-{index}",
            prompt_ids=ids,
            task=task,
            adapter=asker.adapter,
            priority=asker.priority,
            share=asker.caller.name,
            weight=inference.weight_of(asker.caller.name),
            cache_salt=salt,
            http_request_id=current_http_request_id(),
        )
        for index, ids in enumerate(prompts)
    ]
    inference.rate_limits.of(asker.caller).take_prompt(sum(map(len, prompts)))
    slots = asyncio.Semaphore(CONCURRENCY)

    async def pool_one(request: PoolingRequest) -> Result:
        async with slots:
            return read(await inference.engine.pool(request))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(pool_one(request)) for request in requests]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    inference.metrics.count_pooled([len(ids) for ids in prompts], asker.adapter)
    return [task.result() for task in tasks]
