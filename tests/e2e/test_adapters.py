"""Adapters as a user has them: `tuneserve deploy` on the pt engine, PEFT's folders, OpenAI's SDK, and what is
killed."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engines.pt.tiny import CONFIGS, save
from tests.processes import engine_of
from tests.server.api import Api, api_of
from tests.server.process import ServerProcess
from tests.server.states import new_state
from tests.until import PATIENCE, until

PROMPT = "the red and the blue"
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `tiny`, and in `adapters` two adapters of it, a and b."""
    folder = tmp_path_factory.mktemp("adapters")
    save(CONFIGS["llama"](), folder / "tiny", tokenizer=True)
    for seed, (name, rank) in enumerate((("a", 4), ("b", 8))):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(folder / "tiny")
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear"))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / "adapters" / name)
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], ServerProcess]]:
    """Starts servers that share one state, one after the other; each is ready."""
    servers: list[ServerProcess] = []
    state = new_state()

    def start() -> ServerProcess:
        flags = ["--adapter_roots", str(folder / "adapters"), "--state_dir", state]
        engine = ["--threads", "1", "--device_map", "cpu", "--torch_dtype", "float32"]
        servers.append(ServerProcess.deploy("--model", str(folder / "tiny"), *flags, *engine))
        servers[-1].wait_until_listening()
        until(servers[-1].is_ready)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def load_both(api: Api) -> None:
    for name in "ab":
        api.adapters.load(name, name).raise_for_status()


async def answers(server: ServerProcess, *models: str) -> list[list[int]]:
    """The greedy continuations of the prompt by each model, asked for at once."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE) as client:
        extra = {"return_token_ids": True, "ignore_eos": True}
        replies = await asyncio.gather(
            *(
                client.completions.create(
                    model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, extra_body=extra
                )
                for model in models
            )
        )
    return [reply.choices[0].model_extra["token_ids"] for reply in replies]


def reference(folder: Path, adapter: str | None) -> list[int]:
    """The same by transformers, the adapter merged into the model by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, folder / "adapters" / adapter).merge_and_unload()
    ids = AutoTokenizer.from_pretrained(folder / "tiny")(PROMPT).input_ids
    output = list(ids)
    with torch.inference_mode():
        for _ in range(TOKENS):
            output.append(int(model.eval()(torch.tensor([output])).logits[0, -1].argmax()))
    return output[len(ids) :]


async def test_the_base_model_and_adapters_answer_at_once_as_merged_models_do(
    start: Callable[[], ServerProcess], folder: Path
) -> None:
    server = start()
    with api_of(server) as api:
        load_both(api)
    expected = [reference(folder, name) for name in (None, "a", "b")]
    assert await answers(server, *["tiny", "a", "tiny:b"] * 4) == expected * 4
    assert len({tuple(tokens) for tokens in expected}) == 3


async def test_a_killed_engine_comes_back_with_its_adapters(start: Callable[[], ServerProcess]) -> None:
    server = start()
    with api_of(server) as api:
        load_both(api)
    before = await answers(server, "a", "b")
    engine_of(server.pid).kill()
    until(lambda: not server.is_ready())
    until(server.is_ready)
    assert await answers(server, "a", "b") == before


async def test_a_killed_servers_successor_has_its_adapters_and_aliases(start: Callable[[], ServerProcess]) -> None:
    server = start()
    with api_of(server) as api:
        load_both(api)
        api.adapters.alias("stable", "b").raise_for_status()
        api.adapters.unload("a").raise_for_status()
    before = await answers(server, "stable")
    server.signal(signal.SIGKILL)
    server.wait()
    successor = start()
    assert await answers(successor, "b", "stable") == before * 2
    with api_of(successor) as api:
        assert list(api.models()) == ["tiny", "b", "stable"]
