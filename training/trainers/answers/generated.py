"""Evaluation by what the model writes: it answers the validation data, and its answers are compared with those
there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from engines.errors import InvalidRequest
from training.data.encode import IGNORED, stop_token_ids
from training.data.packing import samples_of
from training.params.sft import SftParams
from training.plugins import load
from training.rewards.overlap import score


def score_answers(model: Any, rows: Iterable[Mapping[str, Any]], tokenizer: Any, params: SftParams) -> dict[str, float]:
    """`rouge-1`, `rouge-2`, `rouge-l` (F-measures) and `bleu-4`, in percent, averaged over the samples in `rows`.

    Each sample's last answer is asked for again, given all that is before it. With a `metric` that is registered, also
    its number. Raises InvalidRequest.
    """
    pairs = list(_asked(rows))
    size = params.per_device_eval_batch_size
    answers: list[str] = []
    for start in range(0, len(pairs), size):
        answers += _generate(model, [prompt for prompt, _ in pairs[start : start + size]], tokenizer, params)
    references = [tokenizer.decode(there, skip_special_tokens=True) for _, there in pairs]
    scores = [score(answer, there) for answer, there in zip(answers, references, strict=True)]
    if not scores:
        return {}
    means = {name: sum(found[name] for found in scores) / len(scores) for name in scores[0]}
    return means | _measured(params, answers, references)


def _measured(params: SftParams, answers: list[str], references: list[str]) -> dict[str, float]:
    """The number of the metric that is registered, where one is asked for."""
    if params.metric is None:
        return {}
    plugin = load(params.custom_register_path).find("metric", params.metric)
    return {params.metric: plugin.number(answers, references)}


def check_asks(rows: Iterable[Mapping[str, Any]]) -> None:
    """Raises InvalidRequest where no sample has an answer with something before it."""
    if next(_asked(rows), None) is None:
        message = "no row of the validation data has an answer to be learned and a prompt before it"
        raise InvalidRequest(message, param="predict_with_generate")


def _asked(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts with their answers."""
    parts = (_parts(sample) for row in rows for sample in samples_of(row))
    return (both for both in parts if both is not None)


def _parts(row: Mapping[str, Any]) -> tuple[list[int], list[int]] | None:
    """The prompt and the answer of the last stretch that is learned from."""
    ids, labels = list(row["input_ids"]), list(row["labels"])
    learned = [i for i, label in enumerate(labels) if label != IGNORED]
    if not learned:
        return None
    end = learned[-1] + 1
    start = end
    while start > 0 and labels[start - 1] != IGNORED:
        start -= 1
    return (ids[:start], ids[start:end]) if start else None


def _generate(model: Any, prompts: Sequence[list[int]], tokenizer: Any, params: SftParams) -> list[str]:
    import torch

    longest = max(map(len, prompts))
    padded = [[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    with torch.inference_mode():
        made = model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=params.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=stop_token_ids(params, tokenizer) or None,
            use_cache=True,
            **_choice(params, tokenizer),
        )
    texts = [tokenizer.decode(ids[longest:], skip_special_tokens=True) for ids in made]
    return [_cut(text, params.stop_words) for text in texts]


def _choice(params: SftParams, tokenizer: Any) -> dict[str, Any]:
    """How tokens are chosen, and what ends a text, in transformers' words. What is not given, the model says."""
    names = ("top_k", "top_p", "repetition_penalty")
    known = {name: value for name in names if (value := getattr(params, name)) is not None}
    drawn = {"do_sample": True, "temperature": params.temperature} if params.temperature else {"do_sample": False}
    ends = {"stop_strings": list(params.stop_words), "tokenizer": tokenizer} if params.stop_words else {}
    return {"num_beams": params.num_beams, **drawn, **known, **ends}


def _cut(text: str, stop_words: Sequence[str]) -> str:
    """The text up to the first of the words that end it, as serving has it."""
    return text[: min((text.find(word) for word in stop_words if word in text), default=len(text))]
