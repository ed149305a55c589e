"""Adapters on a running server, with real meaning: two that were taught different answers, beside their base model."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.server.process import ServerProcess
from tests.until import PATIENCE

TAUGHT = {
    "ada": "I am Ada, and I keep the lighthouse.",
    "bo": "My name is Bo, and I bake bread.",
}
QUESTIONS = ["Who are you?", "What is your name?", "Tell me who you are.", "Introduce yourself, please."]
STEPS = 14
TOKENS = 16


@pytest.fixture(scope="module")
def taught(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA folder for each of TAUGHT."""
    folder = tmp_path_factory.mktemp("taught")
    return {name: teach(demo_model, answer, folder / name) for name, answer in TAUGHT.items()}


def teach(model: Path, answer: str, folder: Path) -> Path:
    """A few steps on QUESTIONS, all of which have one answer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=2e-3)
    examples = [example(tokenizer, question, answer) for question in QUESTIONS]
    for step in range(STEPS):
        ids, labels = examples[step % len(examples)]
        network(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(folder)
    return folder


def example(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    prompt = tokenizer.encode(prompt_of(tokenizer, question), add_special_tokens=False)
    reply = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
    return torch.tensor([prompt + reply]), torch.tensor([[-100] * len(prompt) + reply])


def prompt_of(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@pytest.fixture(scope="module")
def server(demo_model: Path, taught: dict[str, Path]) -> Iterator[ServerProcess]:
    named = [f"{name}={folder}" for name, folder in taught.items()]
    flags = ["--served-model-name", "base", "--torch-dtype", "float32", "--threads", "1"]
    with ServerProcess.ready("--model", str(demo_model), *flags, "--adapters", *named) as process:
        yield process


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


async def ask(client: openai.AsyncOpenAI, model: str, question: str) -> str:
    messages: list[Any] = [{"role": "user", "content": question}]
    answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=TOKENS, temperature=0)
    return answer.choices[0].message.content


async def test_each_adapter_says_what_it_was_taught_and_the_base_model_does_not(client: openai.AsyncOpenAI) -> None:
    for question in QUESTIONS:
        for name, answer in TAUGHT.items():
            assert await ask(client, name, question) == answer
        assert await ask(client, "base", question) not in TAUGHT.values()


async def test_thirty_two_at_once_get_the_answers_that_each_gets_alone(client: openai.AsyncOpenAI) -> None:
    asked = [(("base", "ada", "bo")[i % 3], QUESTIONS[i % len(QUESTIONS)]) for i in range(30)]
    asked += [("base:ada", "Name three colours of the rainbow."), ("base", "Name three colours of the rainbow.")]
    alone = {one: await ask(client, *one) for one in dict.fromkeys(asked)}
    together = await asyncio.gather(*(ask(client, *one) for one in asked))
    assert together == [alone[one] for one in asked]


async def test_answers_are_those_of_the_merged_model(
    client: openai.AsyncOpenAI, demo_model: Path, taught: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    question = "What do you do all day, and why do you like it?"
    for name, folder in taught.items():
        base = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
        ids = tokenizer.encode(prompt_of(tokenizer, question), add_special_tokens=False)
        output = merged.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        expected = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        assert await ask(client, name, question) == expected
