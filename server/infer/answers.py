"""A row as a request to the endpoint, and what it answers as a line of the result."""

from dataclasses import dataclass
from typing import Any

from engines.errors import TuneserveError
from server.infer.endpoint import LocalEndpoint, answers_with
from server.infer.rows import Row, messages_of
from training.data.samples import Text
from training.params.infer import AnswerParams

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks the endpoint for the answer to one row after another."""

    endpoint: LocalEndpoint
    params: AnswerParams

    async def line(self, row: Row) -> dict[str, Any]:
        """The row with its answer, or with the error in place of one:

        index, row       its number from 0, and the row as the data has it
        response         the text of the answer
        labels           the answer that the data gives; null where it gives none
        finish_reason, usage, and with `logprobs` logprobs, as the endpoint has them
        tool_calls, reasoning_content   where the answer has them
        error            in place of an answer: what the endpoint says, with its status
        """
        path, body = self._request(row)
        reply = await self.endpoint.reply(path, body)
        line: dict[str, Any] = {"index": row.index, "row": row.row, "response": None, "labels": row.label}
        if reply.status != 200:
            return line | {"error": {**reply.body["error"], "status": reply.status}}
        (choice,) = reply.body["choices"]
        message = choice.get("message", {})
        line["response"] = choice.get("text", message.get("content"))
        line |= {name: message[name] for name in ("tool_calls", "reasoning_content") if message.get(name)}
        line |= {"finish_reason": choice["finish_reason"], "usage": reply.body["usage"]}
        return line | {"logprobs": choice["logprobs"]} if self.params.logprobs else line

    def _request(self, row: Row) -> tuple[str, dict[str, Any]]:
        asks = row.asks
        body: dict[str, Any] = {"model": answers_with(self.params, self.endpoint)}
        if "seed" not in self.endpoint.inference.engine.capabilities().unsupported:
            body["seed"] = self.params.seed + row.index
        if isinstance(asks, Text):
            logprobs = {"logprobs": 0} if self.params.logprobs else {}
            return COMPLETIONS, {**body, **logprobs, "prompt": asks.prompt, **self._room(asks.prompt)}
        logprobs = {"logprobs": True} if self.params.logprobs else {}
        tools = {"tools": asks.tools} if asks.tools else {}
        return CHAT, {**body, **logprobs, "messages": messages_of(asks), **tools}

    def _room(self, prompt: str) -> dict[str, int]:
        """As many tokens as fit, which a chat says by itself, and a completion does not."""
        if self.params.max_new_tokens is not None:
            return {}
        capabilities = self.endpoint.inference.engine.capabilities()
        try:
            ids = self.endpoint.model.renderer.text(prompt, capabilities, add_special_tokens=True).ids
        except TuneserveError:  # the endpoint says what is wrong with it
            return {}
        return {"max_tokens": max(1, capabilities.max_model_len - len(ids))}
