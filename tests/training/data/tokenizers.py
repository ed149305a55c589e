"""Tokenizers with chat templates of several kinds."""

from copy import deepcopy
from typing import Any

from tests.engines.tokenizers import byte_level

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS_LAST = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if loop.last and message.role == 'assistant' %}<think></think>{% endif %}{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes an answer in another way once more messages follow it, as Qwen3 and others that reason do."""
MERGES = (
    "{% for m in messages %}{{ 'qu' if m.role == 'assistant' }}{{ m.content }}{% endfor %}"
    "{{ 'qu' if add_generation_prompt }}"
)
"""Without special tokens: a token of the answer may begin in the prompt."""


def tokenizer(template: str | None = CHATML) -> Any:
    made = deepcopy(byte_level())
    made.chat_template = template
    return made
