"""What adapters cost a step, without a server: `python -m benchmarks.adapter_steps ours|peft MODEL DTYPE THREADS
FOLDER`.

A decode step of BATCH sequences with CONTEXT tokens each, and a prefill of PROMPTS prompts, where the sequences use
0, 1, 8 and 32 adapters in turn. Prints one JSON object: {"decode": {adapters: milliseconds}, "prefill": {...}}.
FOLDER holds the adapters 0 to 31. `base` is the model before any adapter was put into it.
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
REPEATS = 15

Times = dict[str, float]


def median_ms(step: Callable[[], object], repeats: int = REPEATS) -> float:
    for _ in range(2):
        step()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def ours(model: str, dtype: str, threads: int, folder: Path) -> dict[str, Times]:
    from engines.adapters.folder import read_adapter
    from engines.pt.config import PtConfig
    from engines.pt.lora import read_weights
    from engines.pt.runner import ModelRunner, Segment

    settings: dict[str, Any] = {"model": model, "dtype": dtype, "threads": threads}
    config = PtConfig(**settings, max_loras=max(ADAPTERS))
    runner = ModelRunner(config)
    blocks = -(-(CONTEXT + 1) // runner.cache.block_size)

    def segment(i: int, tokens: list[int], start: int, adapters: int) -> Segment:
        own_blocks = list(range(i * blocks, (i + 1) * blocks))
        return Segment(tokens, start, own_blocks, wants=1, slot=i % adapters if adapters else -1)

    def decode(adapters: int) -> None:
        runner.step([segment(i, [100 + i], CONTEXT, adapters) for i in range(BATCH)])

    def prefill(adapters: int) -> None:
        runner.step([segment(i, [7 + i] * PROMPT_TOKENS, 0, adapters) for i in range(PROMPTS)])

    result = {"decode": {"base": median_ms(partial(decode, 0))}}
    result["prefill"] = {"base": median_ms(partial(prefill, 0), 5)}
    for slot in range(max(ADAPTERS)):
        spec = read_adapter(folder / str(slot), runner.lora.support)
        runner.lora.write(slot, read_weights(spec, runner.dtype))
    for count in ADAPTERS:
        result["decode"][str(count)] = median_ms(partial(decode, count))
        result["prefill"][str(count)] = median_ms(partial(prefill, count), 5)
    return result


def peft(model: str, dtype: str, threads: int, folder: Path) -> dict[str, Times]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    prompt = torch.randint(0, 1000, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(0))
    token = torch.full((BATCH, 1), 100)
    prompts = prompt[:PROMPTS, :PROMPT_TOKENS]
    with torch.inference_mode():
        cache = base(prompt, past_key_values=DynamicCache(), use_cache=True).past_key_values

        def decode(network: torch.nn.Module, names: list[str] | None) -> None:
            chosen = {} if names is None else {"adapter_names": names}
            network(token, past_key_values=cache, use_cache=True, **chosen)
            cache.crop(CONTEXT)

        def prefill(network: torch.nn.Module, names: list[str] | None) -> None:
            chosen = {} if names is None else {"adapter_names": names[:PROMPTS]}
            network(prompts, logits_to_keep=1, **chosen)

        result = {"decode": {"base": median_ms(partial(decode, base, None))}}
        result["prefill"] = {"base": median_ms(partial(prefill, base, None), 5)}
        adapted = PeftModel.from_pretrained(base, folder / "0", adapter_name="0").eval()
        for number in range(1, max(ADAPTERS)):
            adapted.load_adapter(folder / str(number), adapter_name=str(number))
        for count in ADAPTERS:
            names = [str(i % count) if count else "__base__" for i in range(BATCH)]
            result["decode"][str(count)] = median_ms(partial(decode, adapted, names), 5)
            result["prefill"][str(count)] = median_ms(partial(prefill, adapted, names), 5)
    return result


if __name__ == "__main__":
    which, model_folder, type_name, count_of_threads, adapters_folder = sys.argv[1:]
    measure = {"ours": ours, "peft": peft}[which]
    sys.stdout.write(json.dumps(measure(model_folder, type_name, int(count_of_threads), Path(adapters_folder))) + "\n")
