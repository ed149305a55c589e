"""Whatever a client sends, the answer says in its API's shape that it is the client's fault, and others go on."""

import json
import socket
from collections.abc import AsyncIterator, Iterator
from hashlib import md5
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.adapter_folders import write_adapter, write_head_adapter
from tests.server.process import ServerProcess
from tests.until import until

HELLO = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
SETTINGS = {
    "max_tokens": 3,
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "logit_bias": {"5": 1},
    "stop": ["x"],
    "seed": 1,
    "stop_token_ids": [7],
    "bad_words": ["y"],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
}
ANTHROPIC: dict[str, Any] = {
    "model": "echo",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    "system": "be brief",
    "tools": [{"name": "f", "description": "a", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "low"},
    "context_management": {"edits": []},
}
ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}", "status": "completed"},
    {"type": "function_call_output", "call_id": "call_1", "output": "7"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"role": "user", "content": "hello"},
]
CHECK = {"type": "string_check", "name": "c", "input": "a", "reference": "{{item.a}}", "operation": "ilike"}
JUDGE = {"type": "score_model", "model": "echo", "input": HELLO, "range": [0, 1], "sampling_params": {"seed": 1}}
GRADER = {"type": "multi", "name": "m", "graders": {"c": CHECK, "j": JUDGE}, "calculate_output": "c + j"}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "echo", "messages": HELLO, "logprobs": True, "top_logprobs": 2, **SETTINGS},
    "/v1/completions": {"model": "echo", "prompt": ["hello"], "logprobs": 2, **SETTINGS},
    "/v1/chat/completions/export": {"purpose": "evals", "model": "echo", "metadata": {"a": "b"}, "limit": 3},
    "/v1/chat/completions/{completion_id}": {"metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}": {"metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}/items": {"items": [{"role": "user", "content": "a"}]},
    "/v1/embeddings": {"model": "echo", "input": "hello", "encoding_format": "float", "dimensions": 8},
    "/v1/classify": {"model": "judge", "input": ["a", "b"], "use_activation": False},
    "/classify": {"model": "judge", "messages": HELLO},
    "/v1/score": {"model": "judge", "text_1": HELLO, "text_2": ["a", "b"]},
    "/score": {"model": "echo", "queries": ["a", "b"], "documents": ["c", {"text": "d"}], "max_tokens_per_doc": 3},
    "/v1/rerank": {"model": "judge", "query": "a", "documents": ["b"], "top_n": 1, "return_documents": True},
    "/v2/rerank": {"model": "echo", "query": "a", "documents": ["b"], "max_tokens_per_doc": 4096},
    "/rerank": {"model": "echo", "query": "a", "documents": ["b", {"text": "c"}]},
    "/v1/messages": {"max_tokens": 3, "stop_sequences": ["x"], "temperature": 0.5, "top_k": 5, **ANTHROPIC},
    "/v1/messages/count_tokens": ANTHROPIC,
    "/v1/responses": {
        "model": "echo",
        "input": ITEMS,
        "max_output_tokens": 3,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
        "truncation": "auto",
        "metadata": {"a": "b"},
        "top_logprobs": 2,
        "temperature": 0.5,
        "seed": 1,
        "stop": ["x"],
    },
    "/v1/responses/input_tokens": {"model": "echo", "input": ITEMS, "instructions": "Be kind."},
    "/v1/fine_tuning/alpha/graders/run": {"grader": GRADER, "item": {"a": "b"}, "model_sample": "b"},
    "/v1/fine_tuning/alpha/graders/validate": {"grader": GRADER},
    "/tokenize": {"model": "echo", "prompt": "hello", "return_token_strs": True},
    "/detokenize": {"model": "echo", "tokens": [1, 2, 3]},
    "/v1/load_lora_adapter": {"lora_name": "sql", "lora_path": "a", "load_inplace": True},
    "/v1/adapters": {"name": "sql", "path": "a", "replace": True, "pinned": False},
    "/v1/adapters/{alias}/alias": {"target": "sql"},
    "/v1/unload_lora_adapter": {"lora_name": "free"},
    "/v1/uploads": {
        "filename": "a.jsonl",
        "purpose": "batch",
        "bytes": 2,
        "mime_type": "text/jsonl",
        "expires_after": {"anchor": "created_at", "seconds": 3600},
    },
    "/v1/uploads/{upload_id}/complete": {"part_ids": ["of-the-battery"], "md5": md5(b"{}").hexdigest()},  # as above
    "/v1/batches": {
        "input_file_id": "file-of-the-battery",  # in its place comes the id of a file that is there
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
        "metadata": {"a": "b"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    },
    "/v1/evals": {
        "name": "mine",
        "metadata": {"a": "b"},
        "data_source_config": {"type": "custom", "item_schema": {"type": "object"}},
        "testing_criteria": [GRADER],
    },
    "/v1/fine_tuning/jobs": {
        "model": "echo",
        "training_file": "file-of-the-battery",  # as above
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.5, "n_epochs": "auto", "batch_size": 2}}},
        "suffix": "mine",
        "seed": 1,
        "metadata": {"a": "b"},
        "integrations": [],
        "parameters": {"lora_rank": 4, "target_modules": ["q_proj"], "lr_scheduler_type": "linear"},
    },
    "/v1/jobs": {
        "type": "merge",  # in place of the adapter comes the folder of one
        "parameters": {"model": "echo", "adapters": ["an-adapter"], "max_shard_size": "1GB"},
        "priority": 3,
        "devices": 0,
        "metadata": {"a": "b"},
    },
}
MADE = (200, 201)
JSON = {"content-type": "application/json"}
TOKENIZE = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 1e308, "", "\x00", "￿", "a" * 10_000])
    | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def echo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own, which is left with adapters of all kinds of names."""
    folder = tmp_path_factory.mktemp("battery")
    write_adapter(folder / "root" / "a")
    write_head_adapter(folder / "root" / "judge")
    VALID["/v1/jobs"]["parameters"]["adapters"] = [str(folder / "root" / "a")]
    roots = {name: [str(folder / "root")] for name in ("adapter_roots", "job_roots")}
    params = {**roots, "state_dir": str(folder / "state"), "max_running_jobs": 0, "keep_completions": True}
    server = ServerProcess.echo(params={"verbose": False, "max_body_size": 8, **params})
    try:
        yield server.wait_until_listening()
    finally:
        server.close()


class Client(httpx.Client):
    things: ClassVar = {"alias": "stable"}
    """What stands in paths for names in braces."""

    def post(self, url: Any, **options: Any) -> httpx.Response:
        return super().post(str(url).format(**self.things), **options)


@pytest.fixture(scope="module")
def client(echo_url: str) -> Iterator[Client]:
    with Client(base_url=echo_url, timeout=60) as client:
        until(lambda: client.get("/ready").status_code == 200)
        for path, field, purpose in (
            ("/v1/batches", "input_file_id", "batch"),
            ("/v1/fine_tuning/jobs", "training_file", "fine-tune"),
        ):
            upload = {"data": {"purpose": purpose}, "files": {"file": ("a.jsonl", b"{}")}}
            VALID[path][field] = client.post("/v1/files", **upload).json()["id"]
        Client.things["upload_id"] = client.post("/v1/uploads", json=VALID["/v1/uploads"]).json()["id"]
        part = client.post("/v1/uploads/{upload_id}/parts", files={"data": ("a.jsonl", b"{}")}).json()["id"]
        VALID["/v1/uploads/{upload_id}/complete"]["part_ids"] = [part]
        client.post("/v1/adapters", json={"name": "judge", "path": "judge"})
        kept = {"model": "echo", "messages": HELLO, "store": True, "metadata": {"a": "b"}}
        Client.things["completion_id"] = client.post("/v1/chat/completions", json=kept).json()["id"]
        Client.things["conversation_id"] = client.post("/v1/conversations", json={}).json()["id"]
        yield client
        assert client.get("/ready").status_code == 200


ANTHROPICS = {"invalid_request_error", "not_found_error", "request_too_large"}


def code_of(reply: httpx.Response) -> str:
    error = reply.json()["error"]
    return error["details"]["error_code"] if "details" in error else error["code"]


def assert_clients_fault(reply: httpx.Response) -> None:
    assert 400 <= reply.status_code < 500, reply.text[:300]
    error = reply.json()["error"]
    assert len(error["message"]) < 2000
    if reply.url.path.startswith("/v1/messages"):
        assert set(error) == {"message", "type", "details"} and error["details"]["error_code"]
        assert error["type"] in ANTHROPICS
    else:
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", VALID)
def test_the_battery_begins_with_bodies_that_are_right(client: Client, path: str) -> None:
    for name in ("sql", "free"):
        client.post("/v1/adapters", json={"name": name, "path": "a", "replace": True})
    assert client.post(path, json=VALID[path]).status_code in MADE


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'{"model": NaN}',
        b'{"model": "\xff\xfe"}',
        b'{"model": "\\ud800"}',
        b"{" * 100_000,
        b'{"a":' * 90 + b"1" + b"}" * 90,
        b"[" * 2_000_000,
        b'{"model": "echo", "input": [' + b"[1]," * 100_000 + b'"x"], "prompt": 1, "tokens": ["x"]}',
        b"\x00" * 10_000_000,
        b'{"x": "' + b"y" * 10_000_000 + b'"}',
    ],
    ids=range(13),
)
def test_malformed_bodies(client: Client, path: str, data: bytes) -> None:
    assert_clients_fault(client.post(path, content=data, headers=JSON))


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize("announced", [True, False])
async def test_whoever_sends_far_too_much_still_gets_to_see_why(echo_url: str, path: str, announced: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield b" " * 1_000_000

    async with httpx.AsyncClient(base_url=echo_url, timeout=60) as client:
        url = path.replace("{alias}", "stable")
        reply = await client.post(url, content=b" " * 60_000_000 if announced else pieces(), headers=JSON)
    assert (reply.status_code, code_of(reply)) == (413, "request_too_large")


def test_a_client_that_asks_before_it_sends_is_told_at_once(client: Client, echo_url: str) -> None:
    address = urlsplit(echo_url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(TOKENIZE + b"expect: 100-continue\r\ncontent-length: 60000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def user(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def schema(value: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}}


def nested(levels: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": nested(levels - 1)} if levels else {}}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 10**9},
        {"n": 0},
        {"n": -1},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"temperature": -1},
        {"temperature": 1e308},
        {"top_p": 2},
        {"top_logprobs": 10**6},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"99999999": 1}},
        {"logit_bias": {"1": 1000}},
        {"stop": ["a"] * 100},
        {"seed": 2**70},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [10**12]},
        {"bad_words": [""]},
        {"allowed_token_ids": []},
        {"min_tokens": 10**6},
        {"priority": 2**80},
        {"stream_options": {"include_usage": True}},
        {"messages": []},
        {"messages": [[]]},
        {"messages": [{}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "", "content": "a"}]},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"messages": [1] * 200_000},
        user([{"type": "text"}]),
        user([{"type": "nonsense", "text": "a"}]),
        user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
        user("long " * 10_000),
        user("a" * 5_000_000),
        schema(1),
        schema({"type": "nonsense"}),
        schema({"type": "string", "pattern": "("}),
        schema({"$ref": "#/nowhere"}),
        schema({"$ref": "file:///etc/passwd"}),
        schema(nested(60)),
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "nonsense"}},
        {"response_format": 1},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"regex": "(a{1000}){1000}"}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"grammar": "nonsense ("}},
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"tools": 1},
        {"tools": [1]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"chat_template_kwargs": {"messages": []}},
        {"model": ""},
        {"model": "../../etc/passwd"},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_chat_requests_that_are_not_supported(client: Client, fields: dict[str, Any]) -> None:
    reply = client.post("/v1/chat/completions", json=VALID["/v1/chat/completions"] | fields)
    assert_clients_fault(reply)
    assert "root:" not in reply.text  # no local file was read


@pytest.mark.parametrize("path", VALID)
def test_any_json_in_any_field(client: Client, path: str) -> None:
    @settings(max_examples=100, suppress_health_check=list(HealthCheck))
    @given(field=st.sampled_from([*VALID[path], "unknown"]), value=json_values)
    def check(field: str, value: object) -> None:
        reply = client.post(path, content=json.dumps(VALID[path] | {field: value}), headers=JSON)
        if reply.status_code not in MADE:
            assert_clients_fault(reply)

    check()


@pytest.mark.parametrize("path", VALID)
def test_any_bytes(client: Client, path: str) -> None:
    @settings(max_examples=50, suppress_health_check=list(HealthCheck))
    @given(data=st.binary(max_size=100))
    def check(data: bytes) -> None:
        assert_clients_fault(client.post(path, content=data, headers=JSON))

    check()


@pytest.mark.parametrize(
    "head",
    [
        TOKENIZE + b"content-length: 100\r\n\r\n{",
        TOKENIZE + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
        b"GET /v1/models/%ff%00%2e%2e%2f HTTP/1.1\r\nhost: localhost\r\nx-request-id: \xff\x01\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ],
    ids=range(5),
)
def test_a_client_that_breaks_off_or_speaks_no_http_harms_nobody(client: Client, echo_url: str, head: bytes) -> None:
    address = urlsplit(echo_url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(65536).startswith(b"HTTP/1.1 5")
    assert client.get("/ready").status_code == 200
