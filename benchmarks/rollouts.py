"""Tokens/s of the answers that a model in training gives: our engine's, beside those of transformers' `generate`, with
the same model (a LoRA adapter on it), prompts, number of answers and longest answer, one after the other in a process.

    python -m benchmarks.rollouts [--model FOLDER] [--threads 2] [--rounds 1]

Answers are sampled at temperature 1 from all tokens, and end where they end: `generate` goes on until the last of its
batch has. Prints a table, and keeps it in benchmarks/results/.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.report import RESULTS, check_quiet, hardware, machine, save, say
from engines.setup.demo import demo_model
from training.rollouts.engine import EngineRollouts
from training.rollouts.types import Drawing

PROMPTS = [
    "What is the capital of France?",
    "Name a colour.",
    "What is 12 times 3?",
    "Say hello in Spanish.",
    "Write a haiku about rain.",
    "Who wrote Hamlet?",
    "Is water wet? Answer yes or no.",
    "Give me a synonym of big.",
    "How many legs has a spider?",
    "Explain gravity in one sentence.",
    "What comes after Tuesday?",
    "Name three fruits.",
    "Translate 'good night' to French.",
    "What is the opposite of hot?",
    "Tell me a joke.",
    "Spell the word cat.",
]
ANSWERS, LONGEST = 8, 128
LEAST = 3.0
"""Our tokens/s over those of `generate`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    check_quiet()
    torch.set_num_threads(given.threads)
    source = str(given.model or demo_model())
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = adapted(source)
    asked = [[{"role": "user", "content": text}] for text in PROMPTS]
    prompts = [tokenizer.apply_chat_template(each, add_generation_prompt=True)["input_ids"] for each in asked]
    stops = [tokenizer.eos_token_id]
    engine = EngineRollouts(model, source=source, dtype=model.dtype, stop_token_ids=stops, max_model_len=512)
    ways: dict[str, Callable[[int], list[int]]] = {
        "tuneserve": lambda seed: [
            len(one.token_ids)
            for group in engine.draw(prompts, ANSWERS, Drawing(max_new_tokens=LONGEST), seed=seed)
            for one in group
        ],
        "generate": lambda seed: generated(model, prompts, tokenizer.eos_token_id, seed),
    }
    engine.draw(prompts[:2], 2, Drawing(max_new_tokens=8), seed=0)  # what is compiled or cached once
    rows = [measure(name, draw, number) for number in range(given.rounds) for name, draw in ways.items()]
    began = time.perf_counter()
    engine.take_over()
    write(rows, time.perf_counter() - began, source, given)


def adapted(source: str) -> Any:
    """The model in its own type with an adapter that changes it, as in the middle of a training."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.002)
    return model.eval()


def generated(model: Any, prompts: list[list[int]], end: int, seed: int) -> list[int]:
    """Lengths of the answers, all in one batch, padded on the left as `generate` asks for."""
    longest = max(map(len, prompts))
    rows = [prompt for prompt in prompts for _ in range(ANSWERS)]
    ids = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in rows])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in rows])
    torch.manual_seed(seed)
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST, do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
    answers = made[:, longest:].tolist()
    return [answer.index(end) + 1 if end in answer else len(answer) for answer in answers]


def measure(name: str, draw: Callable[[int], list[int]], seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    lengths = draw(seed)
    seconds = time.perf_counter() - began
    tokens = sum(lengths)
    row = {"by": name, "answers": len(lengths), "tokens": tokens, "longest": max(lengths), "seconds": seconds}
    row["tokens_per_second"] = tokens / seconds
    say(f"{name}: {row['tokens']} tokens in {seconds:.1f} s: {row['tokens_per_second']:.0f} tokens/s")
    return row


def write(rows: list[dict[str, Any]], take_over: float, source: str, given: argparse.Namespace) -> None:
    speeds = {
        name: sorted(row["tokens_per_second"] for row in rows if row["by"] == name)[given.rounds // 2]
        for name in ("tuneserve", "generate")
    }
    ratio = speeds["tuneserve"] / speeds["generate"]
    facts = machine()
    document = {
        "date": time.strftime("%Y-%m-%d"), "command": "python -m benchmarks.rollouts", "machine": facts,
        "threads": given.threads, "prompts": len(PROMPTS), "answers": ANSWERS, "longest": LONGEST, "rows": rows,
        "take_over_seconds": take_over, "ratio": ratio, "least": LEAST,
    }  # fmt: skip
    stem = RESULTS / f"{document['date']}-rollouts"
    reached = "reached" if ratio >= LEAST else "MISSED"
    verdict = f"tuneserve / generate: {ratio:.2f} (at least {LEAST:g}: {reached})"
    table = [
        f"| {row['by']} | {row['answers']} | {row['tokens']} | {row['seconds']:.1f} | {row['tokens_per_second']:.0f} |"
        for row in rows
    ]
    lines = [
        f"# Rollouts, {document['date']}",
        "",
        f"{hardware(facts)}; {given.threads} threads. {Path(source).name} in bfloat16 with a LoRA adapter;",
        f"{len(PROMPTS)} prompts, {ANSWERS} answers each, of at most {LONGEST} tokens, sampled at temperature 1.",
        "",
        "| by | answers | tokens | seconds | tokens/s |",
        "|---|---|---|---|---|",
        *table,
        "",
        f"{verdict}. Taking over the adapter after a step: {1000 * take_over:.0f} ms.",
    ]
    save(stem, document, "\n".join(lines) + "\n")
    say(lines[-1])


if __name__ == "__main__":
    main()
