"""`--kv_cache_dtype` as a client notices it: what is answered, what is told, what is refused."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.pt.layers.eight_bits import KINDS
from tests.engines.pt.layers.test_eight_bits import RoundedCache
from tests.engines.pt.tiny import CONFIGS, save
from tests.server.process import ServerProcess
from tests.until import PATIENCE

KIND = "int8_per_token_head"
PROMPT = "the red and the blue, the red and the blue, and the green one"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CONFIGS["llama"](), tmp_path_factory.mktemp("model") / "tiny", tokenizer=True)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    flags = ("--torch_dtype", "float32", "--device_map", "cpu", "--threads", "1", "--block_size", "8")
    with ServerProcess.ready("--model", str(folder), *flags, "--kv_cache_dtype", KIND) as process:
        yield process


def test_answers_are_those_of_transformers_with_keys_and_values_rounded_alike(
    server: ServerProcess, folder: Path
) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE) as client:
        first, again = (
            client.completions.create(
                model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, logprobs=1, echo=True,
                extra_body={"return_token_ids": True, "ignore_eos": True},
            ).choices[0]
            for _ in range(2)
        )  # fmt: skip
    told = first.logprobs
    assert told is not None and again.logprobs is not None
    assert told.token_logprobs == again.logprobs.token_logprobs
    ids = first.model_extra["prompt_token_ids"] + first.model_extra["token_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = model(torch.tensor([ids]), past_key_values=RoundedCache(KINDS[KIND])).logits[0].log_softmax(-1)
        exact = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected, unrounded = (each[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0] for each in (rows, exact))
    found = torch.tensor(told.token_logprobs[1:])
    assert (found - expected).abs().max() < 1e-3 < (found - unrounded).abs().max()


def test_metrics_tell_what_the_cache_is_kept_in(server: ServerProcess) -> None:
    page = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
    assert f'cache_dtype="{KIND}"' in page
