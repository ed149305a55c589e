"""Bodies that put one field of one route at its limit, times `n`, times prompts: what a hostile client would send."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from server.http.field_limits import MAX_JSON, MAX_NAME, MAX_OPTIONS, MAX_PROMPTS, MAX_TOKENS
from server.model.tools import MAX_TOOLS
from server.openai.schema import MAX_ALLOWED, MAX_LISTED, MAX_MESSAGES, MAX_STOPS, MAX_STOPS_TOGETHER
from server.openai.tokenization import MAX_COUNTED, MAX_SPELT

BODY = 4 << 20
"""Bytes of the largest body, by default."""
N = 128
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    path: str
    body: bytes = field(repr=False)


def cases(model: str) -> Iterator[Case]:
    """For a server of this model with the default limits. Made one at a time: they are large."""
    yield from _broken()
    yield from _conversations(model)
    yield from _constraints(model)
    yield from _outputs(model)
    yield from _prompts(model)
    yield from _counted(model)
    yield from _jobs(model)


def _stops() -> list[str]:
    """As many as there may be, as long as they may be together; each goes on long like the others."""
    return [f"{'a' * (MAX_STOPS_TOGETHER // MAX_STOPS - 2)}{number:02}" for number in range(MAX_STOPS)]


def _case(name: str, path: str, **body: Any) -> Case:
    return Case(name, path, json.dumps(body, separators=(",", ":")).encode())


def _chat(name: str, model: str, content: str = "a", **body: Any) -> Case:
    return _case(f"chat: {name}", CHAT, **{"model": model, "messages": [_user(content)], "max_tokens": 4, **body})


def _completion(name: str, model: str, prompt: Any = "a", **body: Any) -> Case:
    return _case(f"completions: {name}", COMPLETIONS, **{"model": model, "prompt": prompt, "max_tokens": 2, **body})


def _user(content: Any) -> Json:
    return {"role": "user", "content": content}


def _filled(piece: bytes, size: int = BODY - 4096) -> bytes:
    return piece * (size // len(piece))


def _broken() -> Iterator[Case]:
    """Bodies that are no request."""
    for name, piece in (("lists", b"[],"), ("objects", b"{},"), ("numbers", b"1,"), ("fractions", b"1.5e9,")):
        yield Case(f"any: {name}", CHAT, b'{"a":[' + _filled(piece) + b"1]}")
    members = b",".join(b'"%x":1' % number for number in range(BODY // 12))
    yield Case("any: members", CHAT, b"{" + members + b"}")
    yield Case("any: levels", CHAT, b'{"a":' + _filled(b"[", BODY // 2) + _filled(b"]", BODY // 2) + b"}")
    yield Case("any: escapes", CHAT, b'{"a":"' + _filled(rb"\u00e9") + b'"}')
    yield Case("any: not JSON", CHAT, b'{"a":[' + _filled(b"[],"))


def _conversations(model: str) -> Iterator[Case]:
    many = [_user("a")] * MAX_MESSAGES
    yield _chat("messages", model, messages=many)
    yield _chat("messages, long", model, messages=[_user("ab " * (BODY // MAX_MESSAGES // 3 - 20))] * MAX_MESSAGES)
    yield _chat("content", model, "word " * (BODY // 5 - 200))
    yield _chat("content that may fit", model, "é " * 40_000)
    parts = [{"type": "text", "text": "a"}] * 2040
    yield _chat("parts", model, messages=[_user(parts)] * (BODY // 2040 // 28))
    call = {"id": "c" * 9, "type": "function", "function": {"name": "f", "arguments": '{"a":[1,2]}'}}
    calls = {"role": "assistant", "tool_calls": [call] * MAX_TOOLS}
    yield _chat("tool calls", model, messages=[_user("a"), *[calls] * (BODY // MAX_TOOLS // 100), _user("a")])
    for name, arguments in (("lists", "[" + "[]," * (MAX_JSON // 3 - 10) + "1]"), ("members", _members(MAX_JSON))):
        call = {"id": "c" * 9, "type": "function", "function": {"name": "f", "arguments": '{"a":' + arguments + "}"}}
        yield _chat(f"arguments, {name}", model, messages=[{"role": "assistant", "tool_calls": [call]}, _user("a")])
    yield _chat("chat_template_kwargs", model, chat_template_kwargs={"a": ["b"] * (MAX_OPTIONS // 4 - 4)})
    yield _chat("metadata", model, metadata={f"{i}" * 8: "v" * 512 for i in range(10, 26)})
    returned = [1] * (MAX_JSON // 2 - 8)
    said = {"role": "assistant", "content": "a", "annotations": returned, "parsed": returned}
    yield _chat("annotations", model, messages=[said, _user("a")])
    image = [{"type": "image_url", "image_url": {"url": "a" * (BODY - 4096)}}]
    yield _chat("images", model, messages=[_user(image)])


def _members(size: int) -> str:
    return "{" + ",".join(f'"{number:x}":1' for number in range(size // 12)) + "}"


def _constraints(model: str) -> Iterator[Case]:
    tools = [_tool(number, MAX_JSON // MAX_TOOLS - 200) for number in range(MAX_TOOLS)]
    yield _chat("tools", model, tools=tools, n=N)
    yield _chat("tools, required", model, tools=tools, tool_choice="required", n=N)
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools]
    yield _chat("tools, strict", model, tools=strict, n=N)
    chosen = [{"type": "function", "function": {"name": tool["function"]["name"]}} for tool in tools]
    allowed = {"mode": "required", "tools": chosen * (MAX_JSON // 60 // MAX_TOOLS)}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    yield _chat("tool_choice", model, tools=tools, tool_choice=choice)
    yield _chat("response_format", model, response_format=_format(_schema(250_000)), n=N)
    yield _chat("response_format, patterns", model, response_format=_format(hostile_schema()), n=N)
    yield _chat("response_format, too large", model, response_format=_format(_schema(MAX_JSON - 200)), n=N)
    choices = [f"{number:x}" * 4 for number in range(10_000)]
    for kind, value in (
        ("choice", choices),
        ("regex", "(ab|cd)" * 2300),
        ("grammar, Lark", 'start: "a"' + ' "b"' * 3_000),
        ("grammar, GBNF", hostile_gbnf(44_000)),
        ("grammar, GBNF at its limit", hostile_gbnf(128_000)),
    ):
        structured = {kind.partition(",")[0]: value}
        yield _completion(f"structured_outputs, {kind}", model, structured_outputs=structured)


def _tool(number: int, size: int) -> Json:
    parameters = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(size // 26)}}
    return {"type": "function", "function": {"name": f"tool_{number}", "parameters": parameters}}


def _format(schema: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def _schema(size: int) -> Json:
    """Many objects, each below the limit of its members."""
    group = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(30)}}
    return {"type": "object", "properties": {f"g{i}": group for i in range(size // 850)}}


def hostile_schema(number: int = 0) -> Json:
    """Short, and more than the compiler can do within its limits; each number's is another."""
    return {"type": "object", "patternProperties": {f"^a{i}b{number}": {} for i in range(300)}}


def hostile_grammar(model: str, number: int) -> Case:
    """A request that takes all the time that the check of a grammar may take."""
    return _chat(f"hostile grammar {number}", model, response_format=_format(hostile_schema(number)))


def prompt_to_count(model: str, number: int) -> Case:
    text = f"{number} " + "word " * 5000
    return _case("tokenize: 25,000 characters", "/tokenize", model=model, prompt=text[:25_000])


def hostile_gbnf(size: int) -> str:
    return "root ::= " + " | ".join(['("a" [b-c]? "d"*)'] * (size // 20)) + "\n"


def _outputs(model: str) -> Iterator[Case]:
    stops = _stops()
    yield _chat("stop", model, "a" * 3000, stop=stops, n=N, max_tokens=64)
    yield _chat("logit_bias", model, logit_bias=_biases(), n=N)
    words = [f"{number:04}".ljust(MAX_NAME, "x") for number in range(MAX_LISTED)]
    yield _chat("bad_words", model, bad_words=words, n=N)
    yield _chat("stop_token_ids", model, stop_token_ids=[255] * MAX_LISTED, n=N)
    yield _chat("allowed_token_ids", model, "a" * 9, allowed_token_ids=[97] * MAX_ALLOWED, n=N)
    yield _chat("logprobs", model, "a" * 500, logprobs=True, top_logprobs=20, n=N, max_tokens=64)
    yield _chat("logprobs, streamed", model, "a" * 500, logprobs=True, top_logprobs=20, n=N, max_tokens=64, stream=True)


def _biases() -> dict[str, int]:
    """Of a few tokens that every vocabulary has, each spelt in several ways."""
    return {f"{number % 128:0{3 + number // 128}}": 1 for number in range(MAX_LISTED)}


def _prompts(model: str) -> Iterator[Case]:
    """As many as there may be, and what is for each of them."""
    yield _completion("prompts", model, ["a"] * MAX_PROMPTS)
    yield _completion("prompts, long", model, ["ab " * 600] * MAX_PROMPTS)
    yield _completion("prompts, n", model, ["a"] * MAX_PROMPTS, n=N)
    yield _completion("prompts, n within its limit", model, ["a"] * (MAX_PROMPTS // N), n=N)
    yield _completion("prompts, token ids", model, [[97] * 240] * MAX_PROMPTS)
    yield _completion("prompt, token ids", model, [97] * MAX_TOKENS)
    yield _completion("prompts, no token ids", model, [[97] * 240] * (MAX_PROMPTS - 1) + [["x"]])
    yield _completion("prompts, logit_bias", model, ["a"] * (MAX_PROMPTS // 2), logit_bias=_biases())
    words = {"bad_words": [f"{number:04}".ljust(MAX_NAME, "x") for number in range(MAX_LISTED)]}
    yield _completion("prompts, bad_words", model, ["a"] * MAX_PROMPTS, **words)
    allowed = {"allowed_token_ids": [97] * MAX_ALLOWED}
    yield _completion("prompts, allowed_token_ids", model, ["a"] * MAX_PROMPTS, **allowed)
    stops = {"stop": _stops()}
    yield _completion("prompts, stop", model, ["a"] * MAX_PROMPTS, **stops)
    scored = {"echo": True, "logprobs": 20, "prompt_logprobs": 20}
    yield _completion("prompts, prompt_logprobs", model, [[97] * 240] * MAX_PROMPTS, **scored)
    yield _case("embeddings: input", "/v1/embeddings", model=model, input=["ab " * 600] * MAX_PROMPTS)
    yield _case("embeddings: token ids", "/v1/embeddings", model=model, input=[[97] * 240] * MAX_PROMPTS)


def _counted(model: str) -> Iterator[Case]:
    text = "word " * (MAX_COUNTED // 5)
    yield _case("tokenize: prompt", "/tokenize", model=model, prompt=text, return_token_strs=True)
    yield _case("tokenize: prompt, one word", "/tokenize", model=model, prompt="a" * MAX_COUNTED)
    yield _case("tokenize: prompt, special", "/tokenize", model=model, prompt="<|im_end|>" * (MAX_COUNTED // 10))
    yield _case("tokenize: messages", "/tokenize", model=model, messages=[_user(text[:200])] * MAX_MESSAGES)
    yield _case("detokenize: tokens", "/detokenize", model=model, tokens=[97] * MAX_SPELT)


def _jobs(model: str) -> Iterator[Case]:
    parameters = {"model": model, "adapters": ["a"] * (MAX_OPTIONS // 4 - 100)}
    yield _case("jobs: parameters", "/v1/jobs", type="merge", parameters=parameters)
    unknown = {f"{number:x}": 1 for number in range(MAX_OPTIONS // 12)}
    yield _case("jobs: unknown parameters", "/v1/jobs", type="merge", parameters=unknown)
    job = {"model": model, "training_file": "file-none"}
    for name, given in (("parameters", {"target_modules": ["a"] * 16_000}), ("unknown parameters", unknown)):
        yield _case(f"fine-tuning: {name}", "/v1/fine_tuning/jobs", parameters=given, **job)
