"""What a run says, once, of how its rows are learned."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from training.data.answers import Note
from training.data.encode import Encoder
from training.data.problems import BadRow

FIRST = 64
"""Rows that are looked at where rows are encoded while training."""


def told(notes: Iterable[Iterable[str]], encoder: Encoder, *, more: int = 0) -> list[str]:
    """`notes` of each row; `more`: samples beyond the number of rows."""
    rows = Counter(note for of_row in notes for note in of_row)
    return [_text(note, rows[note], encoder, more) for note in Note if rows[note]]


def told_of_first(rows: Iterable[str], encoder: Encoder) -> list[str]:
    """The same of the first rows, as JSON text. None is kept from training."""
    return [f"of the first {FIRST} rows: {text}" for text in told(_notes(rows, encoder), encoder)]


def _notes(rows: Iterable[str], encoder: Encoder) -> Iterator[list[Note]]:
    for row, _ in zip(rows, range(FIRST), strict=False):
        try:
            encoder.encode(json.loads(row))
        except BadRow:
            continue
        yield encoder.notes


def _text(note: Note, rows: int, encoder: Encoder, more: int) -> str:
    match note:
        case Note.APART:
            many = f"became {rows + more} samples" if more else "become a sample for each of their answers"
            why = "the chat template writes an answer in another way once more messages follow it"
            return f"{rows} conversations {many}: {why}"
        case Note.NO_REASONING:
            off = ', or set chat_template_kwargs to {"enable_thinking": false}'
            do = "give them reasoning_content" + (off if encoder.knows("enable_thinking") else "")
            return f"{rows} rows have answers without reasoning, which the model reasons before: it unlearns that; {do}"
        case Note.REASONING_WRITTEN:
            why = "the chat template writes none: it is learned in <think> tags before the answer"
            return f"{rows} rows have reasoning, and {why}, which reasoning_parser deepseek_r1 reads"
        case Note.REASONING_LEFT_OUT:
            return f"{rows} rows have reasoning, and the prompt turns reasoning off: it is not learned"
        case Note.END_ADDED:
            why = "the chat template ends answers with no token at which serving stops"
            return f"{rows} rows: {why}; the model's own is learned behind them"
