"""A first version, of files with messages in a template that writes one message after another.

Helper data's replaces it: take theirs in a conflict.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADS = ("<assistant>", "<|im_start|>assistant\n")


@dataclass(frozen=True, slots=True)
class Datasets:
    train: Any
    evaluation: Any


def build(params: Any, tokenizer: Any, *, learns: str) -> Datasets:
    evaluation = _load(params.val_dataset, tokenizer) if params.val_dataset else None
    return Datasets(_load(params.dataset, tokenizer), evaluation)


def _load(files: Any, tokenizer: Any) -> Any:
    from datasets import Dataset

    lines = [line for file in files for line in Path(file).read_text().splitlines()]
    return Dataset.from_list([_encode(json.loads(line)["messages"], tokenizer) for line in lines])


def _encode(messages: list[dict[str, str]], tokenizer: Any) -> dict[str, list[int]]:
    ids: list[int] = []
    labels: list[int] = []
    text = ""
    for i, message in enumerate(messages):
        whole = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
        piece, text = whole[len(text) :], whole
        head = next((head for head in HEADS if message["role"] == "assistant" and piece.startswith(head)), None)
        prompt = tokenizer.encode(piece if head is None else head, add_special_tokens=False)
        answer = [] if head is None else tokenizer.encode(piece[len(head) :], add_special_tokens=False)
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
    return {"input_ids": ids, "labels": labels}
