"""The model as training found it, which answers what graders ask."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from engines.errors import InvalidRequest, TuneserveError
from engines.text.prompt import Conversation, PromptRenderer
from training.rewards.graders.judging import Question, Reply, TokenUsage
from training.rollouts.types import Asked, Drawing, JudgingRollouts


class BaseJudge:
    def __init__(self, tokenizer: Any, rollouts: Callable[[], JudgingRollouts]) -> None:
        """`rollouts`: what draws answers, whose engine holds the base model."""
        self._tokenizer = tokenizer
        self._rollouts = rollouts
        self._renderer: PromptRenderer | None = None

    def __call__(self, questions: Sequence[Question]) -> list[Reply | TuneserveError]:
        """The reply to each, or why there is none. The same question has the same reply.

        Raises UnsupportedModel, EngineFailure.
        """
        replies: list[Reply | TuneserveError] = []
        asked: list[Asked] = []
        for question in questions:
            try:
                asked.append(self._asked(question))
                replies.append(Reply(text=""))
            except InvalidRequest as error:
                replies.append(error)
        found = iter(zip(asked, self._rollouts().ask_base(asked), strict=True))
        return [each if isinstance(each, TuneserveError) else self._reply(*next(found)) for each in replies]

    def _asked(self, question: Question) -> Asked:
        if self._renderer is None:
            self._renderer = PromptRenderer(self._tokenizer)
        messages = self._renderer.messages([dict(message) for message in question.messages])
        text = self._renderer.render(Conversation(messages=messages))
        sampling = question.sampling
        drawn = int.from_bytes(hashlib.sha256(question.key.encode(errors="replace")).digest()[:7])
        return Asked(
            prompt_ids=self._renderer.encode(text, add_special_tokens=False),
            schema=json.dumps(question.schema),
            drawing=Drawing(
                max_new_tokens=question.max_tokens,
                temperature=1.0 if sampling.temperature is None else sampling.temperature,
                top_p=1.0 if sampling.top_p is None else sampling.top_p,
            ),
            seed=drawn if sampling.seed is None else sampling.seed,
        )

    def _reply(self, asked: Asked, said: list[int] | TuneserveError) -> Reply | TuneserveError:
        if isinstance(said, TuneserveError):
            return said
        usage = TokenUsage(prompt_tokens=len(asked.prompt_ids), completion_tokens=len(said))
        return Reply(text=self._tokenizer.decode(said, skip_special_tokens=True), usage=usage)
