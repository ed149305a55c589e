"""A reward model as a judge: a model with a head of one output, which says what an answer is worth."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from engines.adapters.heads import load_with_head
from engines.adapters.source import fetch_adapter, name_adapters
from engines.checkpoint.loading import load_tokenizer
from engines.errors import InvalidRequest, TuneserveError, UnsupportedModel
from engines.text.prompt import PromptRenderer
from engines.text.templates import template_in
from training.data.answers import Answers
from training.data.columns import read
from training.data.problems import BadRow
from training.data.samples import Conversation, Prompt, Text
from training.rewards.types import Answered

if TYPE_CHECKING:
    import torch

TOKENS = 1 << 14
"""Most tokens of one forward pass, padding among them."""


class RewardModel:
    """Judges answers as the reward model was trained to: whole texts, by the last token that is no padding."""

    name = "reward_model"

    def __init__(self, model: Any, tokenizer: Any, *, policy_tokenizer: Any, system: str | None = None) -> None:
        """`model`: with a head of one output. `tokenizer`: its own, with its chat template; the policy's says what the
        token ids of answers mean. `system` opens conversations that bring no system message, as the policy sees them.

        Raises UnsupportedModel.
        """
        if model.config.num_labels != 1:
            message = f"its head has {model.config.num_labels} labels: a reward is one number"
            raise UnsupportedModel(message, param="reward_model")
        self.model = model.requires_grad_(False).eval()
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = _padding(tokenizer)
        self._texts = _Texts(tokenizer, policy_tokenizer, system)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        adapters: Sequence[str] = (),
        revision: str | None = None,
        token: str | None = None,
        dtype: "torch.dtype | None" = None,
        device: str = "cpu",
        policy_tokenizer: Any,
        system: str | None = None,
    ) -> Self:
        """The reward model of `reward_model`, `reward_adapters` and `reward_model_revision`. Raises UnsupportedModel,
        InvalidAdapter, InvalidRequest; each names the parameter of these."""
        try:
            source = str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
            folders = [fetch_adapter(each, token=token) for each in name_adapters(adapters).values()]
            if len(folders) > 1:
                raise InvalidRequest("a reward model takes one adapter", param="adapters")
            adapter = folders[0] if folders else None
            tokenizer = load_tokenizer(source, revision=revision, token=token)
            tokenizer.chat_template = (adapter and template_in(adapter)) or tokenizer.chat_template
            judge = load_with_head(source, adapter=adapter, dtype=dtype, device=device, revision=revision, token=token)
        except TuneserveError as error:
            error.param = {"model": "reward_model", "adapters": "reward_adapters"}.get(error.param or "", error.param)
            raise
        return cls(judge, tokenizer, policy_tokenizer=policy_tokenizer, system=system)

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Raises InvalidRequest for a row that its chat template cannot show."""
        return [*self.score([self._texts.ids(answer) for answer in answers])]

    def score(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each text, in tokens of the reward model's own."""
        import torch

        scores = [0.0] * len(texts)
        with torch.inference_mode():
            for batch in _batches([len(text) for text in texts]):
                rewards = self._forward([texts[i] for i in batch])
                for i, reward in zip(batch, rewards, strict=True):
                    scores[i] = reward
        return scores

    def _forward(self, texts: Sequence[Sequence[int]]) -> list[float]:
        from training.data.padded import padded

        batch = padded(texts, self.model.config.get_text_config().pad_token_id)
        inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        rewards: list[float] = self.model(**inputs, use_cache=False).logits.squeeze(-1).float().tolist()
        return rewards


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices, the longest texts first, so that texts of one batch are about as long as one another."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padding(tokenizer: Any) -> int:
    """A token to pad with for a model that names none: not the one that ends texts, which is judged by too."""
    marks = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *reversed(range(len(tokenizer))))
    found: int = next(token for token in marks if token not in (None, tokenizer.eos_token_id))
    return found


class _Texts:
    """Answers of the policy in the reward model's tokens."""

    def __init__(self, tokenizer: Any, policy_tokenizer: Any, system: str | None) -> None:
        self._tokenizer, self._policy = tokenizer, policy_tokenizer
        self._renderer = PromptRenderer(tokenizer, system=system)
        ends = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self._answers = Answers(self._renderer, tokenizer, eos_token_ids=ends, plain=False)
        self._same = (
            tokenizer.get_vocab() == policy_tokenizer.get_vocab()
            and tokenizer.chat_template == policy_tokenizer.chat_template
        )
        self._end = self._end_of_answers() if self._same and self._renderer.template else []

    def ids(self, answer: Answered) -> list[int]:
        """Prompt and answer, as reward models are trained: with all that the template writes behind an answer that has
        ended. Raises InvalidRequest."""
        if not self._same:
            return self._rendered(answer)
        ids = [*answer.prompt_ids, *answer.token_ids]
        ended = bool(self._end) and ids[-1] == self._end[0]
        return ids + self._end[1:] if ended else ids

    def _end_of_answers(self) -> list[int]:
        asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]
        found = self._answers.answer(Conversation(asked, [], context=1), 1)
        return found.ids[found.stop - 1 :]

    def _rendered(self, answer: Answered) -> list[int]:
        try:
            sample = read(answer.item, "prompts")
        except BadRow as error:
            raise InvalidRequest(f"the reward model cannot be shown a row: {error}", param="dataset") from error
        assert isinstance(sample, Prompt)
        if isinstance(sample.whole, Text) or not self._renderer.template:
            prompt = self._policy.decode(answer.prompt_ids, skip_special_tokens=True)
            end = [self._tokenizer.eos_token_id] if answer.ended and self._tokenizer.eos_token_id is not None else []
            return self._renderer.encode(prompt + answer.text, add_special_tokens=True) + end
        asked = sample.whole.messages[: sample.whole.context]
        messages = [*asked, {"role": "assistant", "content": answer.text}]
        found = self._answers.answer(Conversation(messages, sample.whole.tools, context=len(asked)), len(asked))
        return found.ids if answer.ended else found.ids[: found.stop - 1]
