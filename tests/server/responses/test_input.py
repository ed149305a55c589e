"""What the model gets to read of the items of an input."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.types import GenerationRequest, TokenOutput
from tests.server.api import Api
from tests.server.responses.said import THOUGHT, WEATHER, call, message, output, text_of


class ReadingEngine(EchoEngine):
    """Remembers the prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.prompts.append(echo_tokenizer().decode(request.prompt_ids))
        async for step in super().generate(request):
            yield step


@pytest.fixture
def engine() -> ReadingEngine:
    return ReadingEngine()


@pytest.fixture
def asked(make_api: Callable[..., Api], engine: ReadingEngine) -> Api:
    return make_api(engine=engine)


def chat_of(api: Api, engine: ReadingEngine, messages: list[dict[str, Any]], **body: Any) -> str:
    """The prompt that the same conversation has as a chat."""
    api.chat(messages=messages, **body)
    return engine.prompts[-1]


def prompt_of(api: Api, engine: ReadingEngine, input: Any, **body: Any) -> str:
    api.respond(input, **body)
    return engine.prompts[-1]


def test_a_text_is_what_the_user_says(asked: Api, engine: ReadingEngine) -> None:
    same = chat_of(asked, engine, [message("user", "hello")])
    assert prompt_of(asked, engine, "hello") == same
    assert prompt_of(asked, engine, [message("user", [{"type": "input_text", "text": "hello"}])]) == same
    assert prompt_of(asked, engine, [{"type": "message", **message("user", "hello")}]) == same


def test_instructions_stand_before_the_input(asked: Api, engine: ReadingEngine) -> None:
    same = chat_of(asked, engine, [message("system", "Be brief."), message("user", "hello")])
    assert prompt_of(asked, engine, "hello", instructions="Be brief.") == same
    assert prompt_of(asked, engine, [message("developer", "Be brief."), message("user", "hello")]) == same


def test_answers_can_be_sent_back_as_they_came(make_api: Callable[..., Api], engine: ReadingEngine) -> None:
    api = make_api(engine=engine, reasoning_parser="deepseek_r1")
    first = api.respond(THOUGHT)
    prompt = prompt_of(api, engine, [message("user", THOUGHT), *first["output"], message("user", "Go on.")])
    said = {"role": "assistant", "content": "Hello.", "reasoning_content": "hm, well"}
    assert prompt == chat_of(api, engine, [message("user", THOUGHT), said, message("user", "Go on.")])


def test_a_loop_of_calls_and_outputs_is_one_of_messages(asked: Api, engine: ReadingEngine) -> None:
    items = [
        message("user", "Warm?"),
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]},
        {"id": "msg_1", "status": "completed", "type": "message", **message("assistant", "I look.")},
        call("call_1", id="fc_1", status="completed"),
        call("call_2", id=None, namespace=None),
        output("call_1"),
        output("call_2", [{"type": "input_text", "text": "9 degrees"}], status="completed"),
    ]
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    calls = [{"id": id, "type": "function", "function": function} for id in ("call_1", "call_2")]
    messages = [
        message("user", "Warm?"),
        {"role": "assistant", "content": "I look.", "reasoning_content": "Look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "7 degrees"},
        {"role": "tool", "tool_call_id": "call_2", "content": "9 degrees"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER["parameters"]}}]
    same = chat_of(asked, engine, messages, tools=tools)
    assert prompt_of(asked, engine, items, tools=[WEATHER]) == same


def test_turns_that_follow_one_another_stay_apart(asked: Api, engine: ReadingEngine) -> None:
    items = [message("user", "a"), message("assistant", "b"), message("assistant", "c"), message("user", "d")]
    assert prompt_of(asked, engine, items) == chat_of(asked, engine, items)


def test_reasoning_without_an_answer_is_kept(asked: Api, engine: ReadingEngine) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
    messages = [message("user", "a"), message("assistant", "") | {"reasoning_content": "Hm."}, message("user", "b")]
    same = chat_of(asked, engine, messages)
    assert prompt_of(asked, engine, [message("user", "a"), thought, message("user", "b")]) == same


def test_what_clients_leave_in_items_is_no_obstacle(asked: Api, engine: ReadingEngine) -> None:
    part = {"type": "output_text", "text": "b", "annotations": [], "logprobs": None, "parsed": {"b": 1}}
    items = [
        message("user", "a"),
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": None, "status": None},
        {"type": "message", "id": "msg_1", "status": None, "phase": None, **message("assistant", [part])},
        {"type": "message", "id": None, "made_by": "an agent", **message("user", "c")},
    ]
    plain = [message("user", "a"), message("assistant", "b"), message("user", "c")]
    assert prompt_of(asked, engine, items) == chat_of(asked, engine, plain)


def test_reasoning_that_was_sealed_is_read(make_api: Callable[..., Api], engine: ReadingEngine) -> None:
    api = make_api(engine=engine, reasoning_parser="deepseek_r1")
    reasoning, said = api.respond(THOUGHT, include=["reasoning.encrypted_content"])["output"]
    assert "well" not in reasoning["encrypted_content"]
    bare = {key: reasoning[key] for key in ("type", "id", "encrypted_content")} | {"summary": []}
    whole = prompt_of(api, engine, [message("user", "a"), reasoning, said, message("user", "b")])
    assert prompt_of(api, engine, [message("user", "a"), bare, said, message("user", "b")]) == whole


def test_what_was_sealed_by_another_is_refused(api: Api) -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    refusal = api.refused_response(input=[message("user", "a"), item])
    assert (refusal.status, refusal.param) == (400, "input[1].encrypted_content")


def test_a_seal_outlives_the_server(make_api: Callable[..., Api], tmp_path: Any) -> None:
    params = {"reasoning_parser": "deepseek_r1", "state_dir": str(tmp_path)}
    first = make_api(**params)
    reasoning, _ = first.respond(THOUGHT, include=["reasoning.encrypted_content"])["output"]
    assert (tmp_path / "responses.key").stat().st_mode & 0o777 == 0o600
    first.http.__exit__(None, None, None)
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": reasoning["encrypted_content"]}
    assert text_of(make_api(**params).respond([item, message("user", "b")])) == "b"


# --- truncation


def test_the_oldest_messages_go_where_the_context_is_too_short(asked: Api, engine: ReadingEngine) -> None:
    items = [message("user", f"{number} {'x' * 2000}") for number in range(8)]
    room = asked.models()["echo"]["max_model_len"]
    assert room < 8 * 2000
    refusal = asked.refused_response(input=items)
    assert (refusal.status, refusal.param, refusal.code) == (400, "input", "context_length_exceeded")
    prompt = prompt_of(asked, engine, items, instructions="Be brief.", truncation="auto", max_output_tokens=100)
    assert "Be brief." in prompt and items[-1]["content"] in prompt and items[0]["content"] not in prompt


def test_no_output_is_kept_without_its_call(asked: Api, engine: ReadingEngine) -> None:
    items = [message("user", "x" * 4000), call(), output(output="y" * 2000), message("user", "z" * 1000)]
    prompt = prompt_of(asked, engine, items, tools=[WEATHER], truncation="auto", max_output_tokens=1000)
    assert ("yyy" in prompt) == ("Oslo" in prompt)


def test_what_is_too_long_by_itself_is_refused(api: Api) -> None:
    refusal = api.refused_response(input="x" * 20_000, truncation="auto")
    assert (refusal.code, refusal.param) == ("context_length_exceeded", "input")


def test_what_an_agent_on_the_command_line_sends_is_taken(api: Api) -> None:
    shell = WEATHER | {"name": "shell", "description": "Runs a command.", "strict": False}
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "You may write files."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List them."}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": None},
        {"type": "function_call", "id": "fc_1", "name": "shell", "arguments": '{"city": "."}', "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a.txt"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks."}]},
    ]
    events = api.response_events(
        items,
        instructions="You are an agent.",
        tools=[shell],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": None, "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="01990e55-0000-7000-8000-000000000000",
        text={"verbosity": "low"},
        service_tier=None,
    )
    assert (events[-1]["type"], text_of(events[-1]["response"])) == ("response.completed", "Thanks.")
