"""A query and a document as one prompt, and what the model makes of it: a score.

A model with a head of one label judges both together. How they become one prompt, its tokenizer says:

- A chat template that knows the roles `query` and `document` (vLLM's score templates) gets them as such.
- Any other chat template gets a conversation: the query is the user's, the document the assistant's answer, as reward
  models are trained. The query may be a whole conversation then.
- Without a chat template both are encoded as a pair, as cross-encoders are trained.

A model without a head gives the cosine of the embeddings of both.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import InvalidRequest, UnsupportedParameter
from engines.text.prompt import Conversation
from server.model.served import ServedModel
from server.openai.functions import with_tool_calls
from server.openai.schema import ChatMessage
from server.pooling.asking import Asking
from server.pooling.schema import Document, PairFields

SCORE_ROLES = (re.compile(r"""["']query["']"""), re.compile(r"""["']document["']"""))
"""What a template has in it that is made for queries and documents."""

Query = str | list[ChatMessage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Queries, and the document that goes with each: as many as queries, unless there is a single one."""

    queries: Sequence[Query]
    documents: Sequence[str]
    names: tuple[str, str]
    """Fields of the request that they come from."""

    def pairs(self) -> list[tuple[Query, str]]:
        """Raises InvalidRequest."""
        queries, documents = self.queries, self.documents
        if len(queries) not in (1, len(documents)):
            one, other = map(repr, self.names)
            raise InvalidRequest(
                f"{one} has {len(queries)} and {other} {len(documents)}: one and one, one and many, or as many as many "
                "can be scored.",
                param=self.names[1],
            )
        return list(zip([*queries] * (len(documents) if len(queries) == 1 else 1), documents, strict=True))


@dataclass(frozen=True, slots=True)
class Scored:
    scores: list[float]
    """One for each document."""
    tokens: int
    """Of all prompts together."""


def texts_of(documents: Sequence[str | Document]) -> list[str]:
    return [document if isinstance(document, str) else document.text for document in documents]


async def score(asking: Asking[Any], texts: Texts, read: Callable[[float], float]) -> Scored:
    """`read` makes a score of the logit of a head. Raises InvalidRequest, UnsupportedParameter."""
    body: PairFields = asking.body
    pairs = texts.pairs()
    text_pool = asking.inference.pools.text
    head = asking.head
    if head is None:
        prompts = await text_pool.run_long(body.is_long, _alone, asking, texts)
        vectors = await asking.pool(prompts, "embed")
        queries, documents = vectors[: len(texts.queries)], vectors[len(texts.queries) :]
        queries = queries * len(documents) if len(queries) == 1 else queries
        cosines = [_dot(*both) for both in zip(queries, documents, strict=True)]
        return Scored(cosines, sum(map(len, prompts)))
    if len(head.labels) != 1:
        raise UnsupportedParameter(
            f"The model {asking.leased.name!r} tells {len(head.labels)} labels apart, and a score is one number: "
            "ask it at /v1/classify.",
            param="model",
        )
    prompts = await text_pool.run_long(body.is_long, _together, asking, pairs, texts.names)
    logits = await asking.pool([head.read(ids) for ids in prompts], "classify")
    return Scored([read(logit) for (logit,) in logits], sum(map(len, prompts)))


def _dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def _alone(asking: Asking[Any], texts: Texts) -> list[list[int]]:
    """The prompts of all queries and then of all documents."""
    body: PairFields = asking.body
    model, capabilities = asking.model, asking.capabilities
    truncation = body.truncation(capabilities, output=0, side="right")
    prompts = []
    for of, most, param in (
        (texts.queries, body.max_tokens_per_query, texts.names[0]),
        (texts.documents, body.max_tokens_per_doc, texts.names[1]),
    ):
        for text in of:
            if not isinstance(text, str):
                raise UnsupportedParameter(
                    f"The model {asking.leased.name!r} has no head that judges answers: give texts.", param=param
                )
            text = first_tokens(text, most, model.tokenizer)
            prompts.append(model.renderer.text(text, capabilities, param=param, truncation=truncation).ids)
    return prompts


def _together(asking: Asking[Any], pairs: list[tuple[Query, str]], names: tuple[str, str]) -> list[list[int]]:
    """The prompt of each pair."""
    body: PairFields = asking.body
    model, capabilities = asking.model, asking.capabilities
    truncation = body.truncation(capabilities, output=0, side="right")
    prompts = []
    for query, document in pairs:
        if isinstance(query, str):
            query = first_tokens(query, body.max_tokens_per_query, model.tokenizer)
        document = first_tokens(document, body.max_tokens_per_doc, model.tokenizer)
        if not model.renderer.template:
            if not isinstance(query, str):
                message = "This model has no chat template, so it cannot read messages: give texts."
                raise InvalidRequest(message, param=names[0])
            ids: list[int] = model.tokenizer(query, document, verbose=False)["input_ids"]
            prompts.append(model.renderer.ids(ids, capabilities, param=names[1], truncation=truncation))
            continue
        messages = [message.model_dump(exclude_none=True) for message in _messages(query, document, model)]
        conversation = Conversation(
            messages=model.renderer.messages([*with_tool_calls(messages)]),
            add_generation_prompt=False,
            template_kwargs=body.template_kwargs,
        )
        text = model.renderer.render(conversation)
        prompt = model.renderer.text(
            text, capabilities, add_special_tokens=False, param=names[1], truncation=truncation
        )
        prompts.append(prompt.ids)
    return prompts


def _messages(query: Query, document: str, model: ServedModel) -> list[ChatMessage]:
    if not isinstance(query, str):
        return [*query, ChatMessage(role="assistant", content=document)]
    made_for_it = all(role.search(model.renderer.template) for role in SCORE_ROLES)
    asks, answers = ("query", "document") if made_for_it else ("user", "assistant")
    return [ChatMessage(role=asks, content=query), ChatMessage(role=answers, content=document)]


def first_tokens(text: str, most: int, tokenizer: Any) -> str:
    """The part of a text that its first tokens come from; `most` 0: all of it."""
    if not most or len(text) <= most:
        return text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text if len(offsets) <= most else text[: offsets[most - 1][1]]
