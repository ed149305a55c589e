"""Adapters over HTTP, on EchoEngine, whose answers begin with the version of the adapter that gave them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import openai
import pytest

from engines.echo import EchoEngine
from tests.adapter_folders import write_adapter
from tests.server.api import EchoApi
from tests.server.client import echo_client
from tests.server.keys import ASK, KEYS, RULE, TEACH, bearer
from tests.server.process import ServerProcess
from tests.server.states import as_state

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the adapters a and b."""
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / "root" / name, seed=seed)
    return tmp_path / "root"


@pytest.fixture
def make_api(root: Path, tmp_path: Path) -> Iterator[Callable[..., EchoApi]]:
    clients = []

    def make(engine: EchoEngine | None = None, **params: Any) -> EchoApi:
        state = as_state(tmp_path / "state")
        given = {"model": "org/echo", "adapter_roots": (str(root),), "state_dir": str(state)} | params
        client = echo_client(engine, **given)
        clients.append(client)
        client.__enter__()
        return EchoApi(client)

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def api(make_api: Callable[..., EchoApi]) -> EchoApi:
    return make_api()


# ---- vLLM's endpoints


def test_an_adapter_is_loaded_and_answers_by_its_name(api: EchoApi, root: Path) -> None:
    reply = api.adapters.load("sql", root / "a")
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert reply.headers["content-type"].startswith("text/plain")
    assert api.answer("sql") == f"{api.adapters.get('sql')['version']}: hello"
    assert api.answer("echo:sql") == api.answer("sql")
    assert api.answer("echo") == "hello"


def test_an_adapter_is_unloaded_and_its_name_is_free_again(api: EchoApi) -> None:
    api.adapters.load("sql", "a")
    reply = api.adapters.unload("sql")
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert api.post("/v1/chat/completions", model="sql", messages=MESSAGES).status_code == 404
    assert api.adapters.load("sql", "b").status_code == 200


def test_a_name_that_is_taken_is_a_400_and_loading_in_place_replaces_the_adapter(api: EchoApi) -> None:
    api.adapters.load("sql", "a")
    before = api.adapters.get("sql")["version"]
    reply = api.adapters.load("sql", "b")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "lora_name")
    assert api.adapters.get("sql")["version"] == before
    assert api.adapters.load("sql", "b", load_inplace=True).status_code == 200
    assert api.adapters.get("sql")["version"] != before


# ---- the resource


def test_all_there_is_to_know_of_an_adapter(api: EchoApi) -> None:
    created = api.adapters.post("org/sql", "a").json()
    assert created == api.adapters.get("org/sql")
    api.adapters.alias("production", "org/sql")
    api.answer("org/sql")
    adapter = api.adapters.get("org/sql")
    assert adapter["version"].startswith("org/sql@")
    assert adapter["created"] <= adapter["last_used"]
    assert adapter["size"] > 0
    assert {key: adapter[key] for key in adapter.keys() - {"version", "created", "last_used", "size"}} == {
        "id": "org/sql",
        "name": "org/sql",
        "object": "adapter",
        "source": "a",
        "parent": "echo",
        "rank": 2,
        "state": "slot",
        "error": None,
        "pinned": False,
        "aliases": ["production"],
        "in_flight": 0,
        "requests": 1,
    }
    assert api.http.get("/v1/adapters").json() == {"object": "list", "data": [adapter]}


def test_an_adapter_is_deleted(api: EchoApi) -> None:
    api.adapters.post("org/sql", "a")
    reply = api.adapters.delete("org/sql")
    assert reply.json() == {"id": "org/sql", "object": "adapter", "deleted": True}
    assert api.adapters.names() == []


def test_a_resource_whose_name_is_taken_is_a_conflict(api: EchoApi) -> None:
    api.adapters.post("sql", "a")
    reply = api.adapters.post("sql", "b")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
    assert api.adapters.post("sql", "b", replace=True).status_code == 200


def test_a_pinned_adapter_says_so(api: EchoApi) -> None:
    assert api.adapters.post("sql", "a", pinned=True).json()["pinned"] is True


def test_an_alias_is_pointed_from_one_adapter_to_another(api: EchoApi) -> None:
    api.adapters.load("a", "a")
    api.adapters.load("b", "b")
    for target in "ab":
        reply = api.adapters.alias("team/production", target)
        assert reply.json() == {"id": "team/production", "object": "adapter.alias", "target": target}
        assert api.answer("team/production") == api.answer(target)


# ---- what is refused


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/adapters"])
def test_paths_outside_the_roots_are_refused_and_missing_ones_not_found(api: EchoApi, path: str, root: Path) -> None:
    name, field = ("lora_name", "lora_path") if "lora" in path else ("name", "path")
    for outside in ("/etc", "../state", f"{root}/../nothing"):
        reply = api.post(path, **{name: "x", field: outside})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == field
        assert str(root.parent) not in reply.text
    reply = api.post(path, **{name: "x", field: "nothing"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (404, field)
    assert api.adapters.names() == []


def test_without_roots_nothing_is_loaded_and_the_parameter_is_named(
    make_api: Callable[..., EchoApi], root: Path
) -> None:
    reply = make_api(adapter_roots=()).adapters.load("a", root / "a")
    assert reply.status_code == 400
    assert "adapter_roots" in reply.json()["error"]["message"]


def test_an_adapter_that_cannot_be_served_is_a_400_that_names_its_field(api: EchoApi, root: Path) -> None:
    write_adapter(root / "dora", use_dora=True)
    (root / "empty").mkdir()
    for path, param in (("dora", "use_dora"), ("empty", "adapter_config.json")):
        error = api.adapters.load("x", path).json()["error"]
        assert (error["param"], error["code"]) == (param, "invalid_adapter")
        assert str(root) not in error["message"]
    assert api.adapters.names() == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "nope"}),
        ("GET", "/v1/adapters/nope", None),
        ("DELETE", "/v1/adapters/nope", None),
        ("POST", "/v1/adapters/stable/alias", {"target": "nope"}),
        ("DELETE", "/v1/models/nope", None),
        ("GET", "/v1/models/nope", None),
        ("GET", "/v1/models/echo:nope", None),
        ("POST", "/v1/chat/completions", {"model": "nope", "messages": MESSAGES}),
        ("POST", "/v1/completions", {"model": "echo:nope", "prompt": "a"}),
        ("POST", "/v1/embeddings", {"model": "nope", "input": "a"}),
        ("POST", "/tokenize", {"model": "nope", "prompt": "a"}),
        ("POST", "/detokenize", {"model": "nope", "tokens": [1]}),
    ],
)
def test_what_is_unknown_is_not_found(api: EchoApi, method: str, path: str, body: dict[str, Any] | None) -> None:
    reply = api.http.request(method, path, json=body)
    assert reply.status_code == 404
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_the_base_models_name_is_never_an_adapters(api: EchoApi) -> None:
    assert api.adapters.load("echo", "a").status_code in (400, 409)
    assert api.adapters.load("echo", "a", load_inplace=True).status_code in (400, 409)
    assert api.http.delete("/v1/models/echo").status_code == 400
    api.adapters.load("a", "a")
    assert api.adapters.alias("echo", "a").status_code in (400, 409)
    assert api.answer("echo") == "hello"


# ---- roles


def test_infer_keys_ask_and_list_models_and_admin_keys_change_adapters(make_api: Callable[..., EchoApi]) -> None:
    api = make_api(api_key=KEYS)
    calls = [
        ("POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "a"}),
        ("POST", "/v1/adapters", {"name": "b", "path": "b"}),
        ("POST", "/v1/adapters/stable/alias", {"target": "a"}),
        ("GET", "/v1/adapters", None),
        ("GET", "/v1/adapters/a", None),
        ("DELETE", "/v1/adapters/b", None),
        ("DELETE", "/v1/adapters/stable", None),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "a"}),
    ]
    for method, path, body in calls:
        for key, status in ((ASK, 403), (TEACH, 403), (RULE, 200)):
            headers = bearer(key)
            assert api.http.request(method, path, json=body, headers=headers).status_code == status, (path, key)
    headers = bearer(ASK)
    assert api.http.get("/v1/models", headers=headers).status_code == 200
    assert api.http.delete("/v1/models/a", headers=headers).status_code == 403


# ---- every route that names a model


def test_every_route_takes_an_adapter_and_lets_it_go(api: EchoApi) -> None:
    api.adapters.load("sql", "a")
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": MESSAGES},
        "/v1/completions": {"prompt": ["a", "b"], "n": 2},
        "/v1/embeddings": {"input": ["a", "b"]},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [1]},
    }
    for path, body in bodies.items():
        assert api.post(path, model="sql", **body).status_code == 200
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert api.post(path, model="sql", **bodies[path], stream=True).text.endswith("data: [DONE]\n\n")
    assert api.http.get("/v1/models/sql").status_code == 200
    assert api.adapters.get("sql")["in_flight"] == 0


def test_a_request_that_fails_lets_its_adapter_go(make_api: Callable[..., EchoApi]) -> None:
    api = make_api(engine := EchoEngine())
    api.adapters.load("sql", "a")
    wrong = {"model": "sql", "messages": MESSAGES}
    assert api.post("/v1/chat/completions", **wrong, max_tokens=10**6).status_code == 400  # refused above the engine
    assert api.post("/v1/chat/completions", **wrong, allowed_token_ids=[1], logit_bias={"1": -100}).status_code == 400
    engine.faults.die_after = 2
    for stream in (False, True):
        api.http.portal.call(engine.start)
        api.post("/v1/chat/completions", **wrong, stream=stream)
    engine.faults.die_after = None
    api.http.portal.call(engine.start)
    assert api.adapters.get("sql")["in_flight"] == 0


# ---- models


def test_the_sdk_lists_finds_uses_and_deletes_adapters(start_echo: Callable[..., ServerProcess], root: Path) -> None:
    server = start_echo(params={"adapter_roots": [str(root)], "adapters": [f"sql={root / 'a'}", str(root / "b")]})
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:  # retries until the server is ready
        cards = {card.id: card for card in client.models.list().data}
        assert cards.keys() == {"echo", "sql", "b"}
        assert cards["sql"].model_extra == {"root": "a", "parent": "echo", "max_model_len": 4096}
        assert client.models.retrieve("echo:sql").id == "sql"
        answer = client.chat.completions.create(model="sql", messages=MESSAGES)
        assert answer.model == "sql"
        assert answer.choices[0].message.content.startswith("sql@")
        client.post("/adapters/stable/alias", body={"target": "b"}, cast_to=object)
        alias = client.models.retrieve("stable")
        assert (alias.id, alias.model_extra["root"]) == ("stable", "b")
        assert "stable" in [card.id for card in client.models.list().data]
        deleted = client.models.delete("sql")
        assert (deleted.id, deleted.object, deleted.deleted) == ("sql", "model", True)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="sql", messages=MESSAGES)


# ---- from start to restart


def test_what_was_loaded_and_aliased_is_there_after_a_restart(make_api: Callable[..., EchoApi], tmp_path: Path) -> None:
    api = make_api()
    api.adapters.load("a", "a")
    api.adapters.load("b", "b")
    api.adapters.alias("stable", "b")
    api.adapters.delete("a")
    before = api.answer("stable")
    api.http.__exit__(None, None, None)
    again = make_api()
    assert (again.adapters.names(), again.answer("stable")) == (["b"], before)


def test_an_adapter_that_cannot_be_served_any_more_says_why_and_is_no_model(make_api: Callable[..., EchoApi]) -> None:
    api = make_api()
    api.adapters.load("sql", "a")
    api.adapters.alias("stable", "sql")
    api.http.__exit__(None, None, None)
    other = make_api(model="org/other")
    adapter = other.adapters.get("sql")
    assert (adapter["state"], adapter["version"]) == ("failed", None)
    assert "'other'" in adapter["error"]
    assert [card["id"] for card in other.http.get("/v1/models").json()["data"]] == ["other"]
    for model in ("sql", "stable"):
        assert other.post("/v1/completions", model=model, prompt="a").status_code == 404
    for name in ("stable", "sql"):
        assert other.http.delete(f"/v1/adapters/{name}").status_code == 200


def test_adapters_of_the_command_line_come_from_it_each_time(make_api: Callable[..., EchoApi], root: Path) -> None:
    api = make_api(adapters=(str(root / "a"), f"sql={root / 'b'}"))
    assert api.adapters.names() == ["a", "sql"]
    before = api.answer("sql")
    api.http.__exit__(None, None, None)
    again = make_api(adapters=(f"sql={root / 'a'}",))
    assert again.adapters.names() == ["sql"]
    assert again.answer("sql") != before


def test_an_adapter_of_the_hub_is_served_from_its_cache_of_links(
    make_api: Callable[..., EchoApi], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    for file in (root / "a").iterdir():
        (cached / file.name).symlink_to(file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(cached))
    api = make_api(adapters=("org/translator",))
    assert api.answer("translator").startswith("translator@")
    assert api.http.get("/v1/models/translator").json()["root"] == "translator"


def test_a_request_finds_an_adapter_in_the_watched_folder(make_api: Callable[..., EchoApi], root: Path) -> None:
    api = make_api(adapter_dir=str(root), adapter_roots=())
    assert api.adapters.names() == []
    assert api.answer("a").startswith("a@")
    assert api.adapters.names() == ["a"]
    assert api.post("/v1/chat/completions", model="../root/a", messages=MESSAGES).status_code == 404


def test_the_engine_keeps_its_adapters_when_it_starts_again(make_api: Callable[..., EchoApi]) -> None:
    api = make_api(engine := EchoEngine())
    api.adapters.load("sql", "a")
    before = api.answer("sql")
    engine.die()
    assert api.post("/v1/chat/completions", model="sql", messages=MESSAGES).status_code == 503
    api.http.portal.call(engine.start)
    assert api.answer("sql") == before


def test_a_server_is_ready_once_its_adapters_are_loaded(start_echo: Callable[..., ServerProcess], root: Path) -> None:
    server = start_echo(params={"adapters": [str(root / "a")]}, faults={"adapter_delay": 60})
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while "adapters" not in (reply := client.get("/ready")).json()["error"]["message"]:
            pass  # the engine starts first
        assert reply.status_code == 503
        assert client.post("/tokenize", json={"prompt": "a"}).status_code == 503
        assert client.get("/health").status_code == 200


def test_an_adapter_of_the_command_line_that_cannot_be_served_ends_the_server_with_the_reason(
    start_echo: Callable[..., ServerProcess], root: Path
) -> None:
    write_adapter(root / "dora", use_dora=True)
    server = start_echo(params={"adapters": [str(root / "a"), f"bad={root / 'dora'}"]})
    assert server.wait() == 1
    log = "".join(server.log)
    assert "--adapters: bad: use_dora" in log
    assert "Traceback" not in log
