"""The model of an inference, as a server would serve it, without HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from engines.adapters.source import name_adapters
from engines.build import build_engine
from engines.checkpoint.loading import load_generation_config, load_tokenizer
from engines.errors import EngineFailure
from engines.params.deploy import DeployParams
from engines.types import EngineState
from server.batches.answers import Answering, Reply, answer
from server.deps import Parts
from server.http.keys.caller import ANYBODY
from server.inference.inference import Inference
from server.kept.completions import KeptCompletions
from server.model.served import ServedModel
from server.openai.answer import Answer
from server.openai.chat import CHAT
from server.openai.pipeline import admit
from server.openai.schema import ChatRequest
from server.parts import make_parts
from server.pools import Pools
from server.responses.responses import Responses
from training.params.infer import AnswerParams

LOOK_SECONDS = 0.2
"""Seconds between two looks at whether the engine goes on."""
HERE = frozenset(
    {"dataset", "val_dataset", "result_path", "val_dataset_sample", "ddp_backend", "merge_lora", "metric", "stream"}
    | {"logprobs", "load_args", "load_data_args", "custom_register_path", "custom_dataset_info"}
)
"""Parameters that the inference reads itself."""

Worked = TypeVar("Worked")


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """The endpoints of a server, for whoever is in its process."""

    parts: Parts

    @property
    def model(self) -> ServedModel:
        return self.parts[ServedModel]

    @property
    def inference(self) -> Inference:
        return self.parts[Inference]

    def names(self) -> list[str]:
        """What `model` may name in a request: the base model, then the adapters."""
        return [self.model.name, *(each.name for each in self.inference.adapters.adapters() if each.served)]

    async def reply(self, path: str, body: dict[str, Any]) -> Reply:
        """The answer to a request, or the error. Waits while the engine cannot take it."""
        kept, responses = self.parts[KeptCompletions], self.parts[Responses]
        by = Answering(ANYBODY, self.model, self.inference, kept, responses, refuse_unknown=True, gives_way=False)
        return await answer(by, path, body)

    async def chat(self, body: ChatRequest, held: ExitStack) -> Answer:
        """The answer to a request, not begun. `held` is to be closed once it has ended. Raises TuneserveError."""
        return await admit(CHAT, body, ANYBODY, self.model, self.inference, held)

    async def check_generates(self, name: str) -> None:
        """Raises UnsupportedParameter where the model, or its adapter, classifies."""
        with ExitStack() as held:
            self.inference.check_generates(await self.inference.lease(name, ANYBODY.access, held))

    async def while_alive(self, work: "asyncio.Task[Worked]", stopped: Callable[[], bool]) -> Worked | None:
        """What `work` returns; None, the work being cancelled, once `stopped` says so.

        Raises EngineFailure where the engine has failed for good, and what `work` raises.
        """
        try:
            while not work.done():
                if stopped():
                    return None
                health = self.inference.engine.health()
                if health.state is EngineState.FAILED:
                    raise EngineFailure(health.detail)
                await asyncio.wait({work}, timeout=LOOK_SECONDS)
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


def make_endpoint(params: AnswerParams) -> LocalEndpoint:
    """Not started yet. Raises UnsupportedModel, InvalidRequest."""
    served = served_params(params)
    assert served.model is not None, "whoever asks for an endpoint names its model"
    engine = build_engine(served, several_owners=False)
    source = {"revision": served.model_revision, "token": served.hub_token}
    tokenizer = load_tokenizer(served.model, **source)
    generation = load_generation_config(served.model, **source)
    return LocalEndpoint(make_parts(engine, tokenizer, served, generation.to_dict()))


def served_params(params: AnswerParams) -> DeployParams:
    """What a server would be told to serve the same model in the same way."""
    given = {name: getattr(params, name) for name in params.model_fields_set - HERE}
    return DeployParams.model_validate({**given, "without_state": True})


@asynccontextmanager
async def started(endpoint: LocalEndpoint, stopped: Callable[[], bool]) -> AsyncIterator[bool]:
    """The engine with its adapters runs within. False: it was stopped as it started.

    Raises UnsupportedModel, EngineFailure, InvalidAdapter.
    """
    inference, parts = endpoint.inference, endpoint.parts
    bringing = asyncio.create_task(inference.lifecycle.bring_up())
    try:
        while not bringing.done() and not stopped():
            await asyncio.wait({bringing}, timeout=LOOK_SECONDS)
        if bringing.done():
            bringing.result()
        yield bringing.done()
    finally:
        bringing.cancel()
        await asyncio.gather(bringing, return_exceptions=True)
        await inference.engine.stop()
        await inference.adapters.close()
        parts[Pools].close()


def answers_with(params: AnswerParams, endpoint: LocalEndpoint) -> str:
    """The name that a request over a data set asks for: the adapter's, where there is one."""
    return next(iter(name_adapters(params.adapters)), endpoint.model.name)
