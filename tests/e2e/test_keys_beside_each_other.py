"""Two keys on one server with the pt engine: neither learns what the other asks, nor keeps it waiting."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.pt.tiny import CONFIGS, save
from tests.server.keys import bearer
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

ONE, OTHER = "one-0123456789abcdef", "other-0123456789abcdef"
TEXT = "numbers and words " * 20
PARAMETERS = ("--max_num_seqs", "4", "--block_size", "8", "--threads", "1", "--torch_dtype", "float32")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("keys")
    llama = CONFIGS["llama"]()
    llama.max_position_embeddings = 100_000
    model = save(llama, folder / "tiny", tokenizer=True)
    file = Path(folder / "keys")
    file.write_text(f"one=infer:{ONE}\nother=infer:{OTHER} weight=2\n")
    file.chmod(0o600)
    command = ("--model", str(model), "--api_key_file", str(file), "--max_model_len", "60000", *PARAMETERS)
    with ServerProcess.ready(*command) as process:
        yield process.url


def ask(url: str, key: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": 2, "temperature": 0, **fields}
    reply = httpx.post(f"{url}/v1/completions", json=body, headers=bearer(key), timeout=PATIENCE)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def cached(url: str, key: str, **fields: Any) -> int:
    return int(ask(url, key, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_prompt_that_another_key_has_asked_is_computed_anew(url: str) -> None:
    assert cached(url, ONE) == 0
    assert cached(url, OTHER) == 0
    assert cached(url, ONE) > 100
    assert cached(url, ONE, cache_salt="a user") == 0
    assert cached(url, ONE, cache_salt="a user") > 100
    assert cached(url, OTHER, cache_salt="a user") == 0


def test_a_key_is_answered_while_another_has_taken_every_seat_for_long(url: str) -> None:
    greedy = httpx.Client(base_url=url, headers=bearer(ONE), timeout=PATIENCE)
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": 50_000, "ignore_eos": True, "stream": True}

    def stream() -> None:
        try:
            with greedy.stream("POST", "/v1/completions", json=body) as reply:
                for _ in reply.iter_bytes():
                    pass
        except httpx.HTTPError:
            pass  # it is closed at the end

    def waiting() -> float:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith("tuneserve:num_requests_waiting"))

    threads = [threading.Thread(target=stream, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: waiting() == 4)
        assert ask(url, OTHER)["usage"]["completion_tokens"] == 2
        assert all(thread.is_alive() for thread in threads)
    finally:
        greedy.close()
