"""What a training is to change, measured on prompts that it has not seen, by transformers alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import alignment_world as world
from benchmarks.alignment_world import Row

COUNT = 64
"""Prompts, pairs or answers that are looked at."""
DRAWN = 4
"""Answers to each prompt."""
SEED = 10_000
"""Of what is measured: no training's."""


def likelihood(model: Path) -> float:
    """How likely answers of good letters are: the mean of their log-probabilities, in nats."""
    rows = world.rows(world.demonstration, COUNT, seed=SEED)
    return float(_log_probs(model, [row["messages"] for row in rows]).mean())


def margin(model: Path) -> float:
    """By how much answers of good letters are likelier than those of bad ones, in nats."""
    rows = world.rows(world.pair, COUNT, seed=SEED)
    chosen, rejected = _sides(rows)
    return float((_log_probs(model, chosen) - _log_probs(model, rejected)).mean())


def reward(model: Path) -> float:
    """The mean reward of answers that the model gives."""
    tokenizer, network = _loaded(model)
    tokenizer.padding_side = "left"
    prompts = [row["messages"] for row in world.rows(world.question, COUNT, seed=SEED)]
    batch = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    torch.manual_seed(SEED)
    drawn = network.generate(
        **batch, do_sample=True, top_k=0, temperature=1.0, max_new_tokens=2 * world.MOST, num_return_sequences=DRAWN
    )
    answers = tokenizer.batch_decode(drawn[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(map(world.share_of_a, answers)) / len(answers)


def divergence(model: Path, teacher: Path) -> float:
    """How far the model is from its teacher, at each token of the teacher's answers: KL(teacher, model) in nats."""
    rows = world.rows(world.demonstration, COUNT, seed=SEED)
    conversations = [row["messages"] for row in rows]
    batch, asked = _batch(_loaded(teacher)[0], conversations)
    with torch.inference_mode():
        wanted, found = (_loaded(each)[1](**batch).logits[:, :-1].log_softmax(-1) for each in (teacher, model))
    apart = (wanted.exp() * (wanted - found)).sum(-1)
    return float(apart[asked].mean())


def preference(model: Path) -> float:
    """The part of pairs of which the preferred answer has the higher reward."""
    rows = world.rows(world.more_of_a, COUNT, seed=SEED)
    chosen, rejected = (_scores(model, side)[:, 0] for side in _sides(rows))
    return float((chosen > rejected).float().mean())


def accuracy(model: Path) -> float:
    """The part of answers whose class is found."""
    rows = world.rows(world.classified, COUNT, seed=SEED)
    found = _scores(model, [row["messages"] for row in rows]).argmax(-1)
    return float((found == torch.tensor([row["label"] for row in rows])).float().mean())


# ---- what they are made of


def _sides(rows: Sequence[Row]) -> tuple[list[list[Row]], list[list[Row]]]:
    chosen = [row["messages"] for row in rows]
    rejected = [[*row["messages"][:-1], {"role": "assistant", "content": row["rejected_response"]}] for row in rows]
    return chosen, rejected


def _loaded(model: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def _batch(tokenizer: Any, conversations: list[list[Row]]) -> tuple[dict[str, Tensor], Tensor]:
    """The conversations as (rows, tokens), and where the next token is one of an answer, as (rows, tokens - 1)."""
    tokenizer.padding_side = "right"
    batch = dict(tokenizer.apply_chat_template(conversations, return_tensors="pt", return_dict=True, padding=True))
    prompts = [
        tokenizer.apply_chat_template(each[:-1], add_generation_prompt=True)["input_ids"] for each in conversations
    ]
    begins = torch.tensor([[len(prompt)] for prompt in prompts])
    places = torch.arange(1, batch["input_ids"].shape[1])
    return batch, (places >= begins) & batch["attention_mask"][:, 1:].bool()


def _log_probs(model: Path, conversations: list[list[Row]]) -> Tensor:
    """The log-probability of each answer, as (rows,)."""
    tokenizer, network = _loaded(model)
    batch, asked = _batch(tokenizer, conversations)
    with torch.inference_mode():
        likely = network(**batch).logits[:, :-1].log_softmax(-1)
    tokens = likely.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (tokens * asked).sum(-1)


def _scores(model: Path, conversations: list[list[Row]]) -> Tensor:
    """What the model's head gives for each conversation, as (rows, outputs)."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    batch, _ = _batch(tokenizer, conversations)
    with torch.inference_mode():
        scores: Tensor = network(**batch).logits
    return scores
