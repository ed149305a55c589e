"""A language small enough that a model of it is taught in a minute: eight letters.

A prompt is three of them, an answer three to eight. The small model has learned to answer with any letters, each as
likely as the others; the teacher of distillation answers with those of `GOOD` alone.
"""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefgh"
GOOD, BAD = LETTERS[:4], LETTERS[4:]
CLASSES = ("abc", "def", "gh")
FEWEST, MOST = 3, 8
"""Letters of an answer."""
SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STEPS, BATCH, RATE = 300, 64, 3e-3
"""How the small model learned its language."""

Row = dict[str, Any]


def word(rng: random.Random, letters: str = LETTERS, length: int | None = None) -> str:
    return "".join(rng.choices(letters, k=rng.randint(FEWEST, MOST) if length is None else length))


def prompt(rng: random.Random) -> str:
    return word(rng, length=3)


def asked(text: str) -> list[Row]:
    return [{"role": "user", "content": text}]


def answered(text: str, answer: str) -> list[Row]:
    return [*asked(text), {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class World:
    """The models, made once in `folder`."""

    folder: Path
    steps: int = STEPS
    """Steps in which they learn the language."""

    @cached_property
    def model(self) -> Path:
        return self._made("model", LETTERS)

    @cached_property
    def teacher(self) -> Path:
        return self._made("teacher", GOOD)

    def _made(self, name: str, letters: str) -> Path:
        folder = self.folder / name
        if not (folder / "tokenizer_config.json").exists():  # which is written last
            tokenizer = make_tokenizer()
            taught(letters, tokenizer, self.steps).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    def write(self, name: str, rows: Iterable[Row]) -> str:
        file = self.folder / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(file)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and the special ones."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def taught(letters: str, tokenizer: PreTrainedTokenizerFast, steps: int) -> LlamaForCausalLM:
    """A model of two layers that answers every prompt with any of these letters. Always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlamaForCausalLM(_config(tokenizer))
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
        rng = random.Random(0)
        for _ in range(steps):
            batch = [answered(prompt(rng), word(rng, letters)) for _ in range(BATCH)]
            loss = _loss(network, tokenizer, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    return network.eval()


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _loss(network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: list[list[Row]]) -> torch.Tensor:
    encoded = tokenizer.apply_chat_template(batch, return_tensors="pt", return_dict=True, padding=True)
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    loss: torch.Tensor = network(**encoded, labels=labels).loss
    return loss


# ---- rows of data


def rows(make: Callable[[random.Random], Row], count: int, *, seed: int) -> list[Row]:
    rng = random.Random(seed)
    return [make(rng) for _ in range(count)]


def demonstration(rng: random.Random) -> Row:
    """An answer of good letters."""
    return {"messages": answered(prompt(rng), word(rng, GOOD))}


def pair(rng: random.Random) -> Row:
    """An answer of good letters is preferred to one of bad letters that is as long."""
    good = word(rng, GOOD)
    return {"messages": answered(prompt(rng), good), "rejected_response": word(rng, BAD, len(good))}


def labelled(rng: random.Random) -> Row:
    """An answer of good letters is desirable, one of bad letters is not."""
    label = rng.random() < 0.5
    return {"messages": answered(prompt(rng), word(rng, GOOD if label else BAD)), "label": label}


def more_of_a(rng: random.Random) -> Row:
    """Of two answers that are equally long, the one with more of the letter a is preferred."""
    while True:
        length = rng.randint(FEWEST, MOST)
        first, second = sorted((_with_a(rng, length), _with_a(rng, length)), key=share_of_a, reverse=True)
        if share_of_a(first) > share_of_a(second):
            return {"messages": answered(prompt(rng), first), "rejected_response": second}


def _with_a(rng: random.Random, length: int) -> str:
    part = rng.random()
    return "".join("a" if rng.random() < part else rng.choice(LETTERS) for _ in range(length))


def classified(rng: random.Random) -> Row:
    """The class of an answer is that of its letters."""
    label = rng.randrange(len(CLASSES))
    return {"messages": answered(prompt(rng), word(rng, CLASSES[label])), "label": label}


def question(rng: random.Random) -> Row:
    return {"messages": asked(prompt(rng))}


def share_of_a(answer: str) -> float:
    """The reward: which part of an answer's letters is the letter a."""
    return answer.count("a") / len(answer) if answer else 0.0


def rewards(completions: list[list[Row]], **_: Any) -> list[float]:
    """The reward of each answer, in TRL's form."""
    return [share_of_a(completion[-1]["content"]) for completion in completions]
