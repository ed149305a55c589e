"""Requests to prompt tokens: messages by the model's own chat template, texts by its tokenizer."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError, meta

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest, UnsupportedParameter
from engines.text.encoding import encode
from engines.text.fill_in_the_middle import FillInTheMiddle, find_fill_in_the_middle
from engines.text.reasoning_formats import API_FIELDS, reasoning_field
from engines.text.request_check import context_length_exceeded
from engines.text.templates import RESERVED_KWARGS, parsed_template
from engines.text.truncation import Truncation

Message = Mapping[str, Any]
"""A message of OpenAI's chat completions request."""

ROOMY = 8
"""Characters of a token in a text that has unusually long ones."""
BEFORE = "☺"
"""A text that no other grows together with."""
LOOSE_ENDS = 16
"""More tokens than a text that is cut off may have at its end than as a whole."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""Those that every request may have, whatever a template makes of them."""
PROBE = "tuneserve probe"
MOST_PROBED = 100
"""Other roles whose probes are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    messages: Sequence[Message]
    """As `PromptRenderer.messages` returns them."""
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: Sequence[Mapping[str, Any]] | None = None
    """What a template for retrieval shows the model."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    ids: list[int]


class PromptRenderer:
    """Renders and tokenizes for one model. Everything it cannot render is an InvalidRequest that says why."""

    def __init__(
        self, tokenizer: Any, *, system: str | None = None, chat_template: str | dict[str, str] | None = None
    ) -> None:
        """`system` opens conversations that bring no system message; `chat_template` replaces the tokenizer's own."""
        self._tokenizer = tokenizer
        self._system = system
        self._longest_token = max(map(len, tokenizer.get_vocab()), default=1)
        self._wants_parts = False
        self._bos = tokenizer.bos_token_id
        self._use(chat_template or tokenizer.chat_template)

    def writes(self, template: str) -> bool:
        """Whether the template, or one of them, is this one."""
        own = self._template
        return template in own.values() if isinstance(own, dict) else template == own

    def with_template(self, template: str) -> "PromptRenderer":
        """A renderer for the same model with another template."""
        other = copy(self)
        for found in ("_ends", "variables"):
            other.__dict__.pop(found, None)
        other._use(template)
        return other

    def _use(self, template: str | dict[str, str] | None) -> None:
        self._template = template
        self._shown_roles: dict[str, bool] = {}
        self._reasoning_field = reasoning_field(self.template)
        self._wants_parts = template is not None and self._find_wants_parts()

    @property
    def template(self) -> str:
        """The source of the chat template (of all of them, where there are several); "" where there is none."""
        template = self._template or ""
        return "\n".join(template.values()) if isinstance(template, dict) else template

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names of the variables that the template reads and does not set itself."""
        try:
            return frozenset(meta.find_undeclared_variables(parsed_template(self.template)))
        except TemplateError:  # it will be told to those who send messages
            return frozenset()

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """OpenAI's messages in the roles that the template knows, each with one text as its content, the server's
        system message before them where they bring none. UnsupportedParameter for content that is no text."""
        ready = [self._message(message, f"messages[{position}]") for position, message in enumerate(messages)]
        if self._system is None or any(message["role"] in ("system", "developer") for message in ready):
            return ready
        return [{"role": "system", "content": self._system}, *ready]

    def _message(self, message: Message, path: str) -> dict[str, Any]:
        ready = {key: value for key, value in message.items() if value is not None}
        if ready["role"] == "developer" and "developer" not in self.template:
            ready["role"] = "system"
        if ready["role"] not in ROLES and not self._shows(ready["role"]):
            raise UnsupportedParameter(
                f"The model's chat template shows no messages of the role {ready['role']!r}.", param=f"{path}.role"
            )
        if said := [ready.pop(name) for name in API_FIELDS if name in ready]:
            ready[self._reasoning_field] = next(filter(None, said), "")
        ready["content"] = _content_text(message.get("content"), path)
        return ready

    def _shows(self, role: str) -> bool:
        """Whether the template writes a message of this role. What it refuses, it is left to refuse."""
        if role not in self._shown_roles:
            if len(self._shown_roles) == MOST_PROBED:
                self._shown_roles.clear()
            messages = [{"role": "user", "content": "?"}, {"role": role, "content": PROBE}]
            try:
                self._shown_roles[role] = PROBE in self.render(Conversation(messages=messages))
            except InvalidRequest:
                self._shown_roles[role] = True
        return self._shown_roles[role]

    def chat(
        self, conversation: Conversation, capabilities: Capabilities, truncation: Truncation | None = None
    ) -> Prompt:
        """Render and tokenize a conversation. What is long takes its time: call it in a thread."""
        if truncation is None:
            self._refuse_giant(sum(map(_size, conversation.messages)), capabilities)
        text = self.render(conversation)
        return self.text(text, capabilities, add_special_tokens=False, param="messages", truncation=truncation)

    def text(
        self,
        text: str,
        capabilities: Capabilities,
        *,
        add_special_tokens: bool = True,
        param: str = "prompt",
        truncation: Truncation | None = None,
    ) -> Prompt:
        """Tokenize a text, with the special tokens that the tokenizer adds (a text that brings its own
        beginning-of-sequence token gets no second one). Truncated, it keeps these, and has the text that is left."""
        if truncation is not None:
            prompt = self._truncated(text, add_special_tokens, truncation)
            return Prompt(prompt.text, self.ids(prompt.ids, capabilities, param=param))
        self._refuse_giant(len(text), capabilities)
        return Prompt(text, self._text(text, capabilities, add_special_tokens, param))

    def middle(self, prefix: str, suffix: str, capabilities: Capabilities, *, add_special_tokens: bool) -> Prompt:
        """The prompt that asks for what stands between two texts. The model knows the marks for it
        (`fill_in_the_middle`)."""
        assert self.fill_in_the_middle is not None, "the caller has looked"
        self._refuse_giant(len(prefix) + len(suffix), capabilities)
        before, _ = self._added if add_special_tokens else ([], [])
        marked = self.fill_in_the_middle.prompt(
            self.encode(prefix, add_special_tokens=False), self._encode_continuation(suffix)
        )
        return Prompt(prefix, self.ids([*before, *marked], capabilities))

    @cached_property
    def fill_in_the_middle(self) -> FillInTheMiddle | None:
        return find_fill_in_the_middle(self._tokenizer.get_added_vocab())

    def _encode_continuation(self, text: str) -> list[int]:
        """A text that another stands before: without the space that sentencepiece puts before a first word."""
        before = self.encode(BEFORE, add_special_tokens=False)
        ids = self.encode(BEFORE + text, add_special_tokens=False)
        if not self._spaces_first or ids[: len(before)] != before:
            return self.encode(text, add_special_tokens=False)
        return ids[len(before) :]

    @cached_property
    def _spaces_first(self) -> bool:
        first = self._tokenizer.convert_ids_to_tokens(self.encode("a", add_special_tokens=False))[0]
        return isinstance(first, str) and first.startswith("▁")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The same without any check, whatever the length."""
        return self._with_one_bos(encode(self._tokenizer, text, add_special_tokens=add_special_tokens))

    def beginning(self, text: str, count: int) -> list[int]:
        """At most `count` tokens, with which the text begins. Most of one that is much too long is not tokenized."""
        return self._at_least(text, count, Truncation(count, "right"))[:count]

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        return ids[1:] if self._bos is not None and ids[:2] == [self._bos, self._bos] else ids

    def ids(
        self,
        ids: list[int],
        capabilities: Capabilities,
        *,
        param: str = "prompt",
        truncation: Truncation | None = None,
    ) -> list[int]:
        """The same ids, checked, or those that truncation leaves."""
        limit = capabilities.vocab_size
        ends = (min(ids, default=0), max(ids, default=0))
        wrong = next((token_id for token_id in ends if not 0 <= token_id < limit), None)
        if wrong is not None:
            raise InvalidRequest(f"Token id {wrong} is not in the vocabulary, which has {limit} tokens.", param=param)
        return _checked_length(ids if truncation is None else truncation.of(ids), capabilities, param)

    def render(self, conversation: Conversation) -> str:
        """The text that the chat template makes of a conversation."""
        if self._template is None:
            raise InvalidRequest(
                "This model has no chat template, so it cannot answer messages. Use completions.", param="messages"
            )
        _check_kwargs(conversation)
        return self._apply(
            [self._with_content(message) for message in conversation.messages],
            tools=None if conversation.tools is None else [dict(tool) for tool in conversation.tools],
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            documents=None if conversation.documents is None else [dict(each) for each in conversation.documents],
            **conversation.template_kwargs,
        )

    def _text(self, text: str, capabilities: Capabilities, add_special_tokens: bool, param: str) -> list[int]:
        usual = ROOMY * capabilities.max_model_len
        if len(text) > 2 * usual:  # its beginning shows whether to go on
            at_least = len(self.encode(text[:usual], add_special_tokens=False)) - LOOSE_ENDS
            if at_least > capabilities.max_model_len:
                message = f"your prompt has at least {at_least} tokens"
                raise context_length_exceeded(capabilities.max_model_len, message, param=param)
        return self.ids(self.encode(text, add_special_tokens=add_special_tokens), capabilities, param=param)

    def _truncated(self, text: str, add_special_tokens: bool, truncation: Truncation) -> Prompt:
        before, after = self._added if add_special_tokens else ([], [])
        room = truncation.length - len(before) - len(after)
        if room < 1:
            raise InvalidRequest(
                f"'truncate_prompt_tokens' is {truncation.length}, and the special tokens of each prompt take "
                f"{len(before) + len(after)} of them.",
                param="truncate_prompt_tokens",
            )
        ids = self._at_least(text, room + 1, truncation)
        if len(ids) <= room:
            return Prompt(text, self.encode(text, add_special_tokens=add_special_tokens))
        kept = truncation.of(ids, room)
        return Prompt(self._tokenizer.decode(kept), self._with_one_bos([*before, *kept, *after]))

    def _at_least(self, text: str, count: int, truncation: Truncation) -> list[int]:
        """Tokens of the part of a text that truncation keeps: `count` of them that are the whole text's as well, or all
        where it has fewer. Most of a text that is much too long is not tokenized."""
        characters = ROOMY * count
        while characters < len(text):
            ids = self.encode(truncation.part(text, characters), add_special_tokens=False)
            if len(ids) >= count + LOOSE_ENDS:
                return ids
            characters *= 2
        return self.encode(text, add_special_tokens=False)

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before a text, and those behind it."""
        bare, whole = (self.encode("a", add_special_tokens=adds) for adds in (False, True))
        starts = (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        start = next(starts, 0)
        return whole[:start], whole[start + len(bare) :]

    def _with_content(self, message: Message) -> dict[str, Any]:
        content = message.get("content")
        if self._wants_parts and isinstance(content, str):
            return {**message, "content": [{"type": "text", "text": content}]}
        return dict(message)

    def _apply(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        chosen = self._chosen(with_tools=kwargs.get("tools") is not None)
        try:
            text: str = self._tokenizer.apply_chat_template(messages, chat_template=chosen, tokenize=False, **kwargs)
        except TemplateError as error:
            reason = str(error)[:200].rstrip(".")
            raise InvalidRequest(f"The model's chat template refuses this: {reason}.", param="messages") from error
        except Exception as error:  # a template is the model's own code: any exception can come out of it
            what = "continue the final message" if kwargs.get("continue_final_message") else "render these messages"
            raise InvalidRequest(f"The model's chat template cannot {what}.", param="messages") from error
        return text

    def _chosen(self, *, with_tools: bool) -> str | None:
        """Of several templates, the one that transformers would choose."""
        if not isinstance(self._template, dict):
            return self._template
        names = ("tool_use", "default") if with_tools else ("default",)
        return next((self._template[name] for name in names if name in self._template), None)

    def end_of_answer(self, eos_token_ids: Collection[int]) -> int | None:
        """The special token that the template writes behind an answer, where serving stops too: one of
        `eos_token_ids`, the model's own, if such a one is there. None where it writes none."""
        return next((end for end in self._ends if end in eos_token_ids), next(iter(self._ends), None))

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The special tokens with which the text behind an answer begins, whatever follows it."""
        question, answer = ({"role": role, "content": PROBE} for role in ("user", "assistant"))
        try:
            last, followed = (
                self.render(Conversation(messages=messages, add_generation_prompt=False)).rpartition(PROBE)[2]
                for messages in ([question, answer], [question, answer, {**question, "content": ""}])
            )
        except InvalidRequest:
            return ()
        if not last.strip():  # the template leaves it to the next message to end this one
            return tuple(self.leading_specials(followed))
        ends, others = (tuple(self.leading_specials(text)) for text in (last, followed))
        return (
            tuple(end for end, _ in takewhile(lambda both: both[0] == both[1], zip(ends, others, strict=False))) or ends
        )

    def leading_specials(self, text: str) -> Iterator[int]:
        """The special tokens with which a text begins, whitespace between them aside."""
        specials = {id for id, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        for token_id in self.encode(text, add_special_tokens=False):
            if token_id in specials - {self._bos}:
                yield token_id
            elif self._tokenizer.decode([token_id]).strip():
                return

    def _find_wants_parts(self) -> bool:
        """Whether the template reads content as a list of parts only, and would lose one that is a string."""
        for wants_parts, content in ((False, PROBE), (True, [{"type": "text", "text": PROBE}])):
            try:
                if PROBE in self._apply([{"role": "user", "content": content}]):
                    return wants_parts
            except InvalidRequest:
                continue
        return False

    def _refuse_giant(self, characters: int, capabilities: Capabilities) -> None:
        """Refuse what cannot fit at any rate before any time is spent on it."""
        at_least = characters // self._longest_token
        if at_least > capabilities.max_model_len:
            raise context_length_exceeded(capabilities.max_model_len, f"your prompt has at least {at_least} tokens")


def _size(message: Message) -> int:
    """Characters of its content."""
    return len(message.get("content") or "")


def _checked_length(ids: list[int], capabilities: Capabilities, param: str) -> list[int]:
    if not ids:
        raise InvalidRequest("The prompt is empty: it must have at least one token.", param=param)
    if len(ids) >= capabilities.max_model_len:
        raise context_length_exceeded(capabilities.max_model_len, f"your prompt has {len(ids)} tokens", param=param)
    return ids


def _check_kwargs(conversation: Conversation) -> None:
    if conversation.continue_final_message and conversation.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message needs add_generation_prompt to be false.", param="continue_final_message"
        )
    for name in conversation.template_kwargs:
        if name in RESERVED_KWARGS:
            raise InvalidRequest(f"chat_template_kwargs cannot set {name!r}.", param="chat_template_kwargs")


def _content_text(content: str | Sequence[Mapping[str, Any]] | None, path: str) -> str:
    """Several text parts become lines of one text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{path}.content[{position}]") for position, part in enumerate(content))


def _part_text(part: Mapping[str, Any], path: str) -> str:
    kind = part["type"]
    if kind not in ("text", "refusal"):
        raise UnsupportedParameter(f"{path} is of type {kind!r}: this model reads text only.", param=path)
    return str(part[kind])
