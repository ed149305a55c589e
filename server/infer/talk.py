"""A conversation with the model: what is said, what is answered so far, and the words that are commands."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from engines.errors import TuneserveError

HELP = """\
  TEXT           say it; Ctrl-C ends the answer, and what was written of it stays
  \"\"\"            begin and end a message of several lines
  /system TEXT   begin anew with this system message; without TEXT, with none
  /model NAME    go on with another model or adapter; without NAME, list them
  /again         answer the last message once more
  /clear         begin anew
  /help          this
  /exit          end, as Ctrl-D does
"""
QUOTES = '"""'


class Ended(Exception):
    """Nothing more is to be said."""


class Speaker(Protocol):
    """What answers."""

    def names(self) -> Sequence[str]:
        """What `model` may be."""

    def answer(self, body: dict[str, Any], show: Callable[[str], None]) -> dict[str, Any]:
        """The assistant's message to a request for a chat completion, shown as it comes; what there is of it, where
        KeyboardInterrupt ends it. Raises TuneserveError."""


@dataclass(slots=True)
class Talk:
    speaker: Speaker
    show: Callable[[str], None]
    model: str
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, text: str) -> None:
        """Answer what was said, or do what a command says. Raises Ended."""
        if not text.strip():
            return
        if not text.startswith("/"):
            return self._answer([*self.messages, {"role": "user", "content": text}])
        word, _, rest = text.partition(" ")
        match word:
            case "/system":
                self.system, self.messages = rest.strip() or None, []
            case "/model":
                self._choose(rest.strip())
            case "/again":
                self._again()
            case "/clear":
                self.messages = []
            case "/help":
                self.show(HELP)
            case "/exit" | "/quit":
                raise Ended
            case _:
                self.show(f"{word} is no command; /help lists them. A message may begin with / in several lines.\n")

    def _choose(self, name: str) -> None:
        names = self.speaker.names()
        if name in names:
            self.model = name
            return
        if name:
            self.show(f"There is no {name!r}.\n")
        self.show("".join(f"{'*' if each == self.model else ' '} {each}\n" for each in names))

    def _again(self) -> None:
        asked = list(self.messages)
        while asked and asked[-1]["role"] != "user":
            asked.pop()
        if asked:
            self._answer(asked)
        else:
            self.show("There is nothing to answer yet.\n")

    def _answer(self, asked: list[dict[str, Any]]) -> None:
        """What cannot be answered is not said either."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        try:
            answer = self.speaker.answer({"model": self.model, "messages": [*system, *asked]}, self.show)
        except TuneserveError as error:
            return self.show(f"{error.message}\n")
        self.show("\n")
        self.messages = [*asked, answer]


def read_message(read: Callable[[str], str]) -> str:
    """The next message, from the lines that `read` gives for a prompt: one, or all from three quotes to the next
    three. Raises EOFError."""
    first = read("> ")
    if not first.lstrip().startswith(QUOTES):
        return first
    lines = [first.lstrip().removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        with suppress(EOFError):
            lines.append(read(". "))
            continue
        return "\n".join(lines)
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")
