"""Rows to token ids, by the model's own template, and which of the tokens are learned.

A conversation has the tokens that the chat endpoint would see and make: the prompt of each answer, as it is rendered
for a request, and the answer behind it. Where a template writes an answer in another way once more messages follow
it (it leaves out the reasoning, say), that answer is learned in a sample of its own: no one sequence holds both.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from engines.checkpoint.loading import load_eos_token_ids
from engines.errors import InvalidRequest
from engines.text.prompt import PromptRenderer
from engines.text.templates import chosen_template
from training.data.answers import Answer, Answers, Note, same_beginning
from training.data.columns import read
from training.data.loss_scale import TokenScale, load_loss_scale
from training.data.problems import BadRow
from training.data.samples import Classified, Conversation, Labelled, Learns, Pair, Prompt, Text
from training.params.sft import SftParams

NO_TEMPLATE = (
    "the model has no chat template: name one by `template` (chatml, for one) or give one as `chat_template`, or set "
    "use_chat_template to false"
)
IGNORED = -100
"""The label of a token that is not learned."""

Encoded = dict[str, Any]


class TooLong(BadRow):
    """More tokens than `max_length`, where such rows are to be left out."""


def _as_asked(whole: Conversation | Text) -> dict[str, Any]:
    """A row that has nothing but what is asked, and the answer where there is one."""
    if isinstance(whole, Text):
        return {"prompt": whole.prompt, "completion": whole.completion}
    return {"messages": whole.messages} | ({"tools": whole.tools} if whole.tools else {})


class Encoder:
    """Encodes for one model and one kind of training."""

    def __init__(self, params: SftParams, tokenizer: Any, learns: Learns, max_length: int | None) -> None:
        """Raises InvalidRequest."""
        if params.truncation_strategy == "split" and learns != "text":
            raise InvalidRequest(
                "only what pt trains can be split: an answer belongs to its prompt", param="truncation_strategy"
            )
        self._params = params
        self._tokenizer = tokenizer
        self.learns = learns
        self._loss_scale = "all" if learns == "text" else params.loss_scale
        self.max_length = max_length
        plain = not params.use_chat_template
        self._renderer = _renderer(params, tokenizer)
        scale = load_loss_scale(params.loss_scale) if learns == "answers" else None
        self._scale = None if scale is None else TokenScale(scale, tokenizer)
        self.loss_scale = scale
        """What the parts of answers weigh, which samples then tell of each token; None: all the same."""
        ends = _eos_token_ids(params, tokenizer)
        self._answers = Answers(self._renderer, tokenizer, eos_token_ids=ends, plain=plain, scale=self._scale)
        self._notes: set[Note] = set()

    def encode(self, row: Any) -> list[Encoded]:
        """The samples of a row: one, but for the templates named above. Raises BadRow."""
        sample = read(row, self.learns)
        self._notes.clear()
        try:
            match sample:
                case Pair() if self.learns == "pairs":
                    return [self._pair(sample)]
                case Pair() | Labelled():
                    return list(self._labelled(sample))
                case Prompt(whole):
                    kept = _as_asked(whole) if self._params.remove_unused_columns else row
                    item = json.dumps(kept, ensure_ascii=False, default=str)
                    return [self._prompt(whole) | {"item": item}]
                case Classified():
                    return [self._classified(sample)]
                case Text():
                    return self._fitted(self._text_sample(sample))
                case Conversation():
                    return [piece for one in self._conversation(sample) for piece in self._fitted(one)]
        except InvalidRequest as error:
            raise BadRow("", error.message) from error

    # ---- texts

    def _text_sample(self, sample: Text) -> Encoded:
        prompt, ids = self._prompt_and_all(sample)
        start = same_beginning(prompt, ids) if sample.prompt and self._loss_scale != "all" else 0
        found: Encoded = {"input_ids": ids, "labels": [IGNORED] * start + ids[start:]}
        if self._scale is None:
            return found
        return _scaled(found, [(start, self._scale.of_completion(ids, start, sample.prompt, sample.completion))])

    def _prompt_and_all(self, sample: Text) -> tuple[list[int], list[int]]:
        end: str = self._tokenizer.eos_token or ""
        text = sample.prompt + sample.completion
        text = text if end and text.endswith(end) else text + end
        encode = self._renderer.encode
        return encode(sample.prompt, add_special_tokens=True), encode(text, add_special_tokens=True)

    def reads(self, field: str) -> bool:
        """Whether the chat template shows a field of messages."""
        return self._answers.reads(field)

    def knows(self, variable: str) -> bool:
        """Whether the chat template has such a variable."""
        return variable in self._renderer.template

    @property
    def notes(self) -> list[Note]:
        """What is to be told of the row that was encoded last."""
        return sorted(self._notes)

    # ---- conversations

    def _conversation(self, sample: Conversation) -> Iterator[Encoded]:
        self._check_template()
        if self._loss_scale == "all":
            yield self._whole(sample)
            return
        left = [answer for answer in self._turns(sample) if answer.weight]
        if not left:
            raise BadRow("", "there is no answer to learn")
        self._notes.update(*(answer.notes for answer in left))
        while left:
            ids = left[-1].ids
            here = [answer for answer in left if ids[: answer.stop] == answer.ids[: answer.stop]]
            found = {"input_ids": ids, "labels": _labels(ids, here)}
            yield found if self._scale is None else _scaled(found, [(one.start, one.scale or []) for one in here])
            left = [answer for answer in left if answer not in here]
            if left:
                self._notes.add(Note.APART)

    def _whole(self, sample: Conversation) -> Encoded:
        """Every token is learned, but for answers of weight 0."""
        last = self._answers.answer(sample, len(sample.messages) - 1)
        left_out = [answer for answer in self._turns(sample) if not answer.weight]
        if not all(last.ids[: answer.stop] == answer.ids[: answer.stop] for answer in left_out):
            raise BadRow("", "the template changes messages of weight 0 later on: they cannot be left out of the loss")
        self._notes |= last.notes
        never = _labels(last.ids, left_out)
        labels = [token if label == IGNORED else IGNORED for token, label in zip(last.ids, never, strict=True)]
        return {"input_ids": last.ids, "labels": labels}

    def _turns(self, sample: Conversation) -> Iterator[Answer]:
        messages = sample.messages
        users = [i for i, message in enumerate(messages) if message["role"] == "user"]
        last_round = users[-1] if self._loss_scale == "last_round" and users else 0
        for i, message in enumerate(messages):
            if message["role"] == "assistant" and i >= sample.context and (i >= last_round or message.get("weight")):
                yield self._answers.answer(sample, i)

    def _check_template(self) -> None:
        if not self._renderer.template:
            raise BadRow("", NO_TEMPLATE)

    # ---- answers with a prompt

    def _pair(self, pair: Pair) -> Encoded:
        prompt, chosen = self._answered(pair.chosen)
        other, rejected = self._answered(pair.rejected)
        if prompt != other:  # tokens of texts, which reach over the edge between prompt and answer
            start = same_beginning(prompt, other)
            prompt, chosen, rejected = prompt[:start], prompt[start:] + chosen, other[start:] + rejected
        prompt, chosen, rejected = self._cut(prompt, chosen, rejected)
        return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "margin": pair.margin}

    def _labelled(self, sample: Pair | Labelled) -> Iterator[Encoded]:
        """A pair is a good answer and a bad one."""
        if isinstance(sample, Pair):
            sides = [Labelled(sample.chosen, True), Labelled(sample.rejected, False)]
        else:
            sides = [sample]
        for side in sides:
            prompt, answer = self._cut(*self._answered(side.answer))
            yield {"prompt_ids": prompt, "completion_ids": answer, "label": side.good}

    def _prompt(self, whole: Conversation | Text) -> Encoded:
        answer: list[int] = []
        if isinstance(whole, Text) and not whole.completion:
            prompt = self._renderer.encode(whole.prompt, add_special_tokens=True)
        elif isinstance(whole, Conversation) and whole.context == len(whole.messages):
            self._check_template()
            prompt = self._answers.prompt(whole, whole.context)
        else:
            prompt, answer = self._answered(whole)
        prompt, answer = self._cut(prompt, answer)
        return {"prompt_ids": prompt, "completion_ids": answer}

    def _answered(self, sample: Conversation | Text) -> tuple[list[int], list[int]]:
        """The tokens of the prompt, and those of the answer."""
        if isinstance(sample, Text):
            prompt, ids = self._prompt_and_all(sample)
            start = same_beginning(prompt, ids)
            return ids[:start], ids[start:]
        self._check_template()
        if sample.context == 0:
            raise BadRow("", "the answers have no message in common that they answer")
        prompt = self._answers.prompt(sample, sample.context)
        answer = self._answers.answer(sample, len(sample.messages) - 1)
        if answer.ids[: len(prompt)] != prompt:
            raise BadRow("", "the template writes the first messages of the answer in another way once more follow")
        self._notes |= answer.notes
        return prompt, answer.ids[len(prompt) :]

    # ---- texts with their class

    def _classified(self, sample: Classified) -> Encoded:
        content = sample.content
        if isinstance(content, Text):
            ids = self._renderer.encode(content.prompt + content.completion, add_special_tokens=True)
        else:
            self._check_template()
            ids = self._answers.written(content)
        limit = self.max_length
        if limit is not None and len(ids) > limit:
            self._refuse_long(len(ids), limit)
            ids = ids[-limit:] if self._params.truncation_strategy == "left" else ids[:limit]
        return {"input_ids": ids, "label": self._class(sample.label)}

    def _class(self, label: float | list[int]) -> float | int | list[int]:
        """Raises BadRow for what is no class of `num_labels`; one label makes it a value."""
        classes = self._params.num_labels
        if classes == 1:
            if isinstance(label, list):
                raise BadRow("label", "is a list of classes, and num_labels is 1: a value is learned")
            return float(label)
        if isinstance(label, list) and self._params.problem_type == "single_label_classification":
            raise BadRow("label", "is a list of classes: set problem_type to multi_label_classification")
        numbers = label if isinstance(label, list) else [label]
        for number in numbers:
            if number != int(number) or number < 0 or (classes is not None and number >= classes):
                known = f"num_labels is {classes}" if classes is not None else "num_labels 1 is what learns values"
                raise BadRow("label", f"{number} is no number of a class, which are counted from 0; {known}")
        return label if isinstance(label, list) else int(label)

    # ---- lengths

    def _fitted(self, sample: Encoded) -> list[Encoded]:
        """One sample, or, with truncation_strategy split, one behind another."""
        limit, ids, labels = self.max_length, sample["input_ids"], sample["labels"]
        parts = [slice(None)]
        if limit is not None and len(ids) > limit:
            self._refuse_long(len(ids), limit)
            parts = {
                "left": [slice(-limit, None)],
                "right": [slice(limit)],
                "split": [slice(start, start + limit) for start in range(0, len(ids), limit)],
            }[self._params.truncation_strategy]
        learned = [part for part in parts if any(label != IGNORED for label in labels[part][1:])]
        if not learned:
            raise TooLong(
                "", f"cut to {limit} tokens, nothing is left of it to learn" if limit else "there is nothing to learn"
            )
        return [{name: values[part] for name, values in sample.items()} for part in learned]

    def _cut(self, prompt: list[int], *answers: list[int]) -> tuple[list[int], ...]:
        """With every answer, the prompt fits."""
        limit = self.max_length
        longest = len(prompt) + max(map(len, answers))
        if limit is None or longest <= limit:
            return prompt, *answers
        self._refuse_long(longest, limit)
        if self._params.truncation_strategy == "left":
            prompt = prompt[longest - limit :]
        room = limit - len(prompt)
        if not prompt or room < any(answers):
            raise TooLong("", f"cut to {limit} tokens, nothing is left of it to learn")
        return prompt, *(answer[:room] for answer in answers)

    def _refuse_long(self, length: int, limit: int) -> None:
        if self._params.truncation_strategy == "delete":
            raise TooLong("", f"it has {length} tokens, and max_length is {limit}")


def _labels(ids: list[int], answers: Sequence[Answer]) -> list[int]:
    """Answers that `ids` begin with, or hold, are learned, with what the template writes behind them."""
    labels = [IGNORED] * len(ids)
    for answer in answers:
        end = answer.stop + same_beginning(ids[answer.stop :], answer.ids[answer.stop :])
        labels[answer.start : end] = ids[answer.start : end]
    return labels


def _scaled(sample: Encoded, scales: Sequence[tuple[int, list[float]]]) -> Encoded:
    """`sample` with `loss_scale`, what each token weighs in the loss. `scales`: where a part begins, and what its
    tokens weigh. What weighs nothing is not learned."""
    weights = [1.0] * len(sample["input_ids"])
    for start, scale in scales:
        weights[start : start + len(scale)] = scale
    labels = [label if weight else IGNORED for label, weight in zip(sample["labels"], weights, strict=True)]
    weights = [0.0 if label == IGNORED else weight for label, weight in zip(labels, weights, strict=True)]
    return {**sample, "labels": labels, "loss_scale": weights}


def stop_token_ids(params: SftParams, tokenizer: Any) -> list[int]:
    """The tokens at which serving stops behind an answer."""
    ends = _eos_token_ids(params, tokenizer)
    written = _renderer(params, tokenizer).end_of_answer(ends) if params.use_chat_template else None
    return [*ends, *([] if written is None or written in ends else [written])]


def _renderer(params: SftParams, tokenizer: Any) -> PromptRenderer:
    return PromptRenderer(tokenizer, system=params.system, chat_template=chosen_template(params, tokenizer))


def _eos_token_ids(params: SftParams, tokenizer: Any) -> tuple[int, ...]:
    """The tokens at which every engine stops, the tokenizer's own first."""
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if not params.model:
        return own
    said = load_eos_token_ids(params.model, revision=params.model_revision, token=params.hub_token)
    return tuple(sorted(said, key=lambda end: end not in own)) or own
