"""From what a page shows to a request, and from an answer's pieces to what it shows."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from server.pages.chat import NotAnImage, read_answer, to_messages, to_options

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def said(role: str, content: Any, title: str | None = None) -> dict[str, Any]:
    return {"role": role, "content": content, "metadata": {"title": title} if title else None, "options": None}


def chunk(finish: str | None = None, **delta: Any) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return ChatCompletionChunk.model_validate({**head, "choices": [choice]})


async def stream(*chunks: ChatCompletionChunk) -> AsyncIterator[ChatCompletionChunk]:
    for each in chunks:
        yield each


def test_a_conversation_goes_on_with_all_that_was_said_but_the_reasoning() -> None:
    history = [
        said("user", [{"type": "text", "text": "one"}]),
        said("assistant", "because", title="Reasoning"),
        said("assistant", "two"),
    ]
    assert to_messages("Be brief.", history, "three") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]


def test_without_a_system_prompt_the_server_has_its_own() -> None:
    assert to_messages("  ", [], "hello") == [{"role": "user", "content": "hello"}]


def test_an_image_goes_into_the_request(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    file = str(tmp_path / "a.png")
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}}
    (message,) = to_messages("", [], {"text": "what?", "files": [file]})
    assert message["content"] == [image, {"type": "text", "text": "what?"}]

    shown = [
        said("user", [{"type": "file", "file": {"path": file}}]),
        said("user", "what?"),
        said("assistant", "a dot"),
    ]
    first, second, third = to_messages("", shown, {"text": "sure?", "files": []})
    assert first == {"role": "user", "content": [image, {"type": "text", "text": "what?"}]}
    assert (second["content"], third["content"]) == ("a dot", "sure?")


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(NotAnImage, match=r"a\.pdf is not an image"):
        to_messages("", [], {"text": "", "files": [str(tmp_path / "a.pdf")]})


def test_what_is_left_empty_is_left_to_the_server() -> None:
    assert to_options("m", None, None) == {"model": "m"}
    assert to_options("m", 0, 5.0) == {"model": "m", "temperature": 0, "max_tokens": 5}


async def test_an_answer_grows_and_its_reasoning_is_folded_away() -> None:
    chunks = (chunk(reasoning="so "), chunk(reasoning="so"), chunk(content="th"), chunk(content="is", finish="length"))
    seen = [(answer.shown("R"), answer.finish) async for answer in read_answer(stream(*chunks))]
    aside = {"role": "assistant", "content": "so so", "metadata": {"title": "R", "status": "done"}}
    assert seen[0][0][0]["metadata"]["status"] == "pending"
    assert seen[-1] == ([aside, {"role": "assistant", "content": "this"}], "length")
    assert len(seen) == 5


async def test_an_empty_answer_is_an_empty_message() -> None:
    (answer,) = [answer async for answer in read_answer(stream(chunk(finish="stop")))]
    assert answer.shown("R") == [{"role": "assistant", "content": ""}]
