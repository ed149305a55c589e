"""The text of an engine's outputs, once for all engines: incremental, cut at stop strings, with logprob entries."""

from dataclasses import dataclass

import msgspec

from engines.text.detokenize import Detokenizer
from engines.text.logprob_entries import PendingEntries, TokenEntry
from engines.text.stop_strings import NO_STOPS, StopStrings, StopTable
from engines.text.vocabulary import Vocabulary
from engines.types import FinishReason, GenerationRequest, TokenLogprob, TokenOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How the text of a request is cut and shown."""

    stop: StopTable = NO_STOPS
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


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What one step adds to the text of one output. The last one of each output, and only it, has a finish reason."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    """The new tokens up to the one that ended the output, shown or not. They may be ahead of the text."""
    entries: tuple[TokenEntry, ...] = ()
    """Logprobs of the tokens whose text has been given by now, where the request asked for them."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string, or the stop token where it is not an end-of-sequence token, that ended the output."""
    cached_tokens: int | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    accepted_prediction_tokens: int = 0
    """As the engine tells them: see `TokenOutput`."""
    rejected_prediction_tokens: int = 0


class OutputText:
    """The text of one output, made step by step."""

    def __init__(self, vocabulary: Vocabulary, options: TextOptions, request: GenerationRequest, index: int) -> None:
        self.finished = False
        self._index = index
        self._options = options
        self._vocabulary = vocabulary
        self._hidden = vocabulary.special_ids - options.kept_special_ids if options.skip_special_tokens else frozenset()
        self._stop_token_ids = frozenset(request.sampling.stop_token_ids)
        self._detokenizer = Detokenizer(vocabulary, starts_text=options.starts_text)
        self._stops = StopStrings(options.stop)
        self._has_stops = bool(options.stop.first)
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
        hidden = token_id in self._hidden or (is_stop_token and self._hides_stop_token(token_id))
        shown = b"" if hidden else self._detokenizer.bytes_of(token_id)
        text = self._detokenizer.decode(shown)
        if self._entries is not None:
            if logprob is not None and (not hidden or self._options.hidden_entries):
                entry = TokenEntry(token_id, shown, logprob.logprob, logprob.top)
                self._entries.add(entry, len(text), complete=self._detokenizer.complete)
            else:
                self._entries.pass_over(len(text))
        return self._take(text)

    def _hides_stop_token(self, token_id: int) -> bool:
        if self._options.include_stop_str_in_output:
            return False
        return token_id not in self._vocabulary.special_ids  # a special one is shown because it was asked for

    def _take(self, text: str) -> str | None:
        """Append decoded text to what is held; return the stop string that is complete, with the text cut there."""
        if not text:
            return None
        searched = self._has_stops and self._tokens > self._options.min_tokens
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
        text, self._held = self._held, ""
        if self._has_stops and not self.finished and not self._options.include_stop_str_in_output:
            sure = len(text) - self._stops.partial
            text, self._held = text[:sure], text[sure:]
        stop_reason: str | int | None = matched
        if matched is None and step.stop_token_id in self._stop_token_ids:
            stop_reason = step.stop_token_id
        return TextDelta(
            index=self._index,
            text=text,
            token_ids=step.token_ids[:used],
            entries=self._entries.release(len(text), final=self.finished) if self._entries is not None else (),
            finish_reason=reason,
            stop_reason=stop_reason,
            cached_tokens=step.cached_tokens,
            prompt_logprobs=step.prompt_logprobs,
            accepted_prediction_tokens=step.accepted_prediction_tokens,
            rejected_prediction_tokens=step.rejected_prediction_tokens,
        )
