"""An answer as the model is to write it: behind the prompt that the chat endpoint makes of the messages before it, up
to the token at which serving stops."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from engines.errors import InvalidRequest
from engines.text.prompt import Conversation as Rendered
from engines.text.prompt import PromptRenderer
from engines.text.reasoning_formats import DEEPSEEK_R1, FIELDS, find_reasoning_format
from engines.text.tool_formats import find_tool_format
from engines.text.tool_messages import for_template
from training.data.loss_scale import TokenScale
from training.data.pieces import Pieces
from training.data.problems import BadRow
from training.data.samples import Conversation, Message


class Note(StrEnum):
    """What the user should know of an answer, or of how its conversation is learned."""

    APART = "apart"
    """The answers of one conversation are learned in several samples."""
    NO_REASONING = "no_reasoning"
    """An answer without reasoning, of a model that is asked to reason."""
    REASONING_WRITTEN = "reasoning_written"
    """Reasoning that the template does not write, written before the answer."""
    REASONING_LEFT_OUT = "reasoning_left_out"
    """Reasoning behind a prompt that turns reasoning off."""
    END_ADDED = "end_added"
    """The template ends the answer with no token at which serving stops."""


NOTHING: frozenset[Note] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    ids: list[int]
    """Tokens of prompt and answer."""
    start: int
    """Number of tokens of the prompt."""
    stop: int
    """Number of tokens up to the one at which serving stops. What the template writes behind it comes after."""
    weight: int = 1
    scale: list[float] | None = None
    """What each token from `start` to `stop` weighs in the loss; None: 1 each."""
    notes: frozenset[Note] = NOTHING


class Answers:
    """The answers of conversations, as one model with one template writes them."""

    def __init__(
        self,
        renderer: PromptRenderer,
        tokenizer: Any,
        *,
        eos_token_ids: Collection[int],
        plain: bool,
        scale: TokenScale | None = None,
    ) -> None:
        """`eos_token_ids` end every text of the model. `plain`: messages follow one another without form, and only
        the last one ends. `scale`: what their parts weigh in the loss; None: all the same."""
        self._scale = scale
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._pieces = Pieces(tokenizer, partial(renderer.encode, add_special_tokens=False))
        self._plain = plain
        self._form = find_tool_format(renderer.template, tokenizer.get_added_vocab())
        self._reasoning = find_reasoning_format(renderer.template, {}) or DEEPSEEK_R1
        self._written = None if plain else renderer.end_of_answer(eos_token_ids)
        self._stops = {*eos_token_ids, *([] if self._written is None else [self._written])}
        self._end = self._written if self._written is not None else next(iter(eos_token_ids), None)
        self._specials = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}

    def answer(self, sample: Conversation, position: int) -> Answer:
        """The message at `position`, which is the assistant's. Raises BadRow, InvalidRequest."""
        weight = sample.messages[position].get("weight", 1)
        prompt, text, notes = self._prompt_and_text(sample, position)
        before = self._encode(prompt)
        ids = self._encode(prompt + text)
        if ids[: len(before)] != before:  # a token would reach over the edge, where a request's prompt ends
            ids = before + self._encode(text)
        question = sample.messages[position - 1] if position else {}
        asked = str(question.get("content", ""))
        scale = None if self._scale is None else self._scale.of_tokens(ids, len(before), prompt, text, asked)
        if self._plain and position + 1 < len(sample.messages):
            return Answer(ids=ids, start=len(before), stop=len(ids), weight=weight, scale=scale, notes=notes)
        ids, stop, added = self._ended(ids, len(before))
        if added and not self._plain:
            notes |= {Note.END_ADDED}
        if scale is not None:
            scale = [*scale[: stop - len(before) - 1], 1.0]  # to end there is learned as ever
        return Answer(ids=ids, start=len(before), stop=stop, weight=weight, scale=scale, notes=notes)

    def prompt(self, sample: Conversation, length: int) -> list[int]:
        """The prompt of a request with the first messages."""
        return self._encode(self._render(sample, length, prompt=True))

    def written(self, sample: Conversation) -> list[int]:
        """All messages, with nothing asked for behind them. Raises InvalidRequest."""
        return self._encode(self._render(sample, len(sample.messages)))

    def _encode(self, text: str) -> list[int]:
        return self._pieces.encode(text) if text else []

    def reads(self, field: str) -> bool:
        """Whether the chat template shows a field of messages."""
        probe = "tuneserve probe"
        messages = [{"role": role, "content": "x", field: probe} for role in ("user", "assistant")]
        try:
            return probe in self._rendered(messages, [])
        except InvalidRequest:
            return False

    # ---- texts

    def _prompt_and_text(self, sample: Conversation, position: int) -> tuple[str, str, frozenset[Note]]:
        whole = self._render(sample, position + 1)
        if not position:  # no request asks for a first message of the assistant: all but its content is the template's
            (greeting,) = self._renderer.messages([_bare(sample.messages[0])])[-1:]
            start = max(0, whole.rfind(greeting["content"])) if greeting["content"] else 0
            return whole[:start], whole[start:], NOTHING
        message = sample.messages[position]
        prompt = self._render(sample, position, prompt=True)
        reasoning, content = self._parts(message)
        text = self._continuation(prompt, whole, content)
        if not reasoning:
            return prompt, text, frozenset([Note.NO_REASONING]) if self._unlearns(prompt, text) else NOTHING
        if reasoning in text:
            return prompt, text, NOTHING
        if self._reasoning.is_over(prompt):
            return prompt, text, frozenset([Note.REASONING_LEFT_OUT])
        written = NOTHING if self._reasoning.is_open(prompt) else frozenset([Note.REASONING_WRITTEN])
        return prompt, self._with_reasoning(prompt, text, reasoning), written

    def _parts(self, message: Message) -> tuple[str, str]:
        """The message's reasoning, also where it stands in front of the content, and the content."""
        (ready,) = self._renderer.messages([_bare(message)])[-1:]
        content: str = ready["content"]
        reasoning = next((ready[name] for name in FIELDS if isinstance(ready.get(name), str)), "")
        before, end, after = content.lstrip().partition(self._reasoning.end)
        if not reasoning and end and before.startswith(self._reasoning.start):
            reasoning, content = before.removeprefix(self._reasoning.start), after
        return reasoning.strip(), content.strip()

    def _continuation(self, prompt: str, whole: str, content: str) -> str:
        """What follows the prompt in a conversation that goes on with the answer: mostly the rest of it; but some
        templates write another beginning of the answer than the one that they ask with."""
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        rest = whole[same_beginning(prompt, whole) :]
        tags = self._reasoning
        if tags.is_open(prompt):
            rest = rest.lstrip().removeprefix(tags.start) if rest.lstrip().startswith(tags.start) else rest
            return rest if tags.end in rest else f"{tags.end}\n\n{rest}"
        if tags.is_over(prompt):
            return (rest.partition(tags.end)[2] if tags.end in rest else rest).lstrip("\n")
        at = rest.find(content) if content else -1
        if at < 0:
            raise BadRow(
                "", "the template writes this answer in another way than it asks for one: it cannot be learned"
            )
        return rest[at:]

    def _with_reasoning(self, prompt: str, text: str, reasoning: str) -> str:
        """With reasoning that the template left out, or wrote an empty block for."""
        tags = self._reasoning
        block, end, after = text.partition(tags.end)
        answer = after.lstrip() if end and not block.strip().removeprefix(tags.start).strip() else text
        return tags.block(reasoning, is_open=tags.is_open(prompt)) + answer

    def _unlearns(self, prompt: str, text: str) -> bool:
        """Whether the model, which would reason here, learns not to."""
        return self._reasoning.is_open(prompt) or text.lstrip().startswith(self._reasoning.start)

    def _render(self, sample: Conversation, length: int, *, prompt: bool = False) -> str:
        """The first messages as text; as the prompt of a request, where an answer is to follow."""
        return self._rendered(sample.messages[:length], sample.tools, prompt=prompt)

    def _rendered(self, messages: Sequence[Message], tools: list[dict[str, Any]], *, prompt: bool = False) -> str:
        known = self._renderer.messages([_bare(message) for message in messages])
        ready, shown = for_template(known, tools, self._form, self._renderer.template)
        return self._renderer.render(Rendered(messages=ready, tools=shown, add_generation_prompt=prompt))

    # ---- ends

    def _ended(self, ids: list[int], start: int) -> tuple[list[int], int, bool]:
        """The tokens with one at which serving stops, how many there are up to it, and whether it had to be added
        though the template never writes it."""
        if (stop := self._stop(ids, start)) is not None:
            return ids, stop, False
        if self._end is None:
            raise BadRow("", "the tokenizer names no token that ends a text: no answer would end")
        return [*ids, self._end], len(ids) + 1, self._written is None

    def _stop(self, ids: list[int], start: int) -> int | None:
        """How many tokens there are up to the first of those behind the answer at which serving stops."""
        found = None
        for at in range(len(ids) - 1, start - 1, -1):
            if ids[at] in self._stops:
                found = at + 1
            elif ids[at] not in self._specials and self._tokenizer.decode([ids[at]]).strip():
                break
        return found


def _bare(message: Message) -> Message:
    """As a request has it: without what is for us alone, and its reasoning in the API's field."""
    bare = {name: value for name, value in message.items() if name not in ("weight", *FIELDS)}
    reasoning = next((message[name] for name in FIELDS if message.get(name)), None)
    return bare if reasoning is None else bare | {FIELDS[0]: reasoning}


def same_beginning(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How much two sequences have in common at their beginning."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(i for i in range(shorter) if left[i] != right[i])
