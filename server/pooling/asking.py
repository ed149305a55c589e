"""What a request for numbers has in hand once its model is leased, and the way of every such request to its answer."""

import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import orjson
from fastapi import Request, Response

from engines.adapters.registry import Lease
from engines.capabilities import Capabilities
from engines.errors import UnsupportedParameter
from engines.types import Head
from server.http.errors import InsufficientPermissions
from server.http.keys.caller import Caller
from server.http.sse import until_disconnect
from server.inference.inference import Inference
from server.inference.pooling import Asker, pool
from server.model.served import ServedModel
from server.pooling.schema import PoolingFields

Body = TypeVar("Body", bound=PoolingFields)
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking(Generic[Body]):
    body: Body
    caller: Caller
    model: ServedModel
    """As the adapter speaks that was asked for."""
    inference: Inference
    leased: Lease
    priority: int

    @property
    def capabilities(self) -> Capabilities:
        return self.inference.engine.capabilities()

    @property
    def head(self) -> Head | None:
        return self.inference.head(self.leased)

    def named(self, prefix: str) -> Answer:
        """What every answer of vLLM's begins with."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": self.body.model or self.model.name,
        }

    async def pool(self, prompts: list[list[int]], task: Literal["embed", "classify"]) -> list[list[float]]:
        asker = Asker(
            caller=self.caller,
            adapter=self.leased.version,
            priority=self.priority,
            cache_salt=self.body.cache_salt,
        )
        return await pool(self.inference, prompts, task, asker, lambda numbers: numbers)


async def respond(
    request: Request,
    body: Body,
    caller: Caller,
    model: ServedModel,
    inference: Inference,
    answer: Callable[[Asking[Body]], Coroutine[Any, Any, Answer]],
) -> Response:
    if body.priority < 0 and not caller.is_admin:
        message = f"'priority' is {body.priority}: only a key with the role admin may go before others (below 0)."
        raise InsufficientPermissions(message, param="priority")
    rate_limit = inference.rate_limits.of(caller)
    request.state.answer_headers = rate_limit.headers
    rate_limit.begin(request.state.answered)
    asking = await ask(body, caller, model, inference, request.state.answered, priority=body.priority)
    found = await until_disconnect(request, answer(asking))
    request.state.ignored.add(*body.ignored)
    return Response(orjson.dumps(found), media_type="application/json")


async def ask(
    body: Body, caller: Caller, model: ServedModel, inference: Inference, held: ExitStack, *, priority: int
) -> Asking[Body]:
    """`held` is to be closed once the answer has ended: until then its adapter stays loaded. Raises ModelNotFound."""
    leased = await inference.lease(body.model or model.name, caller.access, held)
    return Asking(
        body=body,
        caller=caller,
        model=model.as_asked(leased),
        inference=inference,
        leased=leased,
        priority=priority,
    )


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def no_head(leased: Lease) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"The model {leased.name!r} has no head to classify with: it generates texts.", param="model"
    )
