"""Run by a test in a process of its own: vLLM loads each folder that is named, and continues a prompt. Writes into a
file what it said of each, or why it did not, as JSON.

A fork of this process loads each, so that vLLM is imported once, and none finds what another has left.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM is imported

import vllm.model_executor.models.llama
import vllm.v1.worker.cpu_worker  # noqa: F401  # both here, that no fork has to
from vllm import SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from engines.checkpoint.loading import load_config
from engines.checkpoint.structure import describe
from engines.vllm.arguments import engine_settings
from engines.vllm.config import VllmConfig
from tests.engines.vllm.tiny import TINY


def said(folder: str, prompt: list[int]) -> Any:
    """The log-probabilities of the likeliest next tokens, from the likeliest on; or the error, as text."""
    try:
        settings = engine_settings(VllmConfig(**TINY | {"dtype": None}, model=folder), describe(load_config(folder)))
        engine = LLMEngine.from_vllm_config(settings)
        sampling = SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True)
        engine.add_request("r", {"prompt_token_ids": prompt}, sampling)
        while engine.has_unfinished_requests():
            outputs = engine.step()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the test asks for
        return f"{type(error).__name__}: {error}"
    first = outputs[0].outputs[0].logprobs[0]
    return sorted(((token, each.logprob) for token, each in first.items()), key=lambda each: -each[1])


def in_a_fork(folder: str, prompt: list[int]) -> Any:
    receiver, sender = os.pipe()
    if os.fork() == 0:
        with os.fdopen(sender, "w") as file:
            json.dump(said(folder, prompt), file)
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as file:
        told = file.read()
    os.wait()
    return json.loads(told) if told else "its process died"


if __name__ == "__main__":
    file, prompt, *folders = sys.argv[1:]
    Path(file).write_text(json.dumps({folder: in_a_fork(folder, json.loads(prompt)) for folder in folders}))
