"""`prediction`: what the answer is expected to be reaches an engine that has a use for it, and usage says what came of
it."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from engines.capabilities import Capabilities
from engines.echo import EchoEngine
from engines.types import GenerationRequest, TokenOutput
from tests.server.api import Api

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


class Predicting(EchoEngine):
    """Accepts one token of the prediction with each of its own, and rejects two with the first."""

    asked: GenerationRequest | None = None

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), predictions=True)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.asked, rejected = request, 2
        async for output in super().generate(request):
            yield msgspec.structs.replace(output, accepted_prediction_tokens=1, rejected_prediction_tokens=rejected)
            rejected = 0


@pytest.fixture
def engine() -> Predicting:
    return Predicting()


@pytest.fixture
def api(make_api: Callable[..., Api], engine: Predicting) -> Api:
    return make_api(engine=engine)


def asked(content: Any = "help", **fields: Any) -> dict[str, Any]:
    prediction = {"type": "content", "content": content}
    return {"model": "echo", "messages": MESSAGES, "max_tokens": 3, "prediction": prediction, **fields}


@pytest.mark.parametrize("content", ["help", [{"type": "text", "text": "he"}, {"type": "text", "text": "lp"}]])
def test_the_engine_gets_the_tokens_of_the_prediction(api: Api, engine: Predicting, content: Any) -> None:
    reply = api.http.post(CHAT, json=asked(content))
    assert "prediction" not in reply.headers.get("x-ignored-fields", "")
    assert engine.asked is not None and engine.asked.prediction_ids == list(b"help")


def test_no_more_of_a_prediction_is_read_than_an_answer_can_have(api: Api, engine: Predicting) -> None:
    most = engine.capabilities().max_model_len
    assert api.http.post(CHAT, json=asked("x" * (most + 10))).status_code == 200
    assert engine.asked is not None and engine.asked.prediction_ids == [ord("x")] * most


def test_usage_counts_what_came_of_the_prediction_and_rejected_tokens_as_completion_tokens(api: Api) -> None:
    usage = api.http.post(CHAT, json=asked()).json()["usage"]
    plain = api.http.post(CHAT, json={**asked(), "prediction": None}).json()["usage"]
    steps = plain["completion_tokens"]
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": steps, "rejected_prediction_tokens": 2}
    assert usage["completion_tokens"] == steps + 2
    assert usage["total_tokens"] == plain["total_tokens"] + 2
    assert "completion_tokens_details" not in plain


@pytest.mark.parametrize("option", ["include_usage", "continuous_usage_stats"])
def test_a_stream_tells_it_too(api: Api, option: str) -> None:
    options = {"include_usage": True, option: True}
    chunks = api.chat_chunks(**asked(stream_options=options))
    details = chunks[-1]["usage"]["completion_tokens_details"]
    assert details == {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 2}


def test_a_prediction_is_text(api: Api) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    reply = api.http.post(CHAT, json=asked([image]))
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("prediction.content")
