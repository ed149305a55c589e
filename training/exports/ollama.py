"""A Modelfile, by which `ollama create` makes a model of GGUF files.

Ollama's templates are Go's. One is found by rendering conversations with the model's own template and looking at what
stands before and after each message; and it is written only if it says the same of longer conversations.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import UnsupportedModel

Message = dict[str, str]
SYSTEM, QUESTION, ANSWER, NEXT = "It rains today.", "Where is north?", "That way it is.", "And the south?"
"""Contents by which messages are found again."""
SAMPLING = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repeat_penalty"}
"""Names in generation_config.json -> Ollama's."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What stands around the contents of messages."""

    start: str
    """Before everything, where no system message is given."""
    before_system: str
    after_system: str
    before_user: str
    after_user: str
    """With the beginning of the answer."""
    after_answer: str

    def rendered(self, messages: Sequence[Message]) -> str:
        """A conversation that the model is to go on with, as Ollama would render it by `template`."""
        system = [each["content"] for each in messages if each["role"] == "system"]
        text = f"{self.before_system}{system[0]}{self.after_system}" if system else self.start
        for each in messages:
            if each["role"] == "user":
                text += self.before_user + each["content"] + self.after_user
            elif each["role"] == "assistant":
                text += each["content"] + self.after_answer
        return text

    def template(self) -> str:
        """In Go's language. All text is in literals, so that trimming the space between actions changes none of it."""
        return "\n".join(
            [
                "{{- if .System }}" + _go(self.before_system, "{{ .System }}", self.after_system),
                "{{- else }}" + _go(self.start),
                "{{- end }}",
                "{{- range $i, $_ := .Messages }}",
                "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
                '{{- if eq .Role "user" }}' + _go(self.before_user, "{{ .Content }}", self.after_user),
                '{{- else if eq .Role "assistant" }}{{ .Content }}',
                "{{- if not $last }}" + _go(self.after_answer) + "{{ end }}",
                "{{- end }}",
                "{{- end }}",
            ]
        )


def modelfile(tokenizer: Any, generation: Any, *, adapter: str | None) -> str:
    """The text of a Modelfile for `model.gguf` beside it, and `adapter`, a file there. `generation`: the model's
    `GenerationConfig`. Raises UnsupportedModel."""
    parts = find_parts(tokenizer)
    lines = ["FROM ./model.gguf", *([f"ADAPTER ./{adapter}"] if adapter else [])]
    lines.append(f'TEMPLATE """{parts.template()}"""')
    for name, theirs in SAMPLING.items():
        value = getattr(generation, name, None)
        if value is not None and (generation.do_sample or name == "repetition_penalty"):
            lines.append(f"PARAMETER {theirs} {value}")
    ends = generation.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    lines += [f"PARAMETER stop {json.dumps(tokenizer.decode([each]), ensure_ascii=False)}" for each in ends]
    return "\n".join(lines) + "\n"


def find_parts(tokenizer: Any) -> Parts:
    """What the tokenizer's chat template puts around messages. Raises UnsupportedModel where it is no such template."""
    if not tokenizer.chat_template:
        raise UnsupportedModel("the model has no chat template to write for Ollama", param="to_ollama")

    def render(*messages: Message, answer: bool = True) -> str:
        text: str = tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=answer)
        bos = tokenizer.bos_token or ""
        return text.removeprefix(bos) if bos and _adds_bos(tokenizer) else text

    try:
        found = _parts(render)
        for messages in CONVERSATIONS:
            if found.rendered(messages) != render(*messages):
                raise ValueError("it does more than to put text around messages")
    except Exception as error:  # templates raise whatever they like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"its chat template cannot be written for Ollama ({reason}): export with to_gguf alone"
        raise UnsupportedModel(message, param="to_ollama") from error
    return found


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


ASKED = (_user(QUESTION), _assistant(ANSWER), _user(NEXT))
WITH_SYSTEM = ({"role": "system", "content": SYSTEM}, *ASKED)
CONVERSATIONS: tuple[Sequence[Message], ...] = (
    [_user("a")],
    [*ASKED, _assistant("one two"), _user("three\nfour")],
    [*WITH_SYSTEM, _assistant("one two"), _user("three\nfour")],
)


def _parts(render: Any) -> Parts:
    """Raises ValueError where a message is not where it would be."""
    first, after_user, between, last = _split(render(*ASKED), QUESTION, ANSWER, NEXT)
    before_system, before_first, _, _, _ = _split(render(*WITH_SYSTEM), SYSTEM, QUESTION, ANSWER, NEXT)
    *_, after_answer = _split(render(*ASKED[:2], answer=False), QUESTION, ANSWER)
    before_user = _without(between, after_answer, at_end=False)
    if last != after_user:
        raise ValueError("an answer to come begins unlike one that is there")
    return Parts(
        start=_without(first, before_user, at_end=True),
        before_system=before_system,
        after_system=_without(before_first, before_user, at_end=True),
        before_user=before_user,
        after_user=after_user,
        after_answer=after_answer,
    )


def _split(text: str, *contents: str) -> list[str]:
    found = []
    for each in contents:
        before, there, text = text.partition(each)
        if not there:
            raise ValueError(f"it leaves out the message {each!r}")
        found.append(before)
    return [*found, text]


def _without(text: str, part: str, *, at_end: bool) -> str:
    if not (text.endswith(part) if at_end else text.startswith(part)):
        raise ValueError("what stands around a message depends on others")
    return text.removesuffix(part) if at_end else text.removeprefix(part)


def _adds_bos(tokenizer: Any) -> bool:
    from training.exports.gguf.vocabulary import begins_with_bos

    return begins_with_bos(tokenizer)


def _go(*parts: str) -> str:
    """Text as literals of Go's templates; what is an action stays one."""
    return "".join(
        part if part.startswith("{{") else f"{{{{ {json.dumps(part, ensure_ascii=False)} }}}}" for part in parts if part
    )
