"""The endpoint, asked from a thread that waits: its event loop runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any, TypeVar

import orjson

from server.infer.endpoint import LocalEndpoint, make_endpoint, started
from server.openai.schema import ChatRequest
from training.params.infer import AnswerParams

Result = TypeVar("Result")


class LocalSpeaker:
    def __init__(self, endpoint: LocalEndpoint, loop: asyncio.AbstractEventLoop, *, streams: bool) -> None:
        self._endpoint = endpoint
        self._loop = loop
        self._streams = streams

    def names(self) -> list[str]:
        return self._endpoint.names()

    def answer(self, body: dict[str, Any], show: Callable[[str], None]) -> dict[str, Any]:
        said = _Said(show, quiet=not self._streams)
        try:
            call(self._loop, self._answer(body, said))
        except KeyboardInterrupt:
            said.interrupted = True
        return said.message()

    async def _answer(self, body: dict[str, Any], said: "_Said") -> None:
        with ExitStack() as held:
            answer = await self._endpoint.chat(ChatRequest.model_validate({**body, "stream": True}), held)
            await answer.stream(lambda chunk: said.take(orjson.loads(orjson.dumps(chunk))))  # as a client reads it


class _Said:
    """The assistant's message while it grows."""

    def __init__(self, show: Callable[[str], None], *, quiet: bool) -> None:
        self._show = show
        self._quiet = quiet
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._reasons = False
        self.interrupted = False

    def take(self, chunk: dict[str, Any]) -> None:
        for choice in chunk["choices"]:
            delta = choice.get("delta", {})
            if text := delta.get("reasoning_content"):
                self._tell(text if self._reasons else f"(thinks) {text}")
                self._reasons = True
            if text := delta.get("content"):
                self._tell(f"\n\n{text}" if self._reasons and not self._content else text)
                self._content.append(text)
            for call in delta.get("tool_calls", ()):
                self._take_call(call)

    def _take_call(self, call: dict[str, Any]) -> None:
        function = call["function"]
        if "id" in call:
            self._calls.append({**call, "function": {"arguments": "", **function}})
            self._calls[-1].pop("index")
            self._tell(f"(calls {function['name']}) ")
        else:
            self._calls[call["index"]]["function"]["arguments"] += function["arguments"]
        self._tell(function.get("arguments", ""))

    def _tell(self, text: str) -> None:
        if not self._quiet and not self.interrupted:
            self._show(text)

    def message(self) -> dict[str, Any]:
        content = "".join(self._content)
        if self._quiet:
            self._show(content)
        calls = {"tool_calls": self._calls} if self._calls and not self.interrupted else {}
        return {"role": "assistant", "content": content, **calls}


def call(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns or raises in the loop's thread. KeyboardInterrupt ends it, and waits for that end."""
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise


@contextmanager
def speaking(params: AnswerParams) -> Iterator[LocalSpeaker]:
    """The model that `params` name answers within. Raises TuneserveError."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    running = AsyncExitStack()
    streams = params.stream or "stream" not in params.model_fields_set
    try:
        endpoint = make_endpoint(params)
        call(loop, running.enter_async_context(started(endpoint, lambda: False)))
        call(loop, endpoint.check_generates(endpoint.model.name))
        yield LocalSpeaker(endpoint, loop, streams=streams)
    finally:
        call(loop, running.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
