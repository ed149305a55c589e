"""Token ids to text, once for all engines: incremental, with true bytes, stop strings and logprob entries.

The text of an output is the UTF-8 reading of its tokens' bytes, one after another. So a token's bytes are looked up
once, every step costs the same however long the output is, and a character appears when its last byte has come.
"""

import codecs
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from engines.types import FinishReason, GenerationRequest, TokenLogprob, TokenOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How the text of a request is cut and shown."""

    stop: tuple[str, ...] = ()
    """The output ends where one of these is complete; the one that is complete first decides, then the longest."""
    include_stop_str_in_output: bool = False
    """Show the stop string or stop token that ended the output."""
    skip_special_tokens: bool = True
    kept_special_ids: frozenset[int] = frozenset()
    """Special tokens that are shown all the same, because they mean something to whoever reads the text."""
    min_tokens: int = 0
    """Stop strings are looked for after this many tokens."""
    starts_text: bool = True
    """The output is a text of its own, not the continuation of one: the space that a sentencepiece tokenizer puts
    before the first word is left out."""
    hidden_entries: bool = False
    """Give logprob entries also to tokens that are not shown (special tokens, the stop token), with empty bytes."""


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token with its logprobs and the bytes that it adds to the shown text.

    Over an output whose bytes are valid UTF-8 the entries' bytes, joined, are the text: a token that is cut by a stop
    string has the part before the cut.
    """

    token_id: int
    shown: bytes
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """What one step adds to the text of one output. The last one of each output, and only it, has a finish reason."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    """The new tokens up to the one that ended the output, shown or not. They may be ahead of the text."""
    entries: tuple[TokenEntry, ...] = ()
    """Where the request asked for logprobs: of the tokens whose text has been given by now."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string, or the stop token where it is not an end-of-sequence token, that ended the output."""
    cached_tokens: int | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


async def generate_text(
    steps: AsyncGenerator[TokenOutput, None],
    request: GenerationRequest,
    vocabulary: "Vocabulary",
    options: TextOptions,
    *,
    finish: Callable[[str, int], None],
) -> AsyncGenerator[TextDelta, None]:
    """The text of what an engine yields for a request. `finish` is the engine's: it ends outputs at their stop string.

    Closing this closes `steps`, whose errors it passes on.
    """
    outputs = [OutputText(vocabulary, options, request, index) for index in range(request.n)]
    async with aclosing(steps):
        async for step in steps:
            output = outputs[step.index]
            if output.finished:
                continue  # steps that were under way when a stop string ended this output
            delta = output.push(step)
            if output.finished and step.finish_reason is None:
                finish(request.request_id, step.index)
            yield delta


class OutputText:
    """The text of one output, made step by step."""

    def __init__(self, vocabulary: "Vocabulary", options: TextOptions, request: GenerationRequest, index: int) -> None:
        self.finished = False
        self._index = index
        self._options = options
        self._vocabulary = vocabulary
        self._hidden = vocabulary.special_ids - options.kept_special_ids if options.skip_special_tokens else frozenset()
        self._stop_token_ids = frozenset(request.sampling.stop_token_ids)
        self._detokenizer = Detokenizer(vocabulary, starts_text=options.starts_text)
        self._stops = StopStrings(options.stop)
        self._held = ""  # decoded, and perhaps the beginning of a stop string
        self._tokens = 0
        self._entries = PendingEntries() if request.sampling.logprobs is not None else None

    def push(self, step: TokenOutput) -> TextDelta:
        """Take a step's tokens; tokens after the one that completes a stop string are dropped."""
        used = len(step.token_ids)
        matched: str | None = None
        for position, token_id in enumerate(step.token_ids):
            is_stop_token = step.stop_token_id is not None and position == len(step.token_ids) - 1
            matched = self._add(token_id, is_stop_token, step.logprobs[position] if step.logprobs else None)
            if matched is not None:
                used = position + 1
                break
        if matched is None and step.finish_reason is not None:
            matched = self._take(self._detokenizer.flush())
        return self._delta(step, used, matched)

    def _add(self, token_id: int, is_stop_token: bool, logprob: TokenLogprob | None) -> str | None:
        """Add one token to the text; return the stop string that it completed."""
        self._tokens += 1
        hidden = self._is_hidden(token_id, is_stop_token)
        shown = b"" if hidden else self._detokenizer.bytes_of(token_id)
        text = self._detokenizer.decode(shown)
        if self._entries is not None and logprob is not None and (not hidden or self._options.hidden_entries):
            entry = TokenEntry(token_id, shown, logprob.logprob, logprob.top)
            self._entries.add(entry, len(text), complete=self._detokenizer.complete)
        elif self._entries is not None:
            self._entries.pass_over(len(text))
        return self._take(text)

    def _is_hidden(self, token_id: int, is_stop_token: bool) -> bool:
        if token_id in self._hidden:
            return True
        if not is_stop_token or self._options.include_stop_str_in_output:
            return False
        return token_id not in self._vocabulary.special_ids  # a special one is shown because it was asked for

    def _take(self, text: str) -> str | None:
        """Append decoded text to what is held; return the stop string that is complete, with the text cut there."""
        if not text:
            return None
        searched = self._tokens > self._options.min_tokens
        end = self._stops.feed(text) if searched else None
        if end is None:
            self._held += text
            return None
        stop = self._stops.matched
        self._held += text[:end]
        if not self._options.include_stop_str_in_output:
            self._held = self._held[: len(self._held) - len(stop)]
        return stop

    def _delta(self, step: TokenOutput, used: int, matched: str | None) -> TextDelta:
        """Give away the text that no stop string can take back, and the entries that belong to it."""
        reason = step.finish_reason if matched is None else FinishReason.STOP
        self.finished = reason is not None
        keep = 0 if self.finished or self._options.include_stop_str_in_output else self._stops.partial
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return TextDelta(
            index=self._index,
            text=text,
            token_ids=step.token_ids[:used],
            entries=self._entries.release(len(text), final=self.finished) if self._entries is not None else (),
            finish_reason=reason,
            stop_reason=self._stop_token_reason(step) if matched is None else matched,
            cached_tokens=step.cached_tokens,
            prompt_logprobs=step.prompt_logprobs,
        )

    def _stop_token_reason(self, step: TokenOutput) -> int | None:
        return step.stop_token_id if step.stop_token_id in self._stop_token_ids else None


class PendingEntries:
    """Logprob entries that wait for their text: for the rest of a character, or for a stop string to be ruled out."""

    def __init__(self) -> None:
        self._waiting: list[tuple[TokenEntry, int, bool]] = []  # entry, end of its text, whether a character ends there
        self._decoded = 0  # characters that the tokens so far have completed
        self._given = 0  # characters that have been given away
        self._start = 0  # where the text of the first waiting entry begins

    def add(self, entry: TokenEntry, characters: int, *, complete: bool) -> None:
        self._decoded += characters
        self._waiting.append((entry, self._decoded, complete))

    def pass_over(self, characters: int) -> None:
        """A token without an entry completed characters."""
        self._decoded += characters

    def release(self, characters: int, *, final: bool) -> tuple[TokenEntry, ...]:
        """Return the entries that end within the text given so far, of which `characters` are new; the final time, what
        is left of all others too."""
        self._given += characters
        if final:
            return self._cut()
        count = 0
        for position, (_, end, complete) in enumerate(self._waiting, 1):
            if end > self._given:
                break
            if complete:
                count, self._start = position, end
        released = tuple(entry for entry, _, _ in self._waiting[:count])
        del self._waiting[:count]
        return released

    def _cut(self) -> tuple[TokenEntry, ...]:
        """All waiting entries, cut where the given text ends."""
        entries = [entry for entry, _, _ in self._waiting]
        if self._given >= self._decoded:
            return tuple(entries)
        left = length_of_characters(b"".join(entry.shown for entry in entries), self._given - self._start)
        kept: list[TokenEntry] = []
        for entry in entries:
            if left <= 0 < len(entry.shown):
                break
            kept.append(TokenEntry(entry.token_id, entry.shown[:left], entry.logprob, entry.top))
            left -= len(entry.shown)
        return tuple(kept)


def length_of_characters(data: bytes, characters: int) -> int:
    """How many bytes of `data` its first `characters` characters take."""
    decoder = new_utf8_decoder()
    for position in range(len(data)):
        if characters <= 0:
            return position
        characters -= len(decoder.decode(data[position : position + 1]))
    return len(data)


class StopStrings:
    """Finds, in a text that arrives in pieces, the stop string that is complete first.

    One Knuth-Morris-Pratt automaton for each string, so that the work for a character does not grow with their length.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self.matched = ""
        """The stop string that ended the text, once `feed` has found one."""
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [borders(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)  # how much of each string the text ends with
        self._first = frozenset(stop[0] for stop in self._stops)

    @property
    def partial(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return max(self._states, default=0)

    def feed(self, text: str) -> int | None:
        """Return the end, within `text`, of the first stop string that is complete."""
        if not self._stops or (not any(self._states) and self._first.isdisjoint(text)):
            return None
        for position, character in enumerate(text, 1):
            for number, stop in enumerate(self._stops):
                if self._advance(number, character) == len(stop):
                    self.matched = stop
                    return position
        return None

    def _advance(self, number: int, character: str) -> int:
        stop, state = self._stops[number], self._states[number]
        while state and stop[state] != character:
            state = self._borders[number][state - 1]
        if stop[state] == character:
            state += 1
        self._states[number] = state
        return state


def borders(pattern: str) -> list[int]:
    """For each prefix of the pattern, the length of its longest proper prefix that is also its suffix."""
    lengths = [0] * len(pattern)
    state = 0
    for position in range(1, len(pattern)):
        while state and pattern[position] != pattern[state]:
            state = lengths[state - 1]
        if pattern[position] == pattern[state]:
            state += 1
        lengths[position] = state
    return lengths


class Detokenizer:
    """Bytes of successive tokens to text; bytes of a character that is not complete yet are kept back."""

    def __init__(self, vocabulary: "Vocabulary", *, starts_text: bool) -> None:
        self._vocabulary = vocabulary
        self._utf8 = new_utf8_decoder()
        self._at_start = starts_text

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to the text. To be called once for each token that is shown, in order."""
        if not self._at_start:
            return self._vocabulary.token_bytes(token_id)
        self._at_start = not self._vocabulary.token_bytes(token_id)
        return self._vocabulary.first_bytes(token_id)

    def decode(self, data: bytes) -> str:
        return self._utf8.decode(data)

    @property
    def complete(self) -> bool:
        """No character is half way."""
        return not self._utf8.getstate()[0]

    def flush(self) -> str:
        """U+FFFD where the text ends within a character."""
        return self._utf8.decode(b"", final=True)


def new_utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


class Vocabulary:
    """What each token of a transformers tokenizer adds to a text, in bytes: also for a part of a UTF-8 character."""

    def __init__(self, tokenizer: Any) -> None:
        self.special_ids: frozenset[int] = special_ids(tokenizer)
        self._tokenizer = tokenizer
        self._read = token_reader(tokenizer)
        self._bytes: dict[int, bytes] = {}
        self._first: dict[int, bytes] = {}

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token that follows others. b"" for an id that the tokenizer does not know (a padded vocabulary)."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._look_up(token_id, first=False)
        return data

    def first_bytes(self, token_id: int) -> bytes:
        """Bytes of a token that begins a text."""
        data = self._first.get(token_id)
        if data is None:
            data = self._first[token_id] = self._look_up(token_id, first=True)
        return data

    def token_text(self, token_id: int) -> str:
        """The token alone, U+FFFD where it is a part of a character."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def _look_up(self, token_id: int, *, first: bool) -> bytes:
        try:
            token = self._tokenizer.convert_ids_to_tokens(token_id)
        except (IndexError, KeyError, OverflowError, ValueError):
            token = None
        if token is None:
            return b""
        return token if isinstance(token, bytes) else self._read(token, first)


def special_ids(tokenizer: Any) -> frozenset[int]:
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


TokenReader = Callable[[str, bool], bytes]
"""A token as the vocabulary spells it, and whether it begins a text, to bytes."""


def token_reader(tokenizer: Any) -> TokenReader:
    """The reader for the tokenizer's way of spelling bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # a tokenizer without one is written in Python
    decoder = None if backend is None else backend.decoder
    spelling = repr(decoder)
    if "ByteLevel(" in spelling:
        return lambda token, first: byte_level_bytes(token)
    join = tokenizer.convert_tokens_to_string if backend is None else decoder_join(decoder)
    has_bytes = backend is None or "ByteFallback(" in spelling
    return lambda token, first: joined_bytes(token, first, join, has_bytes)


def decoder_join(decoder: Any) -> Callable[[list[str]], str]:
    return cast(Callable[[list[str]], str], " ".join if decoder is None else decoder.decode)


def byte_level_bytes(token: str) -> bytes:
    """GPT-2's spelling: a character for each byte. A token with any other character is text as it stands."""
    data = [BYTE_OF_CHARACTER.get(character) for character in token]
    return token.encode() if None in data else bytes(cast(list[int], data))


BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def joined_bytes(token: str, first: bool, join: Callable[[list[str]], str], has_bytes: bool) -> bytes:
    """What the tokenizer's own decoder makes of the token between two others, or before another."""
    byte = BYTE_TOKEN.fullmatch(token) if has_bytes else None
    if byte is not None and int(byte[1], 16) >= 0x80:
        return bytes([int(byte[1], 16)])  # alone it is no character
    after = join(["a", "a"]).removeprefix("a")
    text = join([token, "a"]) if first else join(["a", token, "a"]).removeprefix("a")
    return text.removesuffix(after).encode()


def byte_characters() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + position): byte for position, byte in enumerate(others)}


BYTE_OF_CHARACTER = byte_characters()
