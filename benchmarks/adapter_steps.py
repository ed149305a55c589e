"""What adapters cost a step, without a server: `python -m benchmarks.adapter_steps ours|peft MODEL DTYPE THREADS
FOLDER`.

A decode step of BATCH sequences with CONTEXT tokens each, and a prefill of PROMPTS prompts, where the sequences use
0, 1, 8 and 32 adapters in turn. FOLDER holds the adapters 0 to 31. `base` is another copy of the model, without any.
Prints one JSON object: {"decode": {adapters: {"ms": milliseconds, "share": of the base's}}, "prefill": {...}}.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

BATCH = 32
CONTEXT = 160
PROMPTS, PROMPT_TOKENS = 2, 128
ADAPTERS = (0, 1, 8, 32)
ROUNDS = 15

Times = dict[str, dict[str, float]]


def in_turns(steps: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> Times:
    """Time the steps one after another, and all of them again: each round's are divided by its own step of the base, so
    that a machine which is faster at one time than at another favours none. Medians over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - began)
    return {
        name: {
            "ms": 1000 * statistics.median(own),
            "share": statistics.median(one / base for one, base in zip(own, times["base"], strict=True)),
        }
        for name, own in times.items()
    }


def ours(model: str, dtype: str, threads: int, folder: Path) -> dict[str, Times]:
    from engines.adapters.folder import read_adapter
    from engines.pt.config import PtConfig
    from engines.pt.lora.weights import read_weights
    from engines.pt.runner import ModelRunner, Segment

    settings: dict[str, Any] = {"model": model, "dtype": dtype, "threads": threads}
    base, adapted = (ModelRunner(PtConfig(**settings, max_loras=max(ADAPTERS))) for _ in range(2))
    for slot in range(max(ADAPTERS)):
        spec = read_adapter(folder / str(slot), adapted.lora.support)
        adapted.lora.write(slot, adapted.lora.laid_out(read_weights(spec, adapted.dtype)))
    blocks = -(-(CONTEXT + 1) // base.cache.block_size)

    def segment(i: int, tokens: list[int], start: int, adapters: int) -> Segment:
        own_blocks = list(range(i * blocks, (i + 1) * blocks))
        return Segment(tokens, start, own_blocks, wants=1, slot=i % adapters if adapters else -1)

    def decode(runner: ModelRunner, adapters: int) -> None:
        runner.step([segment(i, [100 + i], CONTEXT, adapters) for i in range(BATCH)])

    def prefill(runner: ModelRunner, adapters: int) -> None:
        runner.step([segment(i, [7 + i] * PROMPT_TOKENS, 0, adapters) for i in range(PROMPTS)])

    return {
        step.__name__: in_turns(
            {"base": partial(step, base, 0), **{str(count): partial(step, adapted, count) for count in ADAPTERS}}
        )
        for step in (decode, prefill)
    }


def peft(model: str, dtype: str, threads: int, folder: Path) -> dict[str, Times]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)
    base, adapted = (AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval() for _ in range(2))
    adapted = PeftModel.from_pretrained(adapted, folder / "0", adapter_name="0").eval()
    for number in range(1, max(ADAPTERS)):
        adapted.load_adapter(folder / str(number), adapter_name=str(number))
    prompt = torch.randint(0, 1000, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(0))
    token = torch.full((BATCH, 1), 100)
    prompts = prompt[:PROMPTS, :PROMPT_TOKENS]

    def names(adapters: int, rows: int) -> dict[str, list[str]]:
        return {"adapter_names": [str(i % adapters) if adapters else "__base__" for i in range(rows)]}

    with torch.inference_mode():
        cache = base(prompt, past_key_values=DynamicCache(), use_cache=True).past_key_values

        def decode(network: torch.nn.Module, chosen: dict[str, list[str]]) -> None:
            network(token, past_key_values=cache, use_cache=True, **chosen)
            cache.crop(CONTEXT)

        def prefill(network: torch.nn.Module, chosen: dict[str, list[str]]) -> None:
            network(prompts, logits_to_keep=1, **chosen)

        return {
            step.__name__: in_turns(
                {
                    "base": partial(step, base, {}),
                    **{str(count): partial(step, adapted, names(count, rows)) for count in ADAPTERS},
                },
                5,
            )
            for step, rows in ((decode, BATCH), (prefill, PROMPTS))
        }


if __name__ == "__main__":
    which, model_folder, type_name, count_of_threads, adapters_folder = sys.argv[1:]
    measure = {"ours": ours, "peft": peft}[which]
    sys.stdout.write(json.dumps(measure(model_folder, type_name, int(count_of_threads), Path(adapters_folder))) + "\n")
