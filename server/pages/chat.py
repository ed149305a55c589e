"""A conversation: from what a page shows to a request, and from the answer's pieces to what it shows."""

import base64
import mimetypes
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai.types.chat import ChatCompletionChunk

MOST_IMAGE_BYTES = 20 << 20

Shown = Mapping[str, Any]
"""A message as Gradio shows it: `role`, `content`, and `metadata` whose `title` marks what is no part of the answer."""


class NotAnImage(ValueError):
    """A file that no model is sent."""


def to_messages(system: str, history: Sequence[Shown], asked: str | Mapping[str, Any]) -> list[dict[str, Any]]:
    """The request's messages. Raises NotAnImage."""
    instructions = [{"role": "system", "content": system}] if system.strip() else []
    before = [message for shown in history if not _is_aside(shown) and (message := _to_message(shown))]
    return [*instructions, *_joined(before), {"role": "user", "content": _asked(asked)}]


def _is_aside(shown: Shown) -> bool:
    """Reasoning, which the model is not shown again."""
    return bool((shown.get("metadata") or {}).get("title"))


def _to_message(shown: Shown) -> dict[str, Any] | None:
    content = shown["content"]
    parts = [content] if isinstance(content, str | Mapping) else list(content)
    sent = [_part(part) for part in parts]
    if all(part["type"] == "text" for part in sent):
        text = "".join(part["text"] for part in sent)
        return {"role": shown["role"], "content": text} if text else None
    return {"role": shown["role"], "content": sent}


def _part(part: Any) -> dict[str, Any]:
    """Text, or a file: `{"type": "file", "file": {"path": ...}}`, `{"path": ...}`, or `(path,)`."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Mapping):
        if part.get("type") == "text":
            return {"type": "text", "text": part["text"]}
        return image_part(Path((part.get("file") or part)["path"]))
    return image_part(Path(part[0]))


def _joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one role as one message: a page shows an image and its text as two."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = message | {"content": [*_parts(joined[-1]), *_parts(message)]}
        else:
            joined.append(message)
    return joined


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _asked(asked: str | Mapping[str, Any]) -> str | list[dict[str, Any]]:
    if isinstance(asked, str):
        return asked
    images = [image_part(Path(file if isinstance(file, str) else file["path"])) for file in asked.get("files") or ()]
    text = asked.get("text") or ""
    return [*images, {"type": "text", "text": text}] if images else text


def image_part(path: Path) -> dict[str, Any]:
    """The image in the request itself, so that the server fetches nothing. Raises NotAnImage."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise NotAnImage(f"{path.name} is not an image")
    if path.stat().st_size > MOST_IMAGE_BYTES:
        raise NotAnImage(f"{path.name} is larger than {MOST_IMAGE_BYTES >> 20} MiB")
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def to_options(model: str, temperature: float | None, max_tokens: float | None) -> dict[str, Any]:
    """Fields of the request besides its messages; what is None is left to the server."""
    given = {"temperature": temperature, "max_tokens": None if max_tokens is None else int(max_tokens)}
    return {"model": model, **{name: value for name, value in given.items() if value is not None}}


@dataclass
class Answer:
    """What has come of an answer."""

    thought: str = ""
    text: str = ""
    finish: str | None = None

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Whether there is more to show."""
        if not chunk.choices:
            return False
        choice = chunk.choices[0]
        extra = choice.delta.model_extra or {}
        thought = extra.get("reasoning") or extra.get("reasoning_content") or ""
        text = choice.delta.content or choice.delta.refusal or ""
        self.thought, self.text = self.thought + thought, self.text + text
        self.finish = choice.finish_reason or self.finish
        return bool(thought or text)

    def shown(self, title: str) -> list[dict[str, Any]]:
        """The reasoning, folded under `title`, and the answer."""
        status = "done" if self.text or self.finish else "pending"
        aside = {"role": "assistant", "content": self.thought, "metadata": {"title": title, "status": status}}
        answer = {"role": "assistant", "content": self.text}
        return [*([aside] if self.thought else []), *([answer] if self.text or not self.thought else [])]


async def read_answer(chunks: AsyncIterator[ChatCompletionChunk]) -> AsyncIterator[Answer]:
    """The answer as it grows; whoever stops asking closes the stream, and the server stops writing."""
    answer = Answer()
    async for chunk in chunks:
        if answer.add(chunk):
            yield answer
    yield answer
