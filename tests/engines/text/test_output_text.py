"""Text is made of tokens the same way whatever the steps, the tokenizer and the stop strings."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.text.detokenize import Detokenizer
from engines.text.output_text import OutputText, TextDelta, TextOptions
from engines.text.stop_strings import StopStrings, StopTable
from engines.text.vocabulary import Vocabulary
from engines.types import FinishReason, GenerationRequest, Sampling, TokenLogprob, TokenOutput
from tests.engines.tokenizers import ALL, SPECIALS, byte_fallback, byte_level

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
VOCABULARIES = {name: Vocabulary(make()) for name, make in ALL.items()}
PROPERTY = settings(max_examples=150)
TEXTS = st.text(st.sampled_from("abé日🙂 .\n<>stop"), max_size=40) | st.text(max_size=20)


def request(*, n: int = 1, logprobs: int | None = None, **sampling: Any) -> GenerationRequest:
    parameters = Sampling(max_new_tokens=1000, logprobs=logprobs, **sampling)
    return GenerationRequest(request_id="r", prompt_ids=[1], n=n, sampling=parameters)


def steps_of(
    token_ids: list[int], *, sizes: list[int] | None = None, stop_token_id: int | None = None, logprobs: bool = False
) -> list[TokenOutput]:
    """The tokens in steps of the given sizes, one by one after those."""
    sizes = [*(sizes or []), *[1] * len(token_ids)]
    steps, start = [], 0
    while start < len(token_ids):
        size = max(1, sizes.pop(0))
        part = tuple(token_ids[start : start + size])
        start += size
        reason = FinishReason.STOP if stop_token_id is not None else FinishReason.LENGTH
        last = start >= len(token_ids)
        steps.append(
            TokenOutput(
                token_ids=part,
                logprobs=tuple(TokenLogprob(token, -1.0) for token in part) if logprobs else None,
                finish_reason=reason if last else None,
                stop_token_id=stop_token_id if last else None,
            )
        )
    return steps


def deltas_of(
    name: str, steps: list[TokenOutput], options: TextOptions, wanted: GenerationRequest | None = None
) -> list[TextDelta]:
    output = OutputText(VOCABULARIES[name], options, wanted or request(), 0)
    deltas = []
    for step in steps:
        deltas.append(output.push(step))
        if output.finished:
            break
    return deltas


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def streams(name: str) -> st.SearchStrategy[list[int]]:
    """Any tokens, or those of a text."""
    tokenizer = ALL[name]()
    anything = st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=30)
    of_texts = TEXTS.map(lambda text: tokenizer.encode(text, add_special_tokens=False)).filter(bool)
    return anything | of_texts


def with_streams(name: str) -> st.SearchStrategy[tuple[str, list[int]]]:
    return st.tuples(st.just(name), streams(name))


ANY_STREAM = st.one_of([with_streams(name) for name in ALL])


@PROPERTY
@given(ANY_STREAM, st.booleans(), st.lists(st.integers(1, 5), max_size=10))
def test_deltas_joined_are_the_tokenizers_decode(
    case: tuple[str, list[int]], skip_special_tokens: bool, sizes: list[int]
) -> None:
    name, token_ids = case
    decoded = ALL[name]().decode(token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    options = TextOptions(skip_special_tokens=skip_special_tokens)
    text = text_of(deltas_of(name, steps_of(token_ids, sizes=sizes), options))
    if REPLACEMENT in decoded and name == "byte_fallback":
        # There transformers puts U+FFFD for every byte of a run that has one bad byte; we keep the good characters.
        assert REPLACEMENT in text
    else:
        assert text == decoded


@PROPERTY
@given(ANY_STREAM)
def test_bytes_of_the_tokens_joined_are_the_text(case: tuple[str, list[int]]) -> None:
    name, token_ids = case
    detokenizer = Detokenizer(VOCABULARIES[name], starts_text=True)
    data = b"".join(detokenizer.bytes_of(token_id) for token_id in token_ids)
    options = TextOptions(skip_special_tokens=False)
    assert data.decode(errors="replace") == text_of(deltas_of(name, steps_of(token_ids), options))


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_no_replacement_character_appears_for_a_character_that_is_still_incomplete(name: str) -> None:
    text = "a 🙂 日本 👩‍👩‍👧 é"
    token_ids = ALL[name]().encode(text, add_special_tokens=False)
    deltas = deltas_of(name, steps_of(token_ids), TextOptions())
    assert all(REPLACEMENT not in delta.text for delta in deltas)
    assert text_of(deltas) == text


def test_a_text_that_ends_within_a_character_ends_with_the_replacement_character() -> None:
    token_ids = byte_level().encode("🙂", add_special_tokens=False)
    assert len(token_ids) > 1
    assert text_of(deltas_of("byte_level", steps_of(token_ids[:-1]), TextOptions())) == REPLACEMENT


def test_a_continued_text_keeps_the_space_before_its_first_word() -> None:
    token_ids = byte_fallback().encode("the", add_special_tokens=False)
    assert text_of(deltas_of("byte_fallback", steps_of(token_ids), TextOptions())) == "the"
    assert text_of(deltas_of("byte_fallback", steps_of(token_ids), TextOptions(starts_text=False))) == " the"


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    for vocabulary in VOCABULARIES.values():
        assert vocabulary.token_bytes(1_000_000) == b""


# --- stop strings


def naive_cut(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """The stop string that is complete first as the text grows by characters; the longest of several."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


STOPS = st.lists(st.text(st.sampled_from("stop \n.<>日🙂"), min_size=1, max_size=6), min_size=1, max_size=4)


@PROPERTY
@given(ANY_STREAM, STOPS, st.booleans(), st.lists(st.integers(1, 5), max_size=10))
def test_a_stop_string_cuts_where_a_search_in_the_whole_text_finds_it(
    case: tuple[str, list[int]], stops: list[str], include: bool, sizes: list[int]
) -> None:
    name, token_ids = case
    whole = text_of(deltas_of(name, steps_of(token_ids), TextOptions()))
    expected, stop = naive_cut(whole, stops, include=include)
    options = TextOptions(stop=StopTable(stops), include_stop_str_in_output=include)
    deltas = deltas_of(name, steps_of(token_ids, sizes=sizes), options)
    assert text_of(deltas) == expected
    assert deltas[-1].stop_reason == stop
    assert deltas[-1].finish_reason == (FinishReason.LENGTH if stop is None else FinishReason.STOP)


@PROPERTY
@given(ANY_STREAM, STOPS)
def test_no_delta_shows_text_that_a_stop_string_takes_back(case: tuple[str, list[int]], stops: list[str]) -> None:
    name, token_ids = case
    whole = text_of(deltas_of(name, steps_of(token_ids), TextOptions()))
    final, _ = naive_cut(whole, stops, include=False)
    shown = ""
    for delta in deltas_of(name, steps_of(token_ids), TextOptions(stop=StopTable(stops))):
        shown += delta.text
        assert final.startswith(shown)


def test_text_is_held_back_no_longer_than_a_stop_string_is_possible() -> None:
    deltas = deltas_of("byte_level", steps_of(byte_level_bytes("a###b")), TextOptions(stop=StopTable(["####"])))
    assert [delta.text for delta in deltas] == ["a", "", "", "", "###b"]


def byte_level_bytes(text: str) -> list[int]:
    """One token for each byte."""
    tokenizer = byte_level()
    alphabet = {Vocabulary(tokenizer).token_bytes(token_id): token_id for token_id in range(len(tokenizer))}
    return [alphabet[bytes([byte])] for byte in text.encode()]


def test_the_token_after_a_stop_string_is_neither_shown_nor_counted() -> None:
    token_ids = byte_level_bytes("one. two")
    steps = [TokenOutput(token_ids=tuple(token_ids))]
    (delta,) = deltas_of("byte_level", steps, TextOptions(stop=StopTable(["e."])))
    assert (delta.text, delta.token_ids, delta.stop_reason) == ("on", tuple(token_ids[:4]), "e.")


def test_stop_strings_are_looked_for_after_min_tokens() -> None:
    steps = steps_of(byte_level_bytes("..a.b"))
    deltas = deltas_of("byte_level", steps, TextOptions(stop=StopTable(["."]), min_tokens=2))
    assert text_of(deltas) == "..a"


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=64))
def test_of_many_stop_strings_that_overlap_the_first_and_then_the_longest_is_found(text: str, stops: list[str]) -> None:
    found = StopStrings(StopTable(stops))
    ends = [end for end in range(1, len(text) + 1) if text[:end].endswith(tuple(stops))]
    assert found.feed(text) == (ends[0] if ends else None)
    if ends:
        assert found.matched == max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
    else:
        beginnings = {stop[:length] for stop in stops for length in range(len(stop))}
        assert found.partial == max(len(beginning) for beginning in beginnings if text.endswith(beginning))


def test_the_work_for_a_character_grows_neither_with_the_stop_strings_length_nor_with_their_number() -> None:
    stops = StopStrings(StopTable(["a" * 50_000 + "b", *("a" * length + "c" for length in range(1, 100))]))
    for _ in range(100):
        assert stops.feed("a" * 1_000) is None
    assert stops.partial == 50_000
    assert stops.feed("b") == 1


# --- stop tokens


def eos_case(options: TextOptions) -> list[TextDelta]:
    token_ids = [*byte_level().encode("Hi.", add_special_tokens=False), byte_level().eos_token_id]
    steps = steps_of(token_ids, stop_token_id=token_ids[-1], logprobs=True)
    return deltas_of("byte_level", steps, options, request(logprobs=0))


def entry_bytes(deltas: list[TextDelta]) -> list[bytes]:
    return [entry.shown for delta in deltas for entry in delta.entries]


def test_an_end_of_sequence_token_is_counted_but_not_shown() -> None:
    deltas = eos_case(TextOptions())
    assert text_of(deltas) == "Hi."
    assert deltas[-1].token_ids == (byte_level().eos_token_id,)
    assert b"".join(entry_bytes(deltas)) == b"Hi."
    assert len(entry_bytes(deltas)) == sum(len(delta.token_ids) for delta in deltas) - 1
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == (FinishReason.STOP, None)


def test_an_end_of_sequence_token_is_shown_with_the_special_tokens() -> None:
    deltas = eos_case(TextOptions(skip_special_tokens=False))
    assert text_of(deltas) == "Hi.</s>"
    assert entry_bytes(deltas)[-1] == b"</s>"


def test_hidden_tokens_have_entries_where_asked_for() -> None:
    deltas = eos_case(TextOptions(hidden_entries=True))
    assert text_of(deltas) == "Hi."
    assert entry_bytes(deltas)[-1] == b""


@pytest.mark.parametrize("include", [False, True])
def test_an_ordinary_stop_token_is_shown_only_where_asked_for(include: bool) -> None:
    token_ids = byte_level_bytes("a.")
    steps = steps_of(token_ids, stop_token_id=token_ids[-1])
    wanted = request(stop_token_ids=(token_ids[-1],))
    deltas = deltas_of("byte_level", steps, TextOptions(include_stop_str_in_output=include), wanted)
    assert text_of(deltas) == ("a." if include else "a")
    assert deltas[-1].stop_reason == token_ids[-1]


def test_special_tokens_within_the_text_are_left_out_or_shown() -> None:
    special = byte_level().convert_tokens_to_ids(SPECIALS[2])
    steps = steps_of([*byte_level_bytes("a"), special, *byte_level_bytes("b")])
    assert text_of(deltas_of("byte_level", steps, TextOptions())) == "ab"
    assert text_of(deltas_of("byte_level", steps, TextOptions(skip_special_tokens=False))) == "a<|im_start|>b"
    kept = TextOptions(kept_special_ids=frozenset({special}))
    assert text_of(deltas_of("byte_level", steps, kept)) == "a<|im_start|>b"


# --- entries


@PROPERTY
@given(ANY_STREAM, st.lists(st.text(st.sampled_from("stop 日🙂é"), min_size=1, max_size=4), max_size=3), st.booleans())
def test_the_entries_bytes_joined_are_the_text(case: tuple[str, list[int]], stops: list[str], include: bool) -> None:
    name, token_ids = case
    options = TextOptions(stop=StopTable(stops), include_stop_str_in_output=include)
    deltas = deltas_of(name, steps_of(token_ids, logprobs=True), options, request(logprobs=0))
    text = text_of(deltas)
    if REPLACEMENT not in text:
        assert b"".join(entry_bytes(deltas)).decode() == text


@PROPERTY
@given(ANY_STREAM, STOPS)
def test_no_entry_is_ahead_of_its_text(case: tuple[str, list[int]], stops: list[str]) -> None:
    name, token_ids = case
    deltas = deltas_of(
        name, steps_of(token_ids, logprobs=True), TextOptions(stop=StopTable(stops)), request(logprobs=0)
    )
    text, data = "", b""
    for delta in deltas:
        text += delta.text
        data += b"".join(entry.shown for entry in delta.entries)
        if REPLACEMENT not in text:
            assert text.encode().startswith(data)
