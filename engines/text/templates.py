"""Which chat template a model is trained and served with: the one that is given, one of those named here, or its own.

A template holds its variables' values, and how tools are told of, in itself (`_with_settings`), so that one file,
chat_template.jinja, is all that has to go with what was trained: every program that reads it writes the same prompts.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node, Template
from jinja2.parser import Parser

from engines.errors import InvalidRequest
from engines.params.template import NAMED, ChatTemplateParams
from engines.text.tool_prompts import with_tools_prompt

CHAT_TEMPLATE = "chat_template.jinja"
TEMPLATES = (CHAT_TEMPLATE, "tokenizer_config.json")
"""Files that hold a model's chat template: the one that transformers writes, and the one that it wrote before."""
FOLDER = Path(__file__).parent / "named_templates"

RESERVED_KWARGS = frozenset(
    [
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)
"""What `chat_template_kwargs` may not set: parameters of the rendering itself, not variables of the template."""


def chosen_template(params: ChatTemplateParams, tokenizer: Any) -> str | dict[str, str] | None:
    """The template, or several by name, as some tokenizers have them; None where there is none.

    Raises InvalidRequest, whose `param` is the parameter at fault.
    """
    template = _chosen(params, tokenizer)
    if not params.chat_template_kwargs and params.tools_prompt is None:
        return template
    if template is None:
        lacking = "chat_template_kwargs" if params.chat_template_kwargs else "tools_prompt"
        raise InvalidRequest("the model has no chat template that could hold it", param=lacking)
    if isinstance(template, str):
        return _with_settings(template, params)
    return {name: _with_settings(one, params) for name, one in template.items()}


def _with_settings(template: str, params: ChatTemplateParams) -> str:
    if params.tools_prompt is not None:
        template = with_tools_prompt(template, params.tools_prompt)
    return with_variables(template, params.chat_template_kwargs or {})


def _chosen(params: ChatTemplateParams, tokenizer: Any) -> str | dict[str, str] | None:
    if not params.use_chat_template:
        return plain_template(tokenizer)
    if params.chat_template is not None:
        return read_chat_template(params.chat_template)
    if params.template is not None:
        return named_template(params.template)
    own: str | dict[str, str] | None = tokenizer.chat_template
    return own


def named_template(name: str) -> str:
    """The template that goes by this name, which is one of NAMED."""
    return (FOLDER / f"{NAMED[name]}.jinja").read_text()


def with_variables(template: str, values: Mapping[str, Any]) -> str:
    """The template, in which the variables have these values unless it is rendered with others.

    Raises InvalidRequest for one that the template does not know.
    """
    lines = "".join(_assigned(name, value, template) for name, value in values.items())
    return template if template.startswith(lines) else checked_template(lines + template)


def _assigned(name: str, value: Any, template: str) -> str:
    if name in RESERVED_KWARGS or not name.isidentifier():
        raise InvalidRequest(f"{name!r} is no variable of a chat template", param="chat_template_kwargs")
    if not re.search(rf"\b{name}\b", template):
        raise InvalidRequest(f"the chat template knows no {name!r}", param="chat_template_kwargs")
    # A value of JSON is written in Jinja as in Python. The line break goes with the block: `trim_blocks` is on.
    return f"{{%- set {name} = {name} | default({value!r}) %}}\n"


def read_chat_template(value: str) -> str:
    """A template, from the path of its .jinja file or as it is. InvalidRequest where it is none."""
    text = Path(value).read_text() if value.endswith(".jinja") and Path(value).is_file() else value
    if value.endswith(".jinja") and text is value:
        raise InvalidRequest(f"There is no file {value!r}.", param="chat_template")
    return checked_template(text)


def checked_template(text: str) -> str:
    """The same text. Raises InvalidRequest where it is no template."""
    try:
        parsed_template(text)
    except TemplateError as error:
        raise InvalidRequest(f"The chat template is not valid Jinja: {error}", param="chat_template") from error
    return text


def parsed_template(text: str) -> Template:
    """Raises TemplateError."""
    return Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(text)


class _Generation(Extension):
    """transformers' mark of what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def plain_template(tokenizer: Any) -> str:
    """A template without form: messages follow one another as they are, behind the token that begins every text."""
    first = tokenizer.encode("a")[:1]
    begin = "{{ bos_token }}" if first and first[0] == tokenizer.bos_token_id else ""
    return begin + "{% for message in messages %}{{ message.content }}{% endfor %}"


def template_in(folder: Path) -> str | None:
    """The chat template that lies in a model's or an adapter's folder; None where there is none, and for several.

    Raises OSError, ValueError.
    """
    file, older = (folder / name for name in TEMPLATES)
    if file.is_file():
        return file.read_text()
    said = json.loads(older.read_text()) if older.is_file() else None
    template = said.get("chat_template") if isinstance(said, dict) else None
    return template if isinstance(template, str) else None
