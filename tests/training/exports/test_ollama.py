"""Ollama is told of the model's own chat template, or nothing is written."""

import pytest

from engines.errors import UnsupportedModel
from tests.engines.pt.tiny import byte_level_tokenizer
from training.exports.ollama import Message, find_parts

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot|>' "
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INSTRUCT = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% if system %}{{ '<<SYS>>' + system + '<</SYS>> ' }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + '</s>' }}"
    "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ' }}{% endif %}"
)
FORGETS = (
    "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}<{{ m.role }}>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK: list[Message] = [
    {"role": "system", "content": "You are\na bear."},
    {"role": "user", "content": "{{ what }} \"you\" eat"},
    {"role": "assistant", "content": "fish"},
    {"role": "user", "content": "every day?"},
]  # fmt: skip


@pytest.mark.parametrize("template", [CHATML, HEADERS, INSTRUCT], ids=["chatml", "headers", "instruct"])
@pytest.mark.parametrize("messages", [TALK, TALK[1:], TALK[1:2]], ids=["system", "talk", "question"])
def test_a_conversation_is_rendered_as_by_the_model_s_own_template(template: str, messages: list[Message]) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = template
    truth = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert find_parts(tokenizer).rendered(messages) == truth


def test_the_template_is_written_in_go_s_language() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHATML
    assert (
        find_parts(tokenizer).template()
        == r"""
{{- if .System }}{{ "<|im_start|>system\n" }}{{ .System }}{{ "<|im_end|>\n" }}
{{- else }}{{ "<|im_start|>system\nBe brief.<|im_end|>\n" }}
{{- end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}{{ "<|im_start|>user\n" }}{{ .Content }}{{ "<|im_end|>\n<|im_start|>assistant\n" }}
{{- else if eq .Role "assistant" }}{{ .Content }}
{{- if not $last }}{{ "<|im_end|>\n" }}{{ end }}
{{- end }}
{{- end }}""".lstrip("\n")
    )


def test_a_template_that_leaves_out_messages_is_refused() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = FORGETS
    with pytest.raises(UnsupportedModel, match="cannot be written for Ollama"):
        find_parts(tokenizer)
