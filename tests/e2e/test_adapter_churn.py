"""Two hundred loads, replacements and unloads of adapters while others answer: no failure, no wrong answer, no leak."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.e2e.test_deploy import TEMPLATE
from tests.engines.pt.tiny import CONFIGS, save
from tests.processes import engine_of
from tests.server.api import Api, api_of
from tests.server.process import ServerProcess

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
def busy(tiny: tuple[Path, Path]) -> Iterator[ServerProcess]:
    model, adapters = tiny
    flags = ["--threads", "1", "--torch-dtype", "float32", "--chat-template", TEMPLATE]
    flags += [
        "--adapters",
        f"resident={adapters / 'resident'}",
        "--adapter-roots",
        str(adapters),
        "--log-interval",
        "-1",
    ]
    with ServerProcess.ready("--model", str(model), *flags, "--max-loras", "2", "--verbose", "false") as process:
        yield process


def complete(api: Api, model: str) -> str:
    answer = api.complete("the red and the blue", model=model, max_tokens=8, temperature=0, ignore_eos=True)
    text: str = answer["choices"][0]["text"]
    return text


def test_two_hundred_loads_replacements_and_unloads_under_load_leave_nothing_behind(
    busy: ServerProcess, tiny: tuple[Path, Path]
) -> None:
    stop, wrong = threading.Event(), []

    def traffic(model: str) -> None:
        with api_of(busy) as api:
            expected = complete(api, model)
            while not stop.is_set():
                answer = complete(api, model)
                if answer != expected:
                    wrong.append((model, answer, expected))

    threads = [threading.Thread(target=traffic, args=(model,)) for model in ("tiny", "resident")]
    for thread in threads:
        thread.start()
    try:
        with api_of(busy) as api:
            known: dict[str, str] = {}
            settled = 0
            for cycle in range(CYCLES):
                for version, fresh in (("first", True), ("second", False)):
                    answer = api.adapters.load("changing", version, load_inplace=not fresh)
                    assert answer.status_code == 200, answer.text
                    assert complete(api, "changing") == known.setdefault(version, complete(api, "changing"))
                answer = api.adapters.unload("changing")
                assert answer.status_code == 200, answer.text
                if cycle == SETTLED:
                    settled = memory_of(busy)
            assert known["first"] != known["second"]
            assert list(api.models())[-1] == "resident"
        grown = memory_of(busy) - settled
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert grown < GROWTH


def memory_of(server: ServerProcess) -> int:
    """Bytes of the server and its engine that nobody else uses."""
    processes = [psutil.Process(server.pid), engine_of(server.pid)]
    return sum(process.memory_full_info().uss for process in processes)
