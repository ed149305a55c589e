"""Whole pages, as Gradio's own client sees them, before a server on EchoEngine."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from server.pages.api import Api
from tests import gradio_pages
from tests.certificates import write_certificate
from tests.server.keys import FULL
from tests.server.pages.settings import settings
from tests.server.process import ServerProcess
from tests.until import until

if TYPE_CHECKING:
    from gradio_client import Client

ROW = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]}
CHAT = {"model": "echo", "system": "", "temperature": 0, "max_tokens": 400}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One with a key, whose jobs stay in the queue, and which writes slowly."""
    params = {"api_key": [FULL], "max_running_jobs": 0, "verbose": False}
    server = ServerProcess.echo(params=params, faults={"token_delay": 0.01})
    server.wait_until_listening()
    until(server.is_ready)
    yield server
    server.close()


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Shows a page with these settings until the end of the module; returns its address."""
    with gradio_pages.importable(), pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        from server.pages.page import make_page, shown

        def start(server: str, **given: Any) -> str:
            its = settings(server, **{"server_port": 0, "lang": "en", **given})
            return stack.enter_context(shown(its, make_page(its, Api(its)))).rstrip("/")

        yield start


@pytest.fixture(scope="module")
def studio(show: Callable[..., str], server: ServerProcess) -> str:
    """A page that asks for a key."""
    return show(server.url, trains=True, asks=True, studio_title="Our studio")


@pytest.fixture(scope="module")
def client(studio: str) -> "Client":
    from gradio_client import Client

    return Client(studio, verbose=False)


def running(server: ServerProcess) -> bool:
    text = httpx2.get(f"{server.url}/metrics").text
    (count,) = (line for line in text.splitlines() if line.startswith("tuneserve:num_requests_running"))
    return not count.endswith(" 0.0")


# ---- who, and what from where


def test_a_page_has_its_title_and_loads_nothing_from_elsewhere(studio: str) -> None:
    page = httpx2.get(studio)
    policy = page.headers["content-security-policy"]
    assert "Our studio" in page.text and "fonts.googleapis" not in page.text
    assert "default-src 'self'" in policy and "img-src 'self' data: blob:" in policy and "http" not in policy


def test_web_pages_of_others_may_not_use_it(studio: str) -> None:
    foreign = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    answer = httpx2.post(f"{studio}/gradio_api/call/models", headers=foreign, json={"data": [FULL, None]})
    assert answer.status_code == 403 and "another origin" not in answer.text and "evil.example" in answer.text


def test_a_page_without_keys_knows_its_hosts(show: Callable[..., str], echo_url: str) -> None:
    page = show(echo_url)
    assert httpx2.get(page, headers={"host": "rebound.example"}).status_code == 403
    assert httpx2.get(page).status_code == 200


def test_without_a_key_there_are_no_models_and_with_a_wrong_one_there_is_an_error(client: "Client") -> None:
    assert client.predict("", None, api_name="/models")["choices"] == []
    with pytest.raises(Exception, match="key"):
        client.predict("wrong-0123456789abcdef", None, api_name="/models")
    assert client.predict(FULL, None, api_name="/models")["value"] == "echo"


# ---- chat


def test_an_answer_streams(client: "Client") -> None:
    seen = list(client.submit(asked="hello there", key=FULL, **CHAT, api_name="/chat"))
    texts = ["".join(message["content"] for message in answer) for answer in seen]
    assert texts[-1] == "hello there"
    assert len(texts) > 2 and all(texts[-1].startswith(text) for text in texts)


def test_a_conversation_that_is_stopped_stops_the_server(client: "Client", server: ServerProcess) -> None:
    job = client.submit(asked="word " * 300, key=FULL, **CHAT, api_name="/chat")
    until(lambda: running(server))
    assert job.cancel()
    until(lambda: not running(server))


def test_what_the_server_refuses_is_told_in_its_words(client: "Client") -> None:
    with pytest.raises(Exception, match=r"The model 'nope' does not exist.*404"):
        client.predict(asked="hello", key=FULL, **CHAT | {"model": "nope"}, api_name="/chat")
    with pytest.raises(Exception, match="maximum context length"):
        client.predict(asked="hello", key=FULL, **CHAT | {"max_tokens": 10**7}, api_name="/chat")
    with pytest.raises(Exception, match="Choose a model first"):
        client.predict(asked="hello", key=FULL, **CHAT | {"model": None}, api_name="/chat")


# ---- from a file to a job


def test_a_file_becomes_a_job_that_is_followed_and_cancelled(client: "Client", tmp_path: Path) -> None:
    from gradio_client import handle_file

    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    request = json.dumps({"type": "sft", "parameters": {"model": "echo"}})
    request, _ = client.predict(FULL, handle_file(str(tmp_path / "rows.jsonl")), request, api_name="/upload")
    request = client.predict("sft", "lora_rank", "4", request, api_name="/set")
    assert json.loads(request)["parameters"]["lora_rank"] == 4

    job = client.predict(FULL, request, api_name="/start")
    assert job in str(client.predict(FULL, api_name="/jobs"))
    assert f"`{job}`" in client.predict(FULL, job, api_name="/look")[0]
    client.predict(FULL, job, api_name="/cancel")
    until(lambda: client.predict(FULL, job, api_name="/look")[0].startswith("**cancelled**"))
    with pytest.raises(Exception, match="has put no model into service"):
        client.predict(FULL, job, api_name="/talk")


def test_a_dry_run_is_a_job_too(client: "Client", server: ServerProcess) -> None:
    request = {"type": "sft", "parameters": {"model": "echo", "dataset": ["file-nope"]}}
    with pytest.raises(Exception, match="file-nope"):
        client.predict(FULL, json.dumps(request), api_name="/dry_run")
    with pytest.raises(Exception, match="the request is not JSON"):
        client.predict(FULL, "{", api_name="/start")


def test_a_parameter_is_described_with_its_choices(client: "Client") -> None:
    told, value = client.predict("rlhf", "loss_type", api_name="/describe")
    assert told.startswith("**loss_type** · sft · `TEXT`\n\nName of the loss")
    with pytest.raises(Exception, match="'nope' is no parameter of sft"):
        client.predict("sft", "nope", api_name="/describe")
    told, value = client.predict("sft", "use_dora", api_name="/describe")
    assert "default: `false`" in told and value["choices"] == [["true", "true"], ["false", "false"]]


# ---- what a page is made of


def config(page: str) -> str:
    return str(httpx2.get(f"{page}/config").json()["components"])


def test_a_page_for_images_takes_images_and_another_text(show: Callable[..., str], echo_url: str) -> None:
    assert "multimodaltextbox" in config(show(echo_url, is_multimodal=True))
    assert "multimodaltextbox" not in config(show(echo_url))


def test_a_page_sends_no_file_of_its_machine(show: Callable[..., str], echo_url: str, tmp_path: Path) -> None:
    from gradio_client import Client

    (tmp_path / "secret.png").write_bytes(b"x")
    client = Client(show(echo_url, is_multimodal=True), verbose=False)
    stolen = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [{"text": "what?", "files": [stolen]}, "", "echo", "", 0, 5]}
    event = httpx2.post(f"{client.src}gradio_api/call/chat", json=body).json()["event_id"]
    told = httpx2.get(f"{client.src}gradio_api/call/chat/{event}").text
    assert told.startswith("event: error") and "eA==" not in told


def test_a_page_is_served_by_https(show: Callable[..., str], echo_url: str, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    page = show(echo_url, ssl_certfile=str(certificate), ssl_keyfile=str(key))
    assert page.startswith("https://") and httpx2.get(page, verify=False).status_code == 200


def test_a_page_speaks_chinese(show: Callable[..., str], echo_url: str) -> None:
    assert "系统提示词" in config(show(echo_url, lang="zh"))


def test_a_page_begins_with_what_the_command_says(show: Callable[..., str], echo_url: str) -> None:
    page = config(show(echo_url, system="Be brief.", temperature=0.25, max_new_tokens=77))
    assert "Be brief." in page and "0.25" in page and "77" in page


def test_uploads_leave_no_copy_on_the_page(client: "Client", tmp_path: Path) -> None:
    from gradio_client import handle_file

    (tmp_path / "kept.jsonl").write_text(json.dumps(ROW) + "\n")
    request = json.dumps({"type": "sft", "parameters": {}})
    client.predict(FULL, handle_file(str(tmp_path / "kept.jsonl")), request, api_name="/upload")
    assert not list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("kept.jsonl"))
