"""Clients of responses: OpenAI's own SDK, its agents, and LangChain, against a server in its own process."""

import json
from typing import Any

import openai
import pytest
from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.server.openai_schema import check
from tests.server.responses.said import CALL, types_of

SAID_BY_TOOL = "7 degrees in Oslo"
READ_BY_MODEL = f"<tool_response>\n{SAID_BY_TOOL}\n</tool_response>"
"""As the template shows it, and the model of EchoEngine says it back."""
PERSON = '{"name": "Ann", "age": 7}'
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


class Person(BaseModel):
    name: str
    age: int


class Weather(BaseModel):
    """The weather in a city."""

    city: str


# --- OpenAI's SDK


def test_a_response_is_made(openai_client: openai.OpenAI) -> None:
    response = openai_client.responses.create(model="echo", input="Hello, 🙂!", instructions="Be kind.")
    check("Response", response.model_dump(mode="json", exclude_unset=True))
    assert response.output_text == "Hello, 🙂!" and response.status == "completed"
    assert response.usage is not None and response.usage.total_tokens > 0
    assert response._request_id


async def test_a_response_is_streamed(async_openai_client: openai.AsyncOpenAI) -> None:
    stream = await async_openai_client.responses.create(model="echo", input="hello", stream=True)
    events = [event async for event in stream]
    for event in events:
        check("ResponseStreamEvent", event.model_dump(mode="json", exclude_unset=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello"
    assert events[-1].type == "response.completed" and events[-1].response.output_text == "hello"


def test_the_parse_helper_gives_an_object(openai_client: openai.OpenAI) -> None:
    response = openai_client.responses.parse(model="echo", input=PERSON, text_format=Person)
    assert response.output_parsed == Person(name="Ann", age=7)


def test_the_parse_helper_gives_the_arguments_of_calls(openai_client: openai.OpenAI) -> None:
    call = CALL.replace("weather", "Weather")
    tools: Any = [openai.pydantic_function_tool(Weather)["function"] | {"type": "function"}]
    response = openai_client.responses.parse(model="echo", input=call, tools=tools)
    (item,) = response.output
    assert item.type == "function_call" and item.arguments == '{"city": "Oslo"}'


def test_the_stream_helper_puts_the_response_together(openai_client: openai.OpenAI) -> None:
    with openai_client.responses.stream(model="echo", input=PERSON, text_format=Person) as stream:
        events: Any = list(stream)
        final = stream.get_final_response()
    assert final.output_parsed == Person(name="Ann", age=7)
    snapshots = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    assert snapshots[-1] == PERSON and len(snapshots) > 1
    assert [event.parsed for event in events if event.type == "response.output_text.done"] == [final.output_parsed]


def test_the_stream_helper_gathers_calls(openai_client: openai.OpenAI) -> None:
    with openai_client.responses.stream(model="echo", input=CALL, tools=[WEATHER]) as stream:
        events: Any = list(stream)
        final = stream.get_final_response()
    snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert snapshots[-1] == '{"city": "Oslo"}'
    assert [item.type for item in final.output] == ["function_call"]


def test_a_conversation_with_tools_goes_on(openai_client: openai.OpenAI) -> None:
    input: list[Any] = [{"role": "user", "content": CALL}]
    response = openai_client.responses.create(model="echo", input=input, tools=[WEATHER])
    (call,) = response.output
    assert call.type == "function_call"
    input += [call, {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps({"sky": "blue"})}]
    input += [{"role": "user", "content": "thanks"}]
    assert openai_client.responses.create(model="echo", input=input, tools=[WEATHER]).output_text == "thanks"


def test_tokens_are_counted(openai_client: openai.OpenAI) -> None:
    counted = openai_client.responses.input_tokens.count(model="echo", input="hello")
    response = openai_client.responses.create(model="echo", input="hello")
    assert response.usage is not None and counted.input_tokens == response.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_sdks_errors(openai_client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.responses.create(model="echo", input="hello", max_output_tokens=10**6, stream=stream)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


def test_a_response_is_gone_on_from_looked_at_and_deleted(openai_client: openai.OpenAI) -> None:
    responses = openai_client.responses
    first = responses.create(model="echo", input="hello")
    second = responses.create(model="echo", input="thanks", previous_response_id=first.id)
    assert second.output_text == "thanks" and responses.retrieve(second.id) == second
    assert [item.type for item in responses.input_items.list(second.id)] == ["message"]
    responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(second.id)


async def test_a_response_in_the_background_is_waited_for(async_openai_client: openai.AsyncOpenAI) -> None:
    responses = async_openai_client.responses
    begun = await responses.create(model="echo", input="hello", background=True)
    events = [event async for event in await responses.retrieve(begun.id, stream=True, starting_after=2)]
    assert [event.sequence_number for event in events] == list(range(3, 3 + len(events)))
    assert events[-1].type == "response.completed"
    done = await responses.retrieve(begun.id)
    assert (done.status, done.output_text) == ("completed", "hello")
    assert await responses.cancel(begun.id) == done


# --- OpenAI's agents


class Agents:
    def __init__(self, client: openai.AsyncOpenAI) -> None:
        set_tracing_disabled(True)
        self.asked: list[str] = []

        @function_tool
        def weather(city: str) -> str:
            """The weather in a city."""
            self.asked.append(city)
            return SAID_BY_TOOL

        self.agent = Agent(
            name="echo",
            instructions="Tell the weather.",
            model=OpenAIResponsesModel(model="echo", openai_client=client),
            model_settings=ModelSettings(temperature=0, parallel_tool_calls=True),
            tools=[weather],
        )


async def test_an_agent_calls_a_function_and_reads_what_it_says(async_openai_client: openai.AsyncOpenAI) -> None:
    agents = Agents(async_openai_client)
    result = await Runner.run(agents.agent, CALL, max_turns=3)
    assert agents.asked == ["Oslo"]
    assert result.final_output == READ_BY_MODEL
    again = await Runner.run(agents.agent, [*result.to_input_list(), {"role": "user", "content": "thanks"}])
    assert again.final_output == "thanks"


async def test_an_agent_goes_on_from_a_response_that_is_kept(async_openai_client: openai.AsyncOpenAI) -> None:
    agents = Agents(async_openai_client)
    first = await Runner.run(agents.agent, CALL, max_turns=3, auto_previous_response_id=True)
    assert (agents.asked, first.final_output) == (["Oslo"], READ_BY_MODEL)
    again = await Runner.run(agents.agent, "thanks", previous_response_id=first.last_response_id)
    assert again.final_output == "thanks"


async def test_an_agent_can_be_watched(async_openai_client: openai.AsyncOpenAI) -> None:
    agents = Agents(async_openai_client)
    result = Runner.run_streamed(agents.agent, CALL, max_turns=3)
    raw = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
    assert (agents.asked, result.final_output) == (["Oslo"], READ_BY_MODEL)
    kinds = types_of([{"type": event.type} for event in raw])
    assert {"created", "function_call_arguments.done", "output_text.delta", "completed"} <= set(kinds)


async def test_an_agent_answers_in_a_type(async_openai_client: openai.AsyncOpenAI) -> None:
    model = OpenAIResponsesModel(model="echo", openai_client=async_openai_client)
    agent = Agent(name="echo", model=model, output_type=Person)
    assert (await Runner.run(agent, PERSON)).final_output == Person(name="Ann", age=7)


# --- LangChain


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"7 degrees in {city}"


@pytest.fixture
def chat_model(echo_url: str) -> ChatOpenAI:
    return ChatOpenAI(model="echo", base_url=f"{echo_url}/v1", api_key=SecretStr("none"), use_responses_api=True)


def test_langchain_is_answered(chat_model: ChatOpenAI) -> None:
    said = chat_model.invoke("hello")
    assert isinstance(said, AIMessage) and said.text == "hello"
    assert said.usage_metadata is not None and said.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in chat_model.stream("hello")) == "hello"


def test_langchain_calls_tools_and_goes_on(chat_model: ChatOpenAI) -> None:
    bound = chat_model.bind_tools([weather])
    messages: list[Any] = [("user", CALL)]
    said = bound.invoke(messages)
    assert isinstance(said, AIMessage)
    (call,) = said.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})
    told = weather.invoke(call)
    assert isinstance(told, ToolMessage)
    assert bound.invoke([*messages, said, told]).text == READ_BY_MODEL


def test_langchain_goes_on_from_a_response_that_is_kept(chat_model: ChatOpenAI) -> None:
    first = chat_model.invoke("hello")
    again = chat_model.invoke("thanks", previous_response_id=first.response_metadata["id"])
    assert again.text == "thanks"


def test_langchain_answers_in_a_type(chat_model: ChatOpenAI) -> None:
    assert chat_model.with_structured_output(Person, method="json_schema").invoke(PERSON) == Person(name="Ann", age=7)
