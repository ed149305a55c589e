"""How a page asks its server: whose key it sends and where to, and how an answer that is an error is told."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from server.pages.api import LOG_BYTES, Api, told
from tests.certificates import write_certificate
from tests.server.keys import FULL
from tests.server.pages.settings import settings

SERVER = "http://server.example"


class Fake:
    """A server that answers as it is told, and remembers who asked what."""

    def __init__(self, *answers: httpx2.Response) -> None:
        self.asked: list[httpx2.Request] = []
        self._answers = list(answers)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        return self._answers.pop(0)

    def api(self, **given: Any) -> Api:
        return Api(settings(SERVER, **given), httpx2.MockTransport(self))


def models(*names: str) -> httpx2.Response:
    cards = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in names]
    return httpx2.Response(200, json={"object": "list", "data": cards})


def refusal(status: int, message: str, **more: Any) -> httpx2.Response:
    return httpx2.Response(
        status, json={"error": {"message": message, "type": "t", "param": None, "code": "c", **more}}
    )


@pytest.mark.parametrize(
    ("given", "typed", "sent"),
    [
        ({"asks": True}, FULL, f"Bearer {FULL}"),
        ({"asks": True}, "", "Bearer none"),
        ({"key": "the-pages-own"}, FULL, "Bearer the-pages-own"),
        ({}, FULL, "Bearer none"),
    ],
)
async def test_each_visitor_is_known_by_the_key_that_the_page_is_to_send(
    given: dict[str, Any], typed: str, sent: str
) -> None:
    fake = Fake(models("a", "b"))
    assert await fake.api(**given).models(typed) == ["a", "b"]
    assert fake.asked[0].headers["authorization"] == sent


async def test_a_key_goes_to_the_server_and_nowhere_else() -> None:
    fake = Fake(httpx2.Response(307, headers={"location": "http://elsewhere.example/v1/models"}), models("a"))
    with pytest.raises(openai.OpenAIError):
        await fake.api(asks=True).models(FULL)
    assert [request.url.host for request in fake.asked] == ["server.example"]


async def test_a_server_that_still_starts_has_no_models_yet() -> None:
    fake = Fake(refusal(503, "loading"), refusal(500, "broken"), models("a"))
    api = fake.api()
    assert await api.models_once_ready("") == []
    with pytest.raises(openai.InternalServerError):
        await api.models_once_ready("")
    assert await api.models_once_ready("") == ["a"]


async def test_what_a_server_refuses_is_told_with_its_parameter() -> None:
    fake = Fake(refusal(400, "parameters.x: wrong.", param="parameters.x"), httpx2.Response(502, text="bad gateway"))
    for words in ("parameters.x: wrong. (400, parameters.x)", "502"):
        with pytest.raises(openai.OpenAIError) as caught:
            await fake.api().create_job("", {})
        assert words in told(caught.value)


async def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(openai.OpenAIError) as caught:
        await Api(settings("http://127.0.0.1:9")).jobs("")
    assert "connect" in told(caught.value).lower()


async def test_the_end_of_a_log_is_asked_for() -> None:
    page = {"object": "job.logs", "attempt": 1, "text": "end", "offset": LOG_BYTES + 5, "next_offset": 0}
    fake = Fake(httpx2.Response(200, json=page), httpx2.Response(200, json=page))
    assert await fake.api().log_end("", "job-1") == "end"
    assert fake.asked[1].url.params["offset"] == "5"


async def test_the_server_of_a_page_is_known_by_its_certificate(start_echo: Callable[..., Any], tmp_path: Path) -> None:
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), map(str, write_certificate(tmp_path)), strict=True))
    url = start_echo(params={**files, "without_state": True}).url
    own = settings(url).model_copy(update={"certificate": files["ssl_certfile"]})
    names: list[str] = []
    while not names:
        await asyncio.sleep(0.01)
        names = await Api(own).models_once_ready("")
    assert names == ["echo"]

    other, _ = write_certificate(tmp_path, "other")
    for certificate in (None, str(other)):
        with pytest.raises(openai.APIConnectionError) as caught:
            await Api(own.model_copy(update={"certificate": certificate})).models("")
        assert "certificate" in told(caught.value).lower()
