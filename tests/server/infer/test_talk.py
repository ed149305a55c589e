"""A conversation at the terminal."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.errors import InvalidRequest
from server.infer.speaker import LocalSpeaker, speaking
from server.infer.talk import Ended, Talk, read_message
from tests.server.infer.conftest import Listening
from training.params.infer import AnswerParams


class Parrot:
    """Answers with what it was asked, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def names(self) -> list[str]:
        return ["base", "tuned"]

    def answer(self, body: dict[str, Any], show: Callable[[str], None]) -> dict[str, Any]:
        self.asked.append(body)
        if body["messages"][-1]["content"] == "too long":
            raise InvalidRequest("It does not fit.")
        show("so")
        return {"role": "assistant", "content": "so"}


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
def talk(parrot: Parrot, shown: list[str]) -> Talk:
    return Talk(parrot, shown.append, "base")


def test_what_was_said_before_is_said_again(talk: Talk, parrot: Parrot) -> None:
    for text in ("one", "  ", "two"):
        talk.hear(text)
    said = [(message["role"], message["content"]) for message in parrot.asked[-1]["messages"]]
    assert said == [("user", "one"), ("assistant", "so"), ("user", "two")]


def test_a_system_message_begins_anew(talk: Talk, parrot: Parrot) -> None:
    for text in ("one", "/system be brief", "two", "/system", "three"):
        talk.hear(text)
    assert [[m["content"] for m in body["messages"]] for body in parrot.asked] == [
        ["one"],
        ["be brief", "two"],
        ["three"],
    ]


def test_adapters_are_chosen_by_name(talk: Talk, parrot: Parrot, shown: list[str]) -> None:
    for text in ("/model tuned", "one", "/model none", "two"):
        talk.hear(text)
    assert [body["model"] for body in parrot.asked] == ["tuned", "tuned"]
    assert "There is no 'none'.\n" in shown and "  base\n* tuned\n" in shown


def test_the_last_message_is_answered_once_more(talk: Talk, parrot: Parrot) -> None:
    for text in ("/again", "one", "/again"):
        talk.hear(text)
    assert parrot.asked[0]["messages"] == parrot.asked[1]["messages"] and len(talk.messages) == 2


def test_what_cannot_be_answered_was_not_said(talk: Talk, shown: list[str]) -> None:
    talk.hear("one")
    talk.hear("too long")
    assert [message["content"] for message in talk.messages] == ["one", "so"] and shown[-1] == "It does not fit.\n"


def test_a_word_that_is_no_command_is_told_and_exit_ends(talk: Talk, shown: list[str]) -> None:
    talk.hear("/nope")
    assert "/nope is no command" in shown[-1]
    with pytest.raises(Ended):
        talk.hear("/exit")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one"], "one"),
        (['"""one', "two", 'three"""', "four"], "one\ntwo\nthree"),
        (['"""', "/one", "", '"""'], "/one"),
        (['"""one"""'], "one"),
        (['"""one', "two"], "one\ntwo"),
    ],
)
def test_a_message_may_have_several_lines(lines: list[str], message: str) -> None:
    given = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    assert read_message(read) == message


# ---- the endpoint that answers


@pytest.fixture
def speaker(engine: Listening) -> Iterator[LocalSpeaker]:
    with speaking(AnswerParams(model="echo")) as speaker:
        yield speaker


def ask(text: str) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


def test_an_answer_is_shown_as_it_comes(speaker: LocalSpeaker, shown: list[str]) -> None:
    assert speaker.answer(ask("hello"), shown.append) == {"role": "assistant", "content": "hello"}
    assert len(shown) > 1 and "".join(shown) == "hello"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_answer_and_keeps_what_was_shown(speaker: LocalSpeaker, engine: Listening) -> None:
    engine.faults.token_delay = 0.05
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    answer = speaker.answer(ask("a long answer to end"), show)
    assert answer["content"] == "".join(shown) != "a long answer to end"


def test_an_answer_that_is_refused_says_why(speaker: LocalSpeaker, shown: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="context"):
        speaker.answer(ask("x" * 100_000), shown.append)
    assert shown == []


def test_an_answer_is_shown_whole_where_nothing_is_streamed(engine: Listening, shown: list[str]) -> None:
    with speaking(AnswerParams(model="echo", stream=False)) as speaker:
        speaker.answer(ask("hello"), shown.append)
    assert shown == ["hello"]
