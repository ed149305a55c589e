"""A real tokenizer: one token a byte, ChatML, tools in Hermes' format."""

from typing import TYPE_CHECKING

from engines.text.byte_level import BYTE_OF_CHARACTER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTES = 256
"""Token ids below it are single bytes."""
END_OF_TEXT, IM_START, IM_END = range(BYTES, BYTES + 3)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Special tokens, in the order of their ids."""
VOCAB_SIZE = BYTES + len(SPECIALS)

CHAT_TEMPLATE = """\
{%- if tools %}
{{- "<|im_start|>system\\n" }}
{%- if messages[0].role == "system" %}{{ messages[0].content + "\\n\\n" }}{% endif %}
{{- "You may call functions, described within <tools></tools>:\\n<tools>" }}
{%- for tool in tools %}{{ "\\n" + tool | tojson }}{% endfor %}
{{- '\\n</tools>\\nCall one with <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == "system") %}
{{- "<|im_start|>" + ("user" if message.role == "tool" else message.role) + "\\n" }}
{%- if message.role == "tool" %}{{ "<tool_response>\\n" + message.content + "\\n</tool_response>" }}
{%- elif message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content or [] %}{{ part.text }}{% endfor %}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- "\\n<tool_call>\\n" + {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
{{- "\\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""


def echo_tokenizer(max_model_len: int = 4096) -> "PreTrainedTokenizerFast":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=BYTE_OF_CHARACTER, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=max_model_len,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
