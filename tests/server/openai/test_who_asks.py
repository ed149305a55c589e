"""What the engine hears of who asks: whose cached prefixes a request may find, and whether it may go before others."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.echo import EchoEngine
from engines.types import GenerationRequest, PoolingRequest, TokenOutput
from tests.server.client import ReadyClient, Response, echo_client

KEYS = ("infer:one-of-sixteen-letters", "infer:other-of-sixteen-letters", "full-of-sixteen-letters")
ONE, OTHER, FULL = (key.rpartition(":")[2] for key in KEYS)
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "echo", "prompt": "hi"},
    "/v1/embeddings": {"model": "echo", "input": "hi"},
}


class Recording(EchoEngine):
    def __init__(self) -> None:
        super().__init__()
        self.requests: list[GenerationRequest | PoolingRequest] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        async for output in super().generate(request):
            yield output

    async def pool(self, request: PoolingRequest) -> list[float]:
        self.requests.append(request)
        return await super().pool(request)


@pytest.fixture
def engine() -> Recording:
    return Recording()


@pytest.fixture
def client(engine: Recording) -> Iterator[ReadyClient]:
    with echo_client(engine, api_key=KEYS) as client:
        yield client


def ask(client: ReadyClient, key: str, path: str, **fields: Any) -> Response:
    return client.post(path, json=PATHS[path] | fields, headers={"authorization": f"Bearer {key}"})


def salts(engine: Recording) -> list[str | None]:
    return [request.cache_salt for request in engine.requests]


@pytest.mark.parametrize("path", PATHS)
def test_each_owner_has_a_salt_of_its_own_and_for_each_salt_that_it_asks_for(
    client: ReadyClient, engine: Recording, path: str
) -> None:
    for key, fields in ((ONE, {}), (OTHER, {}), (ONE, {"cache_salt": "s"}), (OTHER, {"cache_salt": "s"})):
        for _ in range(2):
            assert ask(client, key, path, **fields).status_code == 200
    told = salts(engine)
    assert told[::2] == told[1::2] and len(set(told)) == 4 and None not in told


def test_salts_cannot_be_told_beforehand(engine: Recording) -> None:
    for _ in range(2):
        with echo_client(engine, api_key=KEYS) as client:
            ask(client, ONE, "/v1/completions")
    assert len(set(salts(engine))) == 2


def test_without_keys_all_prefixes_are_shared_but_those_of_a_salt(engine: Recording) -> None:
    with echo_client(engine) as client:
        for salt in (None, "a", "a", "b"):
            ask(client, "none", "/v1/completions", cache_salt=salt)
    first, *others = salts(engine)
    assert first is None and others[0] == others[1] != others[2] and None not in others


@pytest.mark.parametrize("path", PATHS)
def test_the_engine_is_told_the_name_of_the_key_and_its_weight(tmp_path: Path, engine: Recording, path: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"team=infer:{ONE} weight=3\nother=infer:{OTHER}\n")
    file.chmod(0o600)
    with echo_client(engine, api_key_file=str(file)) as client:
        for key in (ONE, OTHER):
            ask(client, key, path)
    assert [(request.share, request.weight) for request in engine.requests] == [("team", 3.0), ("other", 1.0)]


def test_without_keys_all_is_one_share(engine: Recording) -> None:
    with echo_client(engine) as client:
        ask(client, "none", "/v1/completions")
    assert [(request.share, request.weight) for request in engine.requests] == [(None, 1.0)]


@pytest.mark.parametrize("salt", ["", "s" * 257, 3])
def test_a_salt_is_a_text_of_at_most_256_characters(client: ReadyClient, salt: Any) -> None:
    reply = ask(client, ONE, "/v1/completions", cache_salt=salt)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "cache_salt"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_only_an_admin_goes_before_others(client: ReadyClient, engine: Recording, path: str) -> None:
    refusal = ask(client, ONE, path, priority=-1)
    assert refusal.status_code == 403
    error = refusal.json()["error"]
    assert (error["param"], error["code"]) == ("priority", "insufficient_permissions") and not engine.requests
    assert ask(client, ONE, path, priority=0).status_code == 200
    assert ask(client, ONE, path, priority=7).status_code == 200


def test_an_admin_may_go_before_others_and_so_may_anybody_where_no_key_is_needed(engine: Recording) -> None:
    with echo_client(engine, api_key=KEYS) as client:
        assert ask(client, FULL, "/v1/completions", priority=-1).status_code == 200
    with echo_client(engine) as client:
        assert ask(client, "none", "/v1/completions", priority=-2).status_code == 200
    assert [request.priority for request in engine.requests] == [-1, -2]
