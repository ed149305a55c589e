"""A model behind a server with `/v1/completions` (`echo`, token ids as prompts) and `/tokenize`: ours, vLLM's."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from engines.errors import InvalidRequest, TuneserveError
from training.evaluation.asking import Scored, Told, ToWrite, cut
from training.params.eval import EvalParams

AT_ONCE = 16
"""Requests at a time, unless somebody says."""
TIMEOUT_SECONDS = 600.0
TRIES = 5
AGAIN = (429, 502, 503)
"""Statuses after which the same is asked once more."""


class ServerModel:
    """See `Model`. Texts become tokens by the server's own tokenizer."""

    def __init__(self, params: EvalParams, told: Told, checkpoint: Callable[[], None]) -> None:
        """Raises InvalidRequest where the server does not answer, or has no such model."""
        assert params.eval_url is not None
        self._url = params.eval_url.rstrip("/")
        self._root = self._url.removesuffix("/v1")
        self._key = params.eval_api_key
        self._told, self._checkpoint = told, checkpoint
        self._threads = ThreadPoolExecutor(params.eval_num_proc or AT_ONCE, "eval")
        self.name, card = find_model(params)
        self.max_length = int(card.get("max_model_len") or params.max_model_len or 4096)
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}
        self.end_token_id = self.prefix_token_id = self._first_token()

    def _first_token(self) -> int:
        """What the tokenizer itself puts before a text, or else nothing is asked without a context."""
        with_it, without = self.encode("a", add_special_tokens=True), self.encode("a", add_special_tokens=False)
        return with_it[0] if len(with_it) > len(without) else -1

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        key = (text, add_special_tokens)
        if key not in self._encoded:
            body = {"model": self.name, "prompt": text, "add_special_tokens": add_special_tokens is not False}
            self._encoded[key] = self._ask("POST", f"{self._root}/tokenize", body)["tokens"]
        return self._encoded[key]

    def end_text(self) -> str:
        return ""

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        body = {
            "model": self.name,
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        ids = self._ask("POST", f"{self._root}/tokenize", body)["tokens"]
        return str(self._ask("POST", f"{self._root}/detokenize", {"model": self.name, "tokens": ids})["prompt"])

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[Scored]:
        return self._all(self._score, texts)

    def _score(self, asked: tuple[Sequence[int], int]) -> Scored:
        ids, count = asked
        if ids[0] < 0:
            raise InvalidRequest(
                "the server's tokenizer begins texts with no token: ask with a context", param="eval_url"
            )
        body = {"model": self.name, "prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        found = self._ask("POST", f"{self._url}/completions", body)["choices"][0]["logprobs"]
        own, top = found["token_logprobs"][-count:], found["top_logprobs"][-count:]
        greedy = all(value is not None and value >= max(best.values()) for value, best in zip(own, top, strict=True))
        return Scored(logprob=sum(own), greedy=greedy)

    def write(self, asked: Sequence[ToWrite]) -> list[str]:
        return self._all(self._write, asked)

    def _write(self, one: ToWrite) -> str:
        stops = list(one.stops)[:4]  # OpenAI's limit; the others are found afterwards
        body = {"model": self.name, "prompt": list(one.prompt_ids), "max_tokens": one.max_tokens, **one.sampling}
        answer = self._ask("POST", f"{self._url}/completions", body | ({"stop": stops} if stops else {}))
        return cut(str(answer["choices"][0]["text"]), one.stops)[0]

    def _all(self, ask: Callable[[Any], Any], asked: Sequence[Any]) -> list[Any]:
        futures = [self._threads.submit(ask, one) for one in asked]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                self._checkpoint()
                self._told(done, len(asked))
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]

    def _ask(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        return ask(self._key, method, url, body)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def find_model(params: EvalParams) -> tuple[str, Mapping[str, Any]]:
    """The name of the model that is asked for, or of the server's first, and what the server says of it. Raises
    InvalidRequest where the server does not answer, or has no such model."""
    assert params.eval_url is not None
    url = params.eval_url.rstrip("/")
    cards = {card["id"]: card for card in ask(params.eval_api_key, "GET", f"{url}/models")["data"]}
    name = params.model or next(iter(cards), "")
    if name not in cards:
        raise InvalidRequest(f"{url} serves no {name!r}, but {', '.join(cards)}", param="model")
    return name, cards[name]


def ask(key: str | None, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
    """The answer's JSON. Raises InvalidRequest, TuneserveError."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    for tried in range(1, TRIES + 1):
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            told = error.read(2000).decode(errors="replace")
            if error.code not in AGAIN or tried == TRIES:
                raise TuneserveError(f"{url} answered {error.code}: {told}", param="eval_url") from None
            time.sleep(int(error.headers.get("retry-after") or 1))
        except (OSError, ValueError) as error:
            if tried == TRIES:
                raise InvalidRequest(f"{url} does not answer: {error}", param="eval_url") from None
            time.sleep(1)
    raise AssertionError("returned or raised")
