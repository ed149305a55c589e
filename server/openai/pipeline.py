"""The one way from a request's body to its answer. Each step may refuse the request, in this order, and tell by
`body.ignored` that a field has no effect:

1. `server.http.body`     no JSON, unknown fields, wrong types, values out of OpenAI's ranges
2. `check_fields`         fields that exclude each other, or are not for this caller, whatever the model
3. `Inference.lease`      a model that is not served, or is another's, or that classifies
4. `Endpoint.read`        what this model cannot take of tools, messages or constraints; prompts beyond its context
5. `to_sampling`          values out of this model's ranges
6. `check_capabilities`   what this engine does not support
7. `Engine.generate`      a full queue, an engine that is not there

The first two are done before the model is looked up, and all but the last before the engine hears of the request.
"""

import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import orjson
from fastapi import Request, Response

from engines.capabilities import Capabilities
from engines.logs import current_http_request_id
from engines.text.output_text import TextOptions
from engines.text.prompt import Prompt
from engines.text.stop_strings import StopTable
from engines.text.vocabulary import Vocabulary
from engines.types import GenerationRequest, Sampling
from server.http.keys.caller import Caller
from server.http.settings import HttpSettings
from server.http.sse import stream_events, until_disconnect
from server.inference.inference import Inference
from server.model.served import ServedModel
from server.openai.answer import Answer, Generation, Renderer
from server.openai.asked import Asked
from server.openai.chunks import Envelope
from server.openai.sampling import bad_words_ids, num_beams_of, to_sampling
from server.openai.schema import GenerationFields
from server.openai.sizes import check_sizes
from server.openai.support import check_capabilities, check_fields
from server.pools import Pools

Body = TypeVar("Body", bound=GenerationFields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(Generic[Body]):
    """What an endpoint that generates brings of its own."""

    id_prefix: str
    """What the ids of its answers begin with."""
    check: Callable[[Body], None]
    """Refuses fields of its own that exclude each other."""
    read: Callable[[Body, ServedModel, Capabilities, Pools], Awaitable[Asked]]
    renderer: Callable[[Body, Asked, Envelope, Vocabulary], Renderer]


async def respond(
    endpoint: Endpoint[Body],
    request: Request,
    body: Body,
    model: ServedModel,
    inference: Inference,
    http: HttpSettings,
) -> Response:
    """The answer as the request wants it: in chunks or as a whole."""
    answer = await begin(endpoint, request, body, model, inference, request.state.answered)
    request.state.ignored.add(*body.ignored)
    return await send(answer, request, http, stream=body.stream)


async def send(answer: Answer, request: Request, http: HttpSettings, *, stream: bool) -> Response:
    """The answer in chunks or as a whole."""
    if stream:
        return await stream_events(request, answer.stream, keep_alive=http.keep_alive_seconds, style=answer.events)
    whole = await until_disconnect(request, answer.whole())
    return Response(orjson.dumps(whole), media_type="application/json")


async def begin(
    endpoint: Endpoint[Body],
    request: Request,
    body: Body,
    model: ServedModel,
    inference: Inference,
    held: ExitStack,
) -> Answer:
    """The answer to a request that counts in its caller's limits until `held` is closed, once the answer has ended."""
    rate_limit = inference.rate_limits.of(request.state.caller)
    request.state.answer_headers = rate_limit.headers
    rate_limit.begin(held)
    return await admit(endpoint, body, request.state.caller, model, inference, held)


async def admit(
    endpoint: Endpoint[Body], body: Body, caller: Caller, model: ServedModel, inference: Inference, held: ExitStack
) -> Answer:
    """Steps 2 to 6. `held` is to be closed once the answer has ended: until then its adapter stays loaded."""
    check_fields(body, caller)
    endpoint.check(body)
    leased = await inference.lease(body.model, caller.access, held)
    inference.check_generates(leased)
    model = model.as_asked(leased)
    capabilities, pools = inference.engine.capabilities(), inference.pools
    asked = await endpoint.read(body, model, capabilities, pools)
    rate_limit = inference.rate_limits.of(caller)
    beams = num_beams_of(body, model.defaults)
    outputs = max(asked.n, beams) * len(asked.prompts)
    rate_limit.check_outputs(outputs, "n" if asked.n >= beams else "num_beams")
    envelope = Envelope(id=f"{endpoint.id_prefix}{uuid.uuid4().hex}", created=int(time.time()), model=body.model)

    def generation() -> Generation:
        return Generation(
            requests=_requests(body, asked, caller, model, inference, leased.version, envelope.id),
            options=_text_options(body, asked, model),
            plan=asked.plan,
            only_prompt=asked.max_tokens == 0,
        )

    generates = await pools.text.run_long(body.is_long or bool(body.bad_words), generation)
    rate_limit.take_prompt(sum(len(prompt.ids) for prompt in asked.prompts))
    renderer = endpoint.renderer(body, asked, envelope, model.vocabulary)
    return Answer(inference, model.vocabulary, generates, renderer, on_tokens=rate_limit.take_output)


def _requests(
    body: GenerationFields,
    asked: Asked,
    caller: Caller,
    model: ServedModel,
    inference: Inference,
    adapter: str | None,
    answer_id: str,
) -> list[GenerationRequest]:
    """One for each prompt."""
    capabilities = inference.engine.capabilities()
    bad_words = bad_words_ids(body.bad_words, model.tokenizer)

    @cache  # prompts of one length share what may be large
    def sampling(prompt_length: int) -> Sampling:
        return to_sampling(body, asked, model, capabilities, prompt_length, bad_words)

    def to_request(number: int, prompt: Prompt) -> GenerationRequest:
        request = GenerationRequest(
            request_id=f"{answer_id}-{number}",
            prompt_ids=prompt.ids,
            sampling=sampling(len(prompt.ids)),
            n=asked.n,
            adapter=adapter,
            priority=body.priority,
            share=caller.name,
            weight=inference.weight_of(caller.name),
            cache_salt=inference.salts.of(caller.name, body.cache_salt),
            prediction_ids=asked.prediction_ids,
            http_request_id=current_http_request_id(),
        )
        check_capabilities(request, capabilities, body)
        return request

    requests = [to_request(number, prompt) for number, prompt in enumerate(asked.prompts)]
    check_sizes(body, asked, requests)
    return requests


def _text_options(body: GenerationFields, asked: Asked, model: ServedModel) -> TextOptions:
    return TextOptions(
        stop=StopTable((*(body.stop or ()), *model.defaults.stop)),
        include_stop_str_in_output=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        kept_special_ids=asked.plan.marker_ids,
        min_tokens=body.min_tokens,
        starts_text=asked.starts_text,
        hidden_entries=asked.hidden_entries,
    )
