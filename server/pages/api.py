"""The server behind a page, as one visitor asks it: OpenAI's SDK, with that visitor's key."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
from openai.types.chat import ChatCompletionMessageParam

from server.pages.settings import Settings

UPLOADS: Literal["fine-tune"] = "fine-tune"
"""Purpose of files that are uploaded."""
LOG_BYTES = 16 << 10
"""The end of a log that is shown."""
MOST_LISTED = 100
NOT_READY = 503


class Api:
    """Every method raises openai.OpenAIError; `told` has its words."""

    def __init__(self, settings: Settings, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        """`transport` carries the requests, in tests."""
        self._settings = settings
        verify = True if settings.certificate is None else trusting(settings.certificate)
        self._client = openai.AsyncOpenAI(
            base_url=settings.server,
            api_key=settings.key or "none",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(verify=verify, transport=transport, follow_redirects=False),
        )

    def _as(self, key: str | None) -> openai.AsyncOpenAI:
        if not self._settings.asks_for_key:
            return self._client
        return self._client.with_options(api_key=(key or "").strip() or "none")

    # ---- models

    async def models(self, key: str | None) -> list[str]:
        """What requests can name now: the base model, its adapters, and what has been trained since."""
        return [model.id async for model in self._as(key).models.list()]

    async def models_once_ready(self, key: str | None) -> list[str]:
        """The same, and none while the server's engine starts."""
        try:
            return await self.models(key)
        except openai.InternalServerError as error:
            if error.status_code != NOT_READY:
                raise
            return []

    async def chat(
        self, key: str | None, messages: list[ChatCompletionMessageParam], options: Mapping[str, Any]
    ) -> openai.AsyncStream[openai.types.chat.ChatCompletionChunk]:
        create = self._as(key).chat.completions.create
        chunks: openai.AsyncStream[openai.types.chat.ChatCompletionChunk] = await create(
            messages=messages, stream=True, **options
        )
        return chunks

    # ---- files

    async def upload(self, key: str | None, path: Path) -> str:
        """The id of the file."""
        with path.open("rb") as file:
            return (await self._as(key).files.create(file=(path.name, file), purpose=UPLOADS)).id

    async def files(self, key: str | None) -> list[tuple[str, str]]:
        """Names and ids of what can be trained on, the newest first."""
        page = await self._as(key).files.list(purpose=UPLOADS, limit=MOST_LISTED)
        return [(file.filename, file.id) for file in page.data]

    # ---- jobs

    async def create_job(self, key: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._post(key, "/jobs", body)

    async def jobs(self, key: str | None) -> list[dict[str, Any]]:
        """The newest first."""
        listed: list[dict[str, Any]] = (await self._get(key, "/jobs", limit=MOST_LISTED))["data"]
        return listed

    async def job(self, key: str | None, id: str) -> dict[str, Any]:
        return await self._get(key, f"/jobs/{id}")

    async def act(self, key: str | None, id: str, action: str) -> dict[str, Any]:
        """`action`: pause, resume, cancel, retry."""
        return await self._post(key, f"/jobs/{id}/{action}", {})

    async def curve(self, key: str | None, id: str) -> list[dict[str, Any]]:
        """Every step and evaluation that was logged."""
        events: list[dict[str, Any]] = (await self._get(key, f"/jobs/{id}/metrics"))["data"]
        return events

    async def messages(self, key: str | None, id: str) -> list[dict[str, Any]]:
        """The last events, the newest first."""
        events: list[dict[str, Any]] = (await self._get(key, f"/jobs/{id}/events", order="desc", limit=50))["data"]
        return events

    async def log_end(self, key: str | None, id: str) -> str:
        """The end of what the last attempt has written."""
        empty = await self._get(key, f"/jobs/{id}/logs", offset=1 << 60, limit=1)
        page = await self._get(key, f"/jobs/{id}/logs", offset=max(0, empty["offset"] - LOG_BYTES), limit=LOG_BYTES)
        return str(page["text"])

    async def artifacts(self, key: str | None, id: str) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = (await self._get(key, f"/jobs/{id}/artifacts"))["data"]
        return files

    async def _get(self, key: str | None, path: str, **query: Any) -> dict[str, Any]:
        answer = await self._as(key).get(path, cast_to=httpx2.Response, options={"params": query})
        return dict(answer.json())

    async def _post(self, key: str | None, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = await self._as(key).post(path, cast_to=httpx2.Response, body=body)
        return dict(answer.json())


def trusting(certificate: str) -> ssl.SSLContext:
    """Takes this certificate and no other: that of the server which this process's parent is, whatever its name."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def told(error: openai.OpenAIError) -> str:
    """What the server said, or why it could not be asked."""
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        message = body.get("message") or error.message
        param = body.get("param")
        return f"{message} ({error.status_code}{f', {param}' if param else ''})"
    if isinstance(error, openai.APIError):
        return str(error.__cause__ or error.message)
    return str(error)
