"""Messages and texts become prompt ids as the model's own tokenizer and template say, or are refused with the
reason."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
from tokenizers import processors

from engines.capabilities import Capabilities
from engines.errors import ContextLengthExceeded, InvalidRequest, TuneserveError, UnsupportedParameter
from engines.text.prompt import Conversation, PromptRenderer
from engines.text.templates import plain_template, read_chat_template
from engines.text.truncation import Side, Truncation
from tests.engines.tokenizers import byte_fallback, byte_level

TOKENIZER = byte_level()
LIMITS = Capabilities(max_model_len=100_000, vocab_size=len(TOKENIZER))
SMALL = Capabilities(max_model_len=20, vocab_size=len(TOKENIZER))
HELLO = {"role": "user", "content": "hello"}
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{{ m.content }}{% endfor %}"
)
PARTS_ONLY = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)
SHOWS_ALL = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
)


def renderer(template: Any = TOKENIZER.chat_template, **kwargs: Any) -> PromptRenderer:
    tokenizer = deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return PromptRenderer(tokenizer, **kwargs)


def conversation(*messages: dict[str, Any], **kwargs: Any) -> Conversation:
    return Conversation(messages=messages, **kwargs)


def rendered(prompts: PromptRenderer, *messages: dict[str, Any]) -> str:
    return prompts.render(conversation(*prompts.messages(messages)))


def error_of(refused: Callable[[], object]) -> TuneserveError:
    with pytest.raises(TuneserveError) as caught:
        refused()
    return caught.value


def test_messages_are_rendered_by_the_models_own_template() -> None:
    prompt = renderer().chat(conversation(HELLO), LIMITS)
    ids = prompt.ids
    assert TOKENIZER.decode(ids) == prompt.text == "<s><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(TOKENIZER.bos_token_id) == 1


def test_text_parts_become_lines_of_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert rendered(renderer(SHOWS_ALL), {"role": "user", "content": parts}) == "[user]one\ntwo"


def test_a_template_that_reads_parts_only_gets_parts() -> None:
    assert rendered(renderer(PARTS_ONLY), HELLO) == "user:hello"


def test_the_developer_role_is_the_system_role_unless_the_template_knows_it() -> None:
    message = {"role": "developer", "content": "be brief"}
    assert rendered(renderer(SHOWS_ALL), message) == "[system]be brief"
    assert rendered(renderer("{# developer #}" + SHOWS_ALL), message) == "[developer]be brief"


def test_the_servers_system_message_opens_conversations_without_one() -> None:
    prompts = renderer(SHOWS_ALL, system="You help.")
    assert rendered(prompts, HELLO) == "[system]You help.[user]hello"
    own = {"role": "system", "content": "mine"}
    assert rendered(prompts, own, HELLO) == "[system]mine[user]hello"


def test_the_final_message_can_be_continued() -> None:
    started = {"role": "assistant", "content": "It is"}
    text = renderer().render(conversation(HELLO, started, add_generation_prompt=False, continue_final_message=True))
    assert text.endswith("<|im_start|>assistant\nIt is")


def test_continuing_and_a_generation_prompt_exclude_each_other() -> None:
    error = error_of(lambda: renderer().chat(conversation(HELLO, continue_final_message=True), LIMITS))
    assert (type(error), error.param) == (InvalidRequest, "continue_final_message")


def test_template_kwargs_reach_the_template() -> None:
    template = "{{ messages[0].content }}{% if enable_thinking %} think{% endif %}"
    text = renderer(template).render(conversation(HELLO, template_kwargs={"enable_thinking": True}))
    assert text == "hello think"


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "messages", "tools"])
def test_template_kwargs_cannot_replace_the_rendering(name: str) -> None:
    error = error_of(lambda: renderer().chat(conversation(HELLO, template_kwargs={name: "x"}), LIMITS))
    assert (type(error), error.param) == (InvalidRequest, "chat_template_kwargs")
    assert name in error.message


def test_tools_reach_the_template() -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    text = renderer("{{ tools | tojson }}{{ messages[0].content }}").render(conversation(HELLO, tools=[tool]))
    assert '"get_weather"' in text


def test_what_the_template_refuses_is_the_requests_fault() -> None:
    error = error_of(lambda: renderer(ALTERNATE).chat(conversation(HELLO, HELLO), LIMITS))
    assert (type(error), error.param) == (InvalidRequest, "messages")
    assert "roles must alternate" in error.message


def test_what_breaks_the_template_is_refused_without_its_details() -> None:
    error = error_of(lambda: renderer("{{ messages[0].content + 1 }}").chat(conversation(HELLO), LIMITS))
    assert (type(error), error.param) == (InvalidRequest, "messages")
    assert "cannot render these messages" in error.message


def test_a_model_without_a_template_says_so() -> None:
    error = error_of(lambda: renderer(None).chat(conversation(HELLO), LIMITS))
    assert "no chat template" in error.message


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused_by_their_place(kind: str) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": kind, kind: {"url": "https://example.com/a.png"}}]
    with pytest.raises(UnsupportedParameter) as caught:
        renderer().messages([HELLO, {"role": "user", "content": parts}])
    assert caught.value.param == "messages[1].content[1]"


def test_a_text_gets_the_tokenizers_special_tokens_once() -> None:
    bos = TOKENIZER.bos_token_id
    plain = renderer().text("hello", LIMITS).ids
    assert plain == renderer().text("<s>hello", LIMITS).ids
    assert (plain[0], plain.count(bos)) == (bos, 1)
    assert renderer().text("hello", LIMITS, add_special_tokens=False).ids == plain[1:]


@pytest.mark.parametrize("wrong", [-1, len(TOKENIZER), 2**40])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    assert renderer().ids([1, 2], LIMITS) == [1, 2]
    with pytest.raises(InvalidRequest, match=str(wrong)):
        renderer().ids([1, wrong], LIMITS)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        renderer().ids([], LIMITS)
    assert "empty" in error_of(lambda: renderer().text("", LIMITS, add_special_tokens=False)).message


def test_a_prompt_that_fills_the_context_is_refused_with_its_length() -> None:
    error = error_of(lambda: renderer().chat(conversation({"role": "user", "content": "xyz " * 20}), SMALL))
    assert isinstance(error, ContextLengthExceeded)
    assert "20 tokens" in error.message
    length = len((renderer().chat(conversation({"role": "user", "content": "xyz " * 20}), LIMITS)).ids)
    assert f"has {length} tokens" in error.message


def test_a_giant_text_is_refused_without_tokenizing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = renderer()
    monkeypatch.setattr(prompts, "_text", None)
    for refused in (
        lambda: prompts.text("x" * 10_000_000, SMALL),
        lambda: prompts.chat(conversation({"role": "user", "content": "x" * 10_000_000}), SMALL),
    ):
        error = error_of(refused)
        assert isinstance(error, ContextLengthExceeded)
        assert "at least" in error.message


def test_of_a_long_text_only_the_beginning_is_tokenized_where_that_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = renderer()
    texts: list[str] = []
    encode = prompts.encode

    def seen(text: str, *, add_special_tokens: bool) -> list[int]:
        texts.append(text)
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(prompts, "encode", seen)
    monkeypatch.setattr(prompts, "_longest_token", 1000)  # so that the text's length alone does not tell
    error = error_of(lambda: prompts.text("x " * 17 * SMALL.max_model_len, SMALL))
    assert isinstance(error, ContextLengthExceeded)
    assert [len(text) for text in texts] == [8 * SMALL.max_model_len]


LONG_TEXT = "The quick brown fox jumps over the lazy dog. " * 300


@pytest.mark.parametrize("tokenizer", [byte_level, byte_fallback])
@pytest.mark.parametrize(("side", "kept"), [("left", slice(-9, None)), ("right", slice(9))])
def test_a_truncated_text_has_the_tokens_of_the_whole_and_keeps_the_special_ones(
    tokenizer: Callable[[], Any], side: Side, kept: slice
) -> None:
    prompts = PromptRenderer(tokenizer())
    whole = prompts.encode(LONG_TEXT, add_special_tokens=False)
    prompt = prompts.text(LONG_TEXT, LIMITS, truncation=Truncation(10, side))
    assert prompt.ids == [tokenizer().bos_token_id, *whole[kept]]
    assert prompt.text == tokenizer().decode(whole[kept])


@pytest.mark.parametrize("text", ["<s>" + LONG_TEXT, "<s>hi"])
def test_a_truncated_text_gets_no_second_beginning(text: str) -> None:
    ids = renderer().text(text, LIMITS, truncation=Truncation(10, "right")).ids
    assert (ids[0], ids.count(ids[0])) == (TOKENIZER.bos_token_id, 1)


def test_special_tokens_behind_a_text_are_kept() -> None:
    tokenizer = deepcopy(TOKENIZER)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    for side in get_args(Side):
        ids = PromptRenderer(tokenizer).text(LONG_TEXT, LIMITS, truncation=Truncation(10, side)).ids
        assert (len(ids), ids[-1]) == (10, tokenizer.eos_token_id)


def test_a_length_that_the_special_tokens_take_is_refused() -> None:
    error = error_of(lambda: renderer().text(LONG_TEXT, LIMITS, truncation=Truncation(1, "left")))
    assert error.param == "truncate_prompt_tokens"


def test_of_a_text_that_is_truncated_little_more_than_is_kept_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = renderer()
    lengths: list[int] = []
    encode = prompts.encode

    def seen(text: str, *, add_special_tokens: bool) -> list[int]:
        lengths.append(len(text))
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(prompts, "encode", seen)
    assert len(prompts.text(LONG_TEXT * 100, LIMITS, truncation=Truncation(40, "left")).ids) == 40
    assert max(lengths) < 1000


def test_a_long_conversation_is_cut_behind_the_template() -> None:
    prompts, asked = renderer(), conversation({"role": "user", "content": LONG_TEXT})
    whole = prompts.chat(asked, LIMITS).ids
    assert prompts.chat(asked, SMALL, Truncation(15, "left")).ids == whole[-15:]
    assert prompts.chat(asked, SMALL, Truncation(15, "right")).ids == whole[:15]


def test_the_doubled_beginning_is_dropped_for_sentencepiece_too() -> None:
    tokenizer = byte_fallback()
    limits = Capabilities(max_model_len=100, vocab_size=len(tokenizer))
    ids = PromptRenderer(tokenizer).text("<s>the", limits).ids
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_template_of_ones_own_replaces_the_models() -> None:
    assert rendered(renderer(chat_template="own: {{ messages[0].content }}"), HELLO) == "own: hello"
    assert rendered(renderer(None, chat_template="own: {{ messages[0].content }}"), HELLO) == "own: hello"


@pytest.mark.parametrize("begins", [True, False])
def test_without_a_template_messages_follow_one_another_as_texts_do(begins: bool) -> None:
    tokenizer = deepcopy(TOKENIZER)
    tokenizer.chat_template = None
    if not begins:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    prompts = PromptRenderer(tokenizer, chat_template=plain_template(tokenizer))
    messages = conversation(HELLO, {"role": "assistant", "content": " world"})
    assert (prompts.chat(messages, LIMITS)).ids == prompts.text("hello world", LIMITS).ids


def test_a_model_with_several_templates_uses_the_one_for_tools_where_there_are_tools() -> None:
    prompts = renderer({"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ messages[0].content }}"})
    assert rendered(prompts, HELLO) == "plain hello"
    assert prompts.render(conversation(HELLO, tools=[{"type": "function", "function": {}}])) == "tools hello"


def test_a_template_is_read_from_a_file_or_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    assert read_chat_template(str(file)) == read_chat_template("{{ messages }}") == "{{ messages }}"


@pytest.mark.parametrize("value", ["no/such.jinja", "{% if %}"])
def test_a_template_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest):
        read_chat_template(value)


# ---- where answers end

ENDS = "{% for m in messages %}<|im_start|>{{ m.content }}{{ '<|im_end|>' if m.role == 'assistant' }}\n{% endfor %}"


def test_the_special_token_that_the_template_writes_behind_an_answer_ends_it() -> None:
    im_start, im_end = TOKENIZER.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert renderer(ENDS).end_of_answer(()) == im_end
    assert renderer(ENDS.replace("<|im_end|>", "")).end_of_answer(()) == im_start, "the next message ends it"
    assert renderer(ENDS.replace("<|im_end|>", "###")).end_of_answer(()) is None


def test_of_several_tokens_behind_an_answer_the_models_own_ends_it() -> None:
    eos = TOKENIZER.eos_token_id
    both = ENDS.replace("'<|im_end|>'", "'<|im_end|></s>'")
    assert renderer(both).end_of_answer((eos,)) == eos
    assert renderer(both).end_of_answer(()) == TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def test_another_template_for_the_same_model() -> None:
    one = renderer("one: {{ messages[0].content }}")
    other = one.with_template("other: {{ messages[0].content[0].text }}")
    assert (rendered(one, HELLO), rendered(other, HELLO)) == ("one: hello", "other: hello")
    assert (one.writes(one.template), one.writes(other.template)) == (True, False)


def test_reasoning_is_given_to_the_template_in_the_field_that_it_reads() -> None:
    said = {"role": "assistant", "content": "x", "reasoning_content": "so"}
    for field in ("reasoning_content", "reasoning", "thinking"):
        assert rendered(renderer("{{ messages[0].%s }}" % field), said) == "so"  # noqa: UP031  # braces are Jinja's


def test_transformers_mark_of_what_the_assistant_writes_is_part_of_templates() -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert read_chat_template(template) == template
    assert rendered(renderer(template), HELLO) == "hello"
