"""Chat templates with the structure, as far as tools go, of those that well-known models bring."""

import json
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

QWEN = r"""
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Return calls within <tool_call></tool_call> tags.<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "assistant" and message.tool_calls %}<|im_start|>assistant
{%- if message.content %}{{ "\n" + message.content }}{% endif %}
{%- for call in message.tool_calls %}
{%- if call.function %}{% set call = call.function %}{% endif %}
{{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}{{ call.arguments | tojson }}{{ "}\n</tool_call>" }}
{%- endfor %}<|im_end|>
{% elif message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

QWEN3 = QWEN + "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"

LLAMA = """
{%- for message in messages %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}
{{- raise_exception("This model only supports single tool-calls at once!") }}{% endif %}
{%- set call = message.tool_calls[0].function -%}
<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>
{%- elif message.role == "tool" %}<|start_header_id|>ipython<|end_header_id|>

{{ message.content | tojson }}<|eot_id|>
{%- else %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if tools and loop.first %}Respond in the format {"name": function name, "parameters": dictionary of argument name \
and its value}. {% for tool in tools %}{{ tool | tojson }}{% endfor %} {% endif %}{{ message.content }}<|eot_id|>
{%- endif %}
{%- endfor %}<|start_header_id|>assistant<|end_header_id|>

"""

MISTRAL = """
{%- for message in messages %}
{%- if message["tool_calls"] is defined and message["tool_calls"] is not none %}[TOOL_CALLS] [
{%- for call in message["tool_calls"] %}
{%- if call.id | length != 9 %}{{ raise_exception("Tool call IDs must have length 9!") }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{{ "" if loop.last else ", " }}
{%- endfor %}]</s>
{%- elif message.role == "tool" %}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception("Tool call IDs must have length 9!") }}{% endif -%}
[TOOL_RESULTS] {"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]
{%- elif message.role == "user" %}
{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ message.content }}[/INST]
{%- else %} {{ message.content }}</s>
{%- endif %}
{%- endfor %}"""

PLAIN = """
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

NO_SYSTEM = """
{%- if messages[0].role == "system" %}{{ raise_exception("System role not supported") }}{% endif %}
{%- for message in messages %}
{%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
{{- raise_exception("Conversation roles must alternate") }}{% endif %}<turn>{{ message.role }}
{{ message.content }}</turn>
{% endfor %}"""

UNKNOWN_FORM = PLAIN + "{% if tools %}<call tool=name> {{ tools }}{% endif %}"


def render(template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **more: Any) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise
    more.setdefault("add_generation_prompt", True)
    return environment.from_string(template).render(messages=messages, tools=tools, **more)


def _raise(message: str) -> None:
    raise TemplateError(message)
