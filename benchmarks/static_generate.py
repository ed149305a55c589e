"""transformers' `generate` on static batches, without a server: `python -m benchmarks.static_generate MODEL DTYPE
THREADS`."""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.driver import Answer, serve_loads
from benchmarks.workload import Load, render


class StaticBatches:
    def __init__(self, model: str, dtype: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)

    def run(self, load: Load) -> list[Answer]:
        """Batches of `load.concurrency` prompts, one after another."""
        size = load.concurrency
        batches = [load.messages[start : start + size] for start in range(0, len(load.messages), size)]
        return [answer for batch in batches for answer in self._generate(batch, load)]

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is untyped here
    def _generate(self, batch: list[list[dict[str, str]]], load: Load) -> list[Answer]:
        started = time.perf_counter()
        prompts = [render(self._tokenizer, messages) for messages in batch]
        inputs = self._tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        greedy = load.sampling["temperature"] == 0
        sampling = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, **load.sampling}
        length = load.output_tokens
        output = self._model.generate(**inputs, min_new_tokens=length, max_new_tokens=length, **sampling)
        made = output.shape[1] - inputs["input_ids"].shape[1]
        ended = time.perf_counter()
        return [
            Answer(started=started, ended=ended, prompt_tokens=len(prompt), output_tokens=made) for prompt in prompts
        ]


def main(model: str, dtype: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    batches = StaticBatches(model, dtype)
    serve_loads(batches.run, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
