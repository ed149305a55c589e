"""Who may use a page, and which parameters it takes."""

from typing import Any

import pytest

from server.commands.supported_of_pages import refusals, to_deploy
from server.pages.access import Found, WrongAccess, ask, check_access
from tests.server.keys import FULL
from tests.server.process import ServerProcess
from training.params.app import AppParams, StudioParams

ELSEWHERE = {"base_url": "http://localhost:8000/v1"}


@pytest.mark.parametrize("given", [{"server_name": "0.0.0.0"}, {"server_name": "::"}, {"share": True}])
def test_a_page_that_others_reach_must_ask_for_keys(given: dict[str, Any]) -> None:
    with pytest.raises(WrongAccess, match=r"--(share true|server_name)"):
        check_access(AppParams(**ELSEWHERE, **given), asks_for_key=False)
    check_access(AppParams(**ELSEWHERE, **given), asks_for_key=True)
    check_access(AppParams(**ELSEWHERE, **given, allow_anonymous=True), asks_for_key=False)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "::1"])
def test_a_page_for_this_machine_alone_need_not(name: str) -> None:
    check_access(AppParams(server_name=name), asks_for_key=False)


def test_a_name_without_an_address_is_refused() -> None:
    with pytest.raises(WrongAccess, match="no address of this machine"):
        check_access(AppParams(server_name="no.such.name.invalid"), asks_for_key=False)


def test_a_server_says_whether_it_wants_a_key(start_echo: Any) -> None:
    server: ServerProcess = start_echo(params={"api_key": [FULL], "without_state": True})
    assert ask(f"{server.url}/v1", None) == Found(wants_key=True, model=None)
    assert ask(f"{server.url}/v1/", "wrong-0123456789abcdef").wants_key
    assert not ask(f"{server.url}/v1", FULL).wants_key


def test_a_server_without_keys_names_its_model(echo_url: str) -> None:
    assert ask(f"{echo_url}/v1", None) == Found(wants_key=False, model="echo")
    with pytest.raises(WrongAccess, match="no server of OpenAI's API"):
        ask(f"{echo_url}/health?", None)


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(WrongAccess, match="cannot be asked"):
        ask("http://127.0.0.1:9/v1", None)


# ---- parameters


@pytest.mark.parametrize("model", [AppParams, StudioParams])
def test_a_page_needs_a_model_or_a_server(model: type[AppParams]) -> None:
    assert refusals(model()) == ["--model: name the model to serve, or the server to talk with, by --base_url"]
    assert refusals(model(model="m")) == refusals(model(**ELSEWHERE)) == []


def test_the_server_of_a_page_takes_what_deploy_takes() -> None:
    params = AppParams(model="m", port=9000, server_port=1, lang="zh", temperature=0.5)
    assert to_deploy(params).model_fields_set == {"model", "port", "temperature"}
    assert refusals(AppParams(model="m", tp=2)) == ["--tp: the engine pt does not support it; it is for lmdeploy"]


def test_a_server_elsewhere_has_parameters_of_its_own() -> None:
    told = "the server at --base_url says so itself: leave it out"
    given = AppParams(**ELSEWHERE, model="m", port=9000, temperature=0.5, api_key=("k",), verbose=False)
    assert refusals(given) == [f"--model: {told}", f"--port: {told}"]
    assert refusals(AppParams(**ELSEWHERE, port=8000)) == [], "the default, which asks for nothing"


def test_a_page_sends_one_key_to_an_address() -> None:
    told = refusals(AppParams(base_url="localhost:8000", api_key=("a", "b")))
    assert told == ["--base_url: 'localhost:8000' is no http(s) address", "--api_key: the page sends one key: give one"]


def test_images_are_for_a_server_elsewhere() -> None:
    (told,) = refusals(AppParams(model="m", is_multimodal=True))
    assert told.startswith("--is_multimodal: the models that are served here take no images")
    assert (
        refusals(AppParams(**ELSEWHERE, is_multimodal=True))
        == refusals(AppParams(model="m", is_multimodal=False))
        == []
    )
