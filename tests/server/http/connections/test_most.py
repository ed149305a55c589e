"""How many connections the limit of open files has room for."""

import resource

import pytest

from server.http.connections.room import DEFAULT_MOST, RESERVE, TooManyFiles, most_connections


@pytest.mark.parametrize(
    ("files", "most"), [(1024, 704), (1 << 20, DEFAULT_MOST), (256, 16), (resource.RLIM_INFINITY, DEFAULT_MOST)]
)
def test_connections_leave_files_for_the_rest_of_the_server(
    monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert most_connections(None) == most


def test_more_than_this_process_may_open_is_refused_and_less_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert most_connections(1024 - RESERVE) == 1024 - RESERVE
    with pytest.raises(TooManyFiles, match="--max_connections 5000 needs more open files than this process may have"):
        most_connections(5000)
