"""Adapters on a running server, with real meaning: two that were taught different answers, beside their base model."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.test_deploy import PATIENCE, TEMPLATE, engine_of, until
from tests.engines.pt.tiny import CONFIGS, save
from tests.server.process import ServerProcess

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


def example(tokenizer, question: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    prompt = tokenizer.encode(prompt_of(tokenizer, question), add_special_tokens=False)
    reply = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
    return torch.tensor([prompt + reply]), torch.tensor([[-100] * len(prompt) + reply])


def prompt_of(tokenizer, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@pytest.fixture(scope="module")
def server(demo_model: Path, taught: dict[str, Path], tmp_path_factory) -> Iterator[ServerProcess]:
    named = [f"{name}={folder}" for name, folder in taught.items()]
    state = str(tmp_path_factory.mktemp("state"))
    flags = ["--served-model-name", "base", "--torch-dtype", "float32", "--threads", "1", "--state-dir", state]
    process = ServerProcess.deploy("--model", str(demo_model), *flags, "--adapters", *named)
    try:
        url = process.wait_until_listening()
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            until(lambda: http.get("/ready").status_code == 200)
        yield process
    finally:
        process.close()


@pytest.fixture
async def client(server: ServerProcess):
    url = f"{server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


async def ask(client: openai.AsyncOpenAI, model: str, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=TOKENS, temperature=0)
    return answer.choices[0].message.content


async def test_each_adapter_says_what_it_was_taught_and_the_base_model_does_not(client) -> None:
    for question in QUESTIONS:
        for name, answer in TAUGHT.items():
            assert await ask(client, name, question) == answer
        assert await ask(client, "base", question) not in TAUGHT.values()


async def test_thirty_two_at_once_get_the_answers_that_each_gets_alone(client) -> None:
    asked = [(("base", "ada", "bo")[i % 3], QUESTIONS[i % len(QUESTIONS)]) for i in range(30)]
    asked += [("base:ada", "Name three colours of the rainbow."), ("base", "Name three colours of the rainbow.")]
    alone = {one: await ask(client, *one) for one in dict.fromkeys(asked)}
    together = await asyncio.gather(*(ask(client, *one) for one in asked))
    assert together == [alone[one] for one in asked]


async def test_answers_are_those_of_the_merged_model(client, demo_model: Path, taught: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    question = "What do you do all day, and why do you like it?"
    for name, folder in taught.items():
        base = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
        ids = tokenizer.encode(prompt_of(tokenizer, question), add_special_tokens=False)
        output = merged.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        expected = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        assert await ask(client, name, question) == expected


# ---- two hundred loads, replacements and unloads, under load

CYCLES = 200
SETTLED = 60
"""Cycles after which the memory has its size."""
GROWTH = 24 * 2**20
"""Bytes that heaps may still wander."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and a folder of adapters for it."""
    model = save(CONFIGS["llama"](), tmp_path_factory.mktemp("model") / "tiny", tokenizer=True)
    adapters = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("resident", "first", "second")):
        network = get_peft_model(
            AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4 + 4 * seed, target_modules="all-linear")
        )
        torch.manual_seed(seed)
        for parameter_name, parameter in network.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        network.save_pretrained(adapters / name)
    return model, adapters


@pytest.fixture
def busy(tiny: tuple[Path, Path], tmp_path: Path) -> Iterator[ServerProcess]:
    model, adapters = tiny
    flags = ["--threads", "1", "--torch-dtype", "float32", "--chat-template", TEMPLATE, "--state-dir", str(tmp_path)]
    flags += ["--adapters", f"resident={adapters / 'resident'}", "--adapter-roots", str(adapters), "--log-interval", "-1"]
    process = ServerProcess.deploy("--model", str(model), *flags, "--max-loras", "2", "--verbose", "false")
    try:
        url = process.wait_until_listening()
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            until(lambda: http.get("/ready").status_code == 200)
        yield process
    finally:
        process.close()


def complete(http: httpx.Client, model: str) -> str:
    body = {"model": model, "prompt": "the red and the blue", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_two_hundred_loads_replacements_and_unloads_under_load_leave_nothing_behind(busy, tiny) -> None:
    stop, wrong = threading.Event(), []

    def traffic(model: str) -> None:
        with httpx.Client(base_url=busy.url, timeout=PATIENCE) as http:
            expected = complete(http, model)
            while not stop.is_set():
                answer = complete(http, model)
                if answer != expected:
                    wrong.append((model, answer, expected))

    threads = [threading.Thread(target=traffic, args=(model,)) for model in ("tiny", "resident")]
    for thread in threads:
        thread.start()
    try:
        with httpx.Client(base_url=busy.url, timeout=PATIENCE) as http:
            known: dict[str, str] = {}
            settled = 0
            for cycle in range(CYCLES):
                for version, fresh in (("first", True), ("second", False)):
                    body = {"lora_name": "changing", "lora_path": version, "load_inplace": not fresh}
                    answer = http.post("/v1/load_lora_adapter", json=body)
                    assert answer.status_code == 200, answer.text
                    assert complete(http, "changing") == known.setdefault(version, complete(http, "changing"))
                answer = http.post("/v1/unload_lora_adapter", json={"lora_name": "changing"})
                assert answer.status_code == 200, answer.text
                if cycle == SETTLED:
                    settled = memory_of(busy)
            assert known["first"] != known["second"]
            assert http.get("/v1/models").json()["data"][-1]["id"] == "resident"
        grown = memory_of(busy) - settled
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert grown < GROWTH


def memory_of(server: ServerProcess) -> int:
    """Bytes of the server and its engine that nobody else uses."""
    processes = [psutil.Process(server.pid), engine_of(server)]
    return sum(process.memory_full_info().uss for process in processes)
