"""Every parameter of a page changes something that can be seen of it, with a server elsewhere; every other is refused
by name."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.params.about import PAGE, facts
from server.commands import pages
from server.commands.supported_of_pages import refusals
from server.pages.access import Found
from server.pages.settings import Settings
from tests.params.behaviour.table import UNGIVEN, Two, another_value, apart
from training.params.app import AppParams, StudioParams

ELSEWHERE = {"base_url": "http://localhost:8000/v1"}
OTHERS = {"server_name": "0.0.0.0"}


def seen(name: str) -> Callable[[Any], Any]:
    """A field of what the page's process is told."""
    return lambda shown: getattr(shown, name)


def whole(shown: Any) -> Any:
    """All that it is told, or why it is not shown."""
    return shown


TABLE = apart(
    ELSEWHERE,
    server_name=Two("127.0.0.1", "localhost", seen("host")),
    server_port=Two(7860, 9000, seen("port")),
    share=Two(False, True, seen("share"), {"allow_anonymous": True}),
    lang=Two("en", "zh", seen("lang")),
    base_url=Two("http://localhost:8000/v1", "http://localhost:9000/v1", seen("server")),
    studio_title=Two(UNGIVEN, "Ours", seen("title")),
    is_multimodal=Two(UNGIVEN, True, seen("takes_images")),
    verbose=Two(True, False, seen("logs_requests")),
    api_key=Two(UNGIVEN, ["some-key"], seen("key")),
    allow_anonymous=Two(False, True, whole, OTHERS),
    allowed_hosts=Two([], ["page.example"], seen("allowed_hosts")),
    allowed_origins=Two([], ["https://page.example"], seen("allowed_origins")),
    ssl_certfile=Two(UNGIVEN, "/x.pem", seen("ssl_certfile")),
    ssl_keyfile=Two(UNGIVEN, "/y.pem", seen("ssl_keyfile"), {"ssl_certfile": "/x.pem"}),
    ssl_keyfile_password=Two(UNGIVEN, "open", seen("ssl_keyfile_password"), {"ssl_certfile": "/x.pem"}),
    max_file_size=Two(512, 1, seen("max_file_size")),
    system=Two(UNGIVEN, "Be brief.", seen("system")),
    temperature=Two(UNGIVEN, 0.5, seen("temperature")),
    max_new_tokens=Two(UNGIVEN, 5, seen("max_tokens")),
)


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[AppParams], Settings | str]]:
    """What the command tells the page's process, or why there is none."""
    told: list[Settings] = []
    monkeypatch.setattr(pages, "ask", lambda url, key: Found(wants_key=False, model="m"))
    monkeypatch.setattr(pages, "require_pages", lambda: None)
    monkeypatch.setattr(pages, "become", lambda settings, libraries: told.append(settings))
    monkeypatch.setattr(pages, "_show_beside_server", lambda params, libraries: 0)
    monkeypatch.delenv(pages.KEY, raising=False)

    def run(params: AppParams) -> Settings | str:
        return told.pop() if pages.run(params) == 0 else "refused"

    yield run


@pytest.mark.parametrize("model", [AppParams, StudioParams])
@pytest.mark.parametrize("name", TABLE)
def test_a_parameter_of_a_page_changes_what_is_seen(
    show: Callable[[AppParams], Any], name: str, model: type[AppParams]
) -> None:
    row = TABLE[name]
    one, two = model.model_validate(row.one), model.model_validate(row.two)
    assert refusals(one) == refusals(two) == []
    assert row.seen(show(one)) != row.seen(show(two))


def test_the_table_has_every_parameter_that_a_page_reads() -> None:
    assert {name for name, said in facts(AppParams) if said.read_by(PAGE)} == set(TABLE)


@pytest.mark.parametrize("name", [name for name in AppParams.model_fields if name not in TABLE])
def test_every_other_parameter_is_refused_by_name(name: str) -> None:
    try:
        other = another_value(AppParams, name, None)
    except LookupError:
        return  # its type takes nothing but the default
    (line,) = refusals(AppParams.model_validate(ELSEWHERE | {name: other}))
    assert line == f"--{name}: the server at --base_url says so itself: leave it out"
