"""Rows to token ids, by the model's own template, and which of the tokens are learned.

A conversation has the tokens that the chat endpoint would see and make: the prompt of each answer, as it is rendered
for a request, and the answer behind it. Where a template writes an answer in another way once more messages follow
it (it leaves out the reasoning, say), that answer is learned in a sample of its own: no one sequence holds both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from engines.errors import InvalidRequest
from engines.params.about import unsupported_choice
from engines.text.prompt import Conversation as Rendered
from engines.text.prompt import PromptRenderer, plain_template
from engines.text.tool_formats import find_tool_format
from engines.text.tool_messages import for_template
from training.data.columns import read
from training.data.problems import BadRow
from training.data.samples import Conversation, Labelled, Learns, Message, Pair, Text
from training.params.sft import SftParams

IGNORED = -100
"""The label of a token that is not learned."""

Encoded = dict[str, Any]


class TooLong(BadRow):
    """More tokens than `max_length`, where such rows are to be left out."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """An answer of the assistant."""

    start: int
    """Where it begins in `text`."""
    text: str
    """Everything up to its end."""
    weight: int = 1


class Encoder:
    """Encodes for one model and one kind of training."""

    def __init__(self, params: SftParams, tokenizer: Any, learns: Learns, max_length: int | None) -> None:
        """Raises InvalidRequest."""
        if reason := unsupported_choice(SftParams.model_fields["loss_scale"], params.loss_scale):
            raise InvalidRequest(reason, param="loss_scale")
        self._params = params
        self._tokenizer = tokenizer
        self._learns = learns
        self._loss_scale = "all" if learns == "text" else params.loss_scale
        self._max_length = max_length
        template = None if params.use_chat_template else plain_template(tokenizer)
        self._renderer = PromptRenderer(tokenizer, system=params.system, chat_template=template)
        self._form = find_tool_format(self._renderer.template, tokenizer.get_added_vocab())
        self._end = "" if params.use_chat_template else tokenizer.eos_token or ""

    def encode(self, row: Any) -> list[Encoded]:
        """The samples of a row: one, but for the templates named above. Raises BadRow."""
        sample = read(row, self._learns)
        try:
            if self._learns == "pairs":
                assert isinstance(sample, Pair)
                return [self._pair(sample)]
            if self._learns == "labels":
                return list(self._labelled(sample))
            if isinstance(sample, Text):
                return [self._fitted(*self._text_sample(sample))]
            assert isinstance(sample, Conversation)
            return [self._fitted(*one) for one in self._conversation(sample)]
        except InvalidRequest as error:
            raise BadRow("", error.message) from error

    def reads(self, field: str) -> bool:
        """Whether the chat template shows the model a field of messages."""
        probe = "tuneserve probe"
        messages = [{"role": role, "content": "x", field: probe} for role in ("user", "assistant")]
        try:
            return probe in self._render(Conversation(messages, []), len(messages))
        except (BadRow, InvalidRequest):
            return False

    # ---- texts

    def _text_sample(self, sample: Text) -> tuple[list[int], list[int]]:
        prompt, ids = self._prompt_and_all(sample)
        start = _same_beginning(prompt, ids) if sample.prompt and self._loss_scale != "all" else 0
        return ids, [IGNORED] * start + ids[start:]

    def _prompt_and_all(self, sample: Text) -> tuple[list[int], list[int]]:
        end: str = self._tokenizer.eos_token or ""
        text = sample.prompt + sample.completion
        text = text if end and text.endswith(end) else text + end
        encode = self._renderer.encode
        return encode(sample.prompt, add_special_tokens=True), encode(text, add_special_tokens=True)

    # ---- conversations

    def _conversation(self, sample: Conversation) -> Iterator[tuple[list[int], list[int]]]:
        if self._loss_scale == "all":
            yield self._whole(sample)
            return
        left = [turn for turn in self._turns(sample) if turn.weight]
        if not left:
            raise BadRow("", "there is no answer to learn")
        while left:
            whole = left[-1].text
            here = [turn for turn in left if whole.startswith(turn.text)]
            ids, spans = self._tokens(whole, [(turn.start, len(turn.text)) for turn in here])
            labels = [IGNORED] * len(ids)
            for start, end in spans:
                labels[start:end] = ids[start:end]
            yield ids, labels
            left = [turn for turn in left if turn not in here]

    def _whole(self, sample: Conversation) -> tuple[list[int], list[int]]:
        """Every token is learned, but for answers of weight 0."""
        whole = self._render(sample, len(sample.messages)) + self._end
        left_out = [turn for turn in self._turns(sample) if not turn.weight]
        if not all(whole.startswith(turn.text) for turn in left_out):
            raise BadRow("", "the template changes messages of weight 0 later on: they cannot be left out of the loss")
        ids, spans = self._tokens(whole, [(turn.start, len(turn.text)) for turn in left_out])
        labels = list(ids)
        for start, end in spans:
            labels[start:end] = [IGNORED] * (end - start)
        return ids, labels

    def _turns(self, sample: Conversation) -> Iterator[_Turn]:
        messages = sample.messages
        users = [i for i, message in enumerate(messages) if message["role"] == "user"]
        last_round = users[-1] if self._loss_scale == "last_round" and users else 0
        for i, message in enumerate(messages):
            if message["role"] == "assistant" and i >= sample.context and (i >= last_round or message.get("weight")):
                text = self._render(sample, i + 1) + (self._end if i == len(messages) - 1 else "")
                yield _Turn(self._start(sample, i, text), text, message.get("weight", 1))

    def _start(self, sample: Conversation, answer: int, text: str) -> int:
        """Where in `text`, which ends with it, an answer begins."""
        if answer:
            return _same_beginning(self._render(sample, answer, prompt=True), text)
        # No request asks for a first message of the assistant: all but its content is the template's.
        (greeting,) = self._renderer.messages([_without_weight(sample.messages[0])])[-1:]
        return max(0, text.rfind(greeting["content"])) if greeting["content"] else 0

    def _render(self, sample: Conversation, length: int, *, prompt: bool = False) -> str:
        """The first messages as text; as the prompt of a request, where an answer is to follow."""
        if not self._renderer.template:
            raise BadRow("", "the model has no chat template: set use_chat_template to false")
        messages = self._renderer.messages([_without_weight(message) for message in sample.messages[:length]])
        ready, shown = for_template(messages, sample.tools, self._form, self._renderer.template)
        return self._renderer.render(Rendered(messages=ready, tools=shown, add_generation_prompt=prompt))

    def _tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """The text's tokens, and where in them its spans of characters are."""
        cuts = [0, *(cut for span in spans for cut in span), len(text)]
        pieces = [self._encode(text[start:end]) for start, end in pairwise(cuts)]
        ids = self._encode(text)
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        joined = [token for piece in pieces for token in piece]
        if joined != ids:
            found = [_same_beginning(self._encode(text[:cut]), ids) for cut in cuts]
            if all(ids[:at] == self._encode(text[:cut]) for at, cut in zip(found, cuts, strict=True)):
                ends = found
            else:  # a token would reach over the edge: a request's prompt ends there all the same
                ids = joined
        return ids, [(ends[i], ends[i + 1]) for i in range(1, 2 * len(spans), 2)]

    def _encode(self, text: str) -> list[int]:
        return self._renderer.encode(text, add_special_tokens=False) if text else []

    # ---- answers with a prompt

    def _pair(self, pair: Pair) -> Encoded:
        prompt, chosen = self._answered(pair.chosen)
        other, rejected = self._answered(pair.rejected)
        start = min(_same_beginning(prompt, chosen), _same_beginning(other, rejected))
        prompt, chosen, rejected = self._cut(chosen[:start], chosen[start:], rejected[start:])
        return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}

    def _labelled(self, sample: Any) -> Iterator[Encoded]:
        """A pair is a good answer and a bad one."""
        if isinstance(sample, Pair):
            sides = [Labelled(sample.chosen, True), Labelled(sample.rejected, False)]
        else:
            sides = [sample]
        for side in sides:
            prompt, ids = self._answered(side.answer)
            start = _same_beginning(prompt, ids)
            prompt, answer = self._cut(ids[:start], ids[start:])
            yield {"prompt_ids": prompt, "completion_ids": answer, "label": side.good}

    def _answered(self, sample: Conversation | Text) -> tuple[list[int], list[int]]:
        """The prompt's tokens, and those of prompt and answer."""
        if isinstance(sample, Text):
            return self._prompt_and_all(sample)
        if sample.context == 0:
            raise BadRow("", "the answers have no message in common that they answer")
        prompt = self._render(sample, sample.context, prompt=True)
        text = self._render(sample, len(sample.messages)) + self._end
        return self._encode(prompt), self._encode(text)

    # ---- lengths

    def _fitted(self, ids: list[int], labels: list[int]) -> Encoded:
        limit = self._max_length
        if limit is not None and len(ids) > limit:
            self._refuse_long(len(ids), limit)
            part = slice(-limit, None) if self._params.truncation_strategy == "left" else slice(limit)
            ids, labels = ids[part], labels[part]
        if all(label == IGNORED for label in labels[1:]):
            raise TooLong(
                "", f"cut to {limit} tokens, nothing is left of it to learn" if limit else "there is nothing to learn"
            )
        return {"input_ids": ids, "labels": labels}

    def _cut(self, prompt: list[int], *answers: list[int]) -> tuple[list[int], ...]:
        """With every answer, the prompt fits."""
        limit = self._max_length
        longest = len(prompt) + max(map(len, answers))
        if limit is None or longest <= limit:
            return prompt, *answers
        self._refuse_long(longest, limit)
        if self._params.truncation_strategy == "left":
            prompt = prompt[longest - limit :]
        room = limit - len(prompt)
        if room <= 0 or not prompt:
            raise TooLong("", f"cut to {limit} tokens, nothing is left of it to learn")
        return prompt, *(answer[:room] for answer in answers)

    def _refuse_long(self, length: int, limit: int) -> None:
        if self._params.truncation_strategy == "delete":
            raise TooLong("", f"it has {length} tokens, and max_length is {limit}")


def _without_weight(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "weight"}


def _same_beginning(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How much two sequences have in common at their beginning."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(i for i in range(shorter) if left[i] != right[i])
