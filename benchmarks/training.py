"""Training, measured: a job of ours beside a bare TRL script, LLaMA-Factory and ms-swift, on the same samples and
settings, and how long a job takes from its creation to its first step.

`python -m benchmarks.training`, or `--setups lora --peers tuneserve trl` for a part of it. See benchmarks/README.md.
"""

import argparse
import json
import random
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks import report, serving
from benchmarks.environments import HOME, LLAMA_FACTORY_REQUIREMENTS, Environment, LlamaFactory, NotRun
from benchmarks.process import Tree
from benchmarks.servers import SWIFT, TUNESERVE, Setting, ours
from benchmarks.workload import WORDS
from engines.checkpoint.loading import load_tokenizer
from training.folder import JobFolder

SAMPLE_TOKENS = 256
SYSTEM = "You tell long stories."
SHARE_LEAST = 1.0
"""Least share of the fastest peer's tokens/s."""
FIRST_STEP_MOST = 20.0
"""Seconds from creating a job to its first step."""
JOBS = 3
OURS = "tuneserve"
PATIENCE = 300.0
LLAMAFACTORY = LlamaFactory("llamafactory", LLAMA_FACTORY_REQUIREMENTS)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Training:
    """What all trainers are told."""

    model: str
    dtype: str
    steps: int
    batch_size: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    full: bool = False
    """Train all weights, in place of an adapter."""
    rank: int = 8
    alpha: int = 32
    dropout: float = 0.0
    dora: bool = False
    nf4: bool = False
    """The base model in bitsandbytes' 4 bits, with double quantisation."""
    packing: bool = False
    """Rows of `max_length` tokens, each of several samples that do not see one another."""
    max_length: int = 2 * SAMPLE_TOKENS
    gradient_checkpointing: bool = True
    logging_steps: int = 5
    seed: int = 42
    cpu: bool = not torch.cuda.is_available()

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size * (self.max_length // SAMPLE_TOKENS if self.packing else 1)

    @property
    def tokens(self) -> int:
        return self.samples * SAMPLE_TOKENS


SETUPS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"full": True, "learning_rate": 1e-5},
    "qlora": {"nf4": True},
    "dora": {"dora": True},
    "packed": {"packing": True, "batch_size": 1, "max_length": 8 * SAMPLE_TOKENS},
}
"""What they are told besides."""


@dataclass(frozen=True, slots=True)
class Trainer:
    name: str
    title: str
    command: Callable[[Training, Path], list[str]]
    """Given what to train and a folder of its own, in which `data/` lies."""
    runtime: Callable[[Path], float]
    """Seconds of the training itself, as transformers' trainer counts them in all of them."""


# ---- the four


def tuneserve(training: Training, folder: Path) -> list[str]:
    return our_command("sft", training, folder, folder / "data" / "messages.jsonl")


def our_command(name: str, training: Training, folder: Path, data: Path, *more: str) -> list[str]:
    """Our command of that name, on `data`. `more`: what it is told besides."""
    t = training
    words: list[object] = [
        *("--model", t.model, "--dataset", data, "--output_dir", folder / "out"),
        *("--add_version", "false", "--torch_dtype", t.dtype, "--max_length", t.max_length, "--max_steps", t.steps),
        *("--per_device_train_batch_size", t.batch_size, "--learning_rate", t.learning_rate),
        *("--weight_decay", t.weight_decay, "--gradient_checkpointing", t.gradient_checkpointing),
        *("--logging_steps", t.logging_steps, "--seed", t.seed, "--split_dataset_ratio", "0"),
        *("--packing", t.packing, "--save_strategy", "no"),  # a checkpoint is written once the time is taken
        *more,
    ]
    if t.full:
        words += ["--train_type", "full"]
    else:
        words += ["--lora_rank", t.rank, "--lora_alpha", t.alpha, "--lora_dropout", t.dropout, "--use_dora", t.dora]
    if t.nf4:
        words += ["--quant_method", "bnb", "--quant_bits", 4, "--bnb_4bit_compute_dtype", t.dtype]
    return [sys.executable, "-c", TUNESERVE, name, *map(str, words)]


def tuneserve_runtime(folder: Path) -> float:
    result = JobFolder(folder / "out").read_result()
    if result is None or result.status != "succeeded":
        raise NotRun(f"it did not succeed: {result.error if result else 'see its log under .bench/'}")
    return result.metrics["train_runtime"]


def trl(training: Training, folder: Path) -> list[str]:
    settings = asdict(training) | {"dataset": str(folder / "data" / "pairs.jsonl"), "output_dir": str(folder / "out")}
    (folder / "settings.json").write_text(json.dumps(settings))
    return [sys.executable, "-m", "benchmarks.trl_sft", str(folder / "settings.json")]


def llamafactory(training: Training, folder: Path) -> list[str]:
    t = training
    tags = {"role_tag": "role", "content_tag": "content", "system_tag": "system"}
    tags |= {"user_tag": "user", "assistant_tag": "assistant"}
    data = {"file_name": "messages.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"bench": data}))
    settings = {
        "model_name_or_path": t.model,
        "stage": "sft",
        "do_train": True,
        "output_dir": str(folder / "out"),
        "dataset": "bench",
        "dataset_dir": str(folder / "data"),
        "template": "qwen",
        "cutoff_len": t.max_length,
        "finetuning_type": "full" if t.full else "lora",
        "packing": t.packing,
        "neat_packing": t.packing,
        "per_device_train_batch_size": t.batch_size,
        "max_steps": t.steps,
        "learning_rate": t.learning_rate,
        "weight_decay": t.weight_decay,
        "lr_scheduler_type": "cosine",
        "disable_gradient_checkpointing": not t.gradient_checkpointing,
        "logging_steps": t.logging_steps,
        "bf16": t.dtype == "bfloat16",
        "use_cpu": t.cpu,
        "save_strategy": "no",
        "seed": t.seed,
        "report_to": "tensorboard",
    }
    if not t.full:
        settings |= {"lora_rank": t.rank, "lora_alpha": t.alpha, "lora_dropout": t.dropout, "lora_target": "all"}
        settings |= {"use_dora": t.dora}
    if t.nf4:
        settings |= {"quantization_method": "bnb", "quantization_bit": 4, "double_quantization": True}
    (folder / "settings.json").write_text(json.dumps(settings))  # JSON is YAML too, and it asks for that ending
    (folder / "settings.json").rename(folder / "settings.yaml")
    return [LLAMAFACTORY.program("llamafactory-cli"), "train", str(folder / "settings.yaml")]


def swift(training: Training, folder: Path) -> list[str]:
    t = training
    words: list[object] = [
        *("--model", t.model, "--model_type", "llama", "--template", "chatml", "--use_hf", "true"),
        *("--dataset", folder / "data" / "messages.jsonl", "--output_dir", folder / "out", "--add_version", "false"),
        *("--torch_dtype", t.dtype, "--max_length", t.max_length, "--max_steps", t.steps),
        *("--per_device_train_batch_size", t.batch_size, "--learning_rate", t.learning_rate),
        *("--weight_decay", t.weight_decay, "--gradient_checkpointing", str(t.gradient_checkpointing).lower()),
        *("--logging_steps", t.logging_steps, "--seed", t.seed, "--split_dataset_ratio", "0"),
        *("--packing", str(t.packing).lower(), "--save_strategy", "no", "--report_to", "tensorboard"),
        *("--use_cpu", str(t.cpu).lower(), "--dataloader_num_workers", 0, "--tuner_type", "full" if t.full else "lora"),
    ]
    if not t.full:
        words += ["--lora_rank", t.rank, "--lora_alpha", t.alpha, "--lora_dropout", t.dropout]
        words += ["--target_modules", "all-linear", "--use_dora", str(t.dora).lower()]
    if t.nf4:
        words += ["--quant_method", "bnb", "--quant_bits", 4, "--bnb_4bit_compute_dtype", t.dtype]
    return [SWIFT.program("swift"), "sft", *map(str, words)]


def swift_runtime(folder: Path) -> float:
    """Its last line of the log has what transformers' trainer counted."""
    file = folder / "out" / "logging.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = [float(line["train_runtime"]) for line in lines if "train_runtime" in line]
    if not found:
        raise NotRun("it made no result: see its log under .bench/")
    return found[-1]


def train_runtime(name: str) -> Callable[[Path], float]:
    def read(folder: Path) -> float:
        file = folder / "out" / name
        if not file.exists():
            raise NotRun("it made no result: see its log under .bench/")
        return float(json.loads(file.read_text())["train_runtime"])

    return read


TRAINERS = (
    Trainer(OURS, "tuneserve sft", tuneserve, tuneserve_runtime),
    Trainer("trl", "TRL's SFTTrainer, bare", trl, train_runtime("train_runtime.json")),
    Trainer("llamafactory", "llamafactory-cli train", llamafactory, train_runtime("train_results.json")),
    Trainer("swift", "swift sft", swift, swift_runtime),
)
ENVIRONMENTS: dict[str, Environment] = {"llamafactory": LLAMAFACTORY, "swift": SWIFT}


# ---- the samples


def write_data(tokenizer: Any, folder: Path, count: int) -> None:
    """`count` conversations of SAMPLE_TOKENS tokens each, so that every batch is full whatever the order: as messages,
    and as prompt and completion, of which TRL trains on the completion only, as we do."""
    folder.mkdir()
    rng = random.Random(0)
    samples = [sample(tokenizer, rng) for _ in range(count)]
    _write(folder / "messages.jsonl", [{"messages": sample} for sample in samples])
    _write(folder / "pairs.jsonl", [{"prompt": sample[:-1], "completion": sample[-1:]} for sample in samples])


def sample(tokenizer: Any, rng: random.Random) -> list[dict[str, str]]:
    words = rng.choices(WORDS, k=SAMPLE_TOKENS)
    for length in range(SAMPLE_TOKENS, 0, -1):
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Tell a story about: {' '.join(words[:20])}."},
            {"role": "assistant", "content": " ".join(words[20:length])},
        ]
        if _length(tokenizer, messages) == SAMPLE_TOKENS:
            return messages
    raise AssertionError("some length fits: the words have one token each")


def _length(tokenizer: Any, messages: list[dict[str, str]]) -> int:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return len(tokenizer.encode(text, add_special_tokens=False))


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


# ---- one training


def measure(trainer: Trainer, training: Training, tokenizer: Any, setting: Setting) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(tokenizer, folder / "data", training.samples)
        command = trainer.command(training, folder)
        variables = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
        log = HOME / f"{trainer.name}-train.log"
        with Tree(command, variables, log) as tree:
            status = tree.process.wait()
            seconds = time.perf_counter() - tree.started
        if status != 0:
            raise NotRun(next(iter(reversed(log.read_text().strip().splitlines())), f"it ended with status {status}"))
        runtime = trainer.runtime(folder)
        return {
            "tokens_per_second": training.tokens / runtime,
            "seconds": seconds,
            "around_seconds": seconds - runtime,
            "pss_mib": tree.peak.pss_mib,
            "command": shlex.join(command),
        }


def measure_all(names: list[str], trainings: dict[str, Training], setting: Setting, repeats: int) -> list[Row]:
    """In turns, so that what changes about the machine meanwhile meets all of them."""
    tokenizer = load_tokenizer(setting.model)
    trainers = [trainer for trainer in TRAINERS if trainer.name in names]
    return [
        row
        for setup, training in trainings.items()
        for row in _measure_setup(
            setup, training, trainers, lambda trainer, training: measure(trainer, training, tokenizer, setting), repeats
        )
    ]


def _measure_setup(
    setup: str,
    training: Training,
    trainers: list[Trainer],
    measured: Callable[[Trainer, Training], Row],
    repeats: int,
) -> list[Row]:
    runs: dict[str, list[Row]] = {trainer.name: [] for trainer in trainers}
    failed: dict[str, str] = {}
    for _ in range(repeats):
        for trainer in trainers:
            if trainer.name in failed:
                continue
            try:
                row = measured(trainer, training)
            except NotRun as reason:
                failed[trainer.name] = str(reason)
                report.say(f"{setup}, {trainer.title}: not run: {reason}")
                continue
            runs[trainer.name].append(row)
            report.say(f"{setup}, {trainer.title}: {row['tokens_per_second']:.1f} tokens/s, {row['pss_mib']:.0f} MiB")
    return [{"setup": setup} | _row(trainer, runs, failed) for trainer in trainers]


def _row(trainer: Trainer, runs: dict[str, list[Row]], failed: dict[str, str]) -> Row:
    head: Row = {"trainer": trainer.name, "title": trainer.title}
    if trainer.name in failed:
        return head | {"not_run": failed[trainer.name]}
    mine = runs[trainer.name]
    names = ("tokens_per_second", "seconds", "around_seconds", "pss_mib")
    row = head | {name: statistics.median(run[name] for run in mine) for name in names} | {"runs": mine}
    peers = [runs[name] for name in runs if name not in failed and name != OURS]
    if trainer.name == OURS and peers:
        fastest = [max(run["tokens_per_second"] for run in turn) for turn in zip(*peers, strict=True)]
        row["of_fastest"] = statistics.median(
            run["tokens_per_second"] / best for run, best in zip(mine, fastest, strict=True)
        )
    return row


# ---- from creating a job to its first step


def first_steps(setting: Setting) -> Row:
    """Seconds from POST /v1/fine_tuning/jobs to the first step of JOBS jobs in turn, on a running server."""
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        command = [*ours(setting), "--state_dir", str(state)]
        serving.refuse_taken_port(setting)
        variables = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
        with (
            Tree(command, variables, HOME / "tuneserve-jobs.log"),
            httpx.Client(base_url=setting.url, timeout=PATIENCE) as client,
        ):
            _wait(lambda: _ready(client))
            seconds = [_first_step(client) for _ in range(JOBS)]
    return {"what": "create to first step", "seconds": statistics.median(seconds), "all": seconds}


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def _first_step(client: httpx.Client) -> float:
    lines = [
        {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": f"{word}!"}]}
        for word in WORDS[:60]
    ]
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    upload = client.post("/v1/files", files={"file": ("words.jsonl", data)}, data={"purpose": "fine-tune"})
    began = time.time()
    job = client.post("/v1/fine_tuning/jobs", json={"model": "bench", "training_file": upload.json()["id"]}).json()
    path = f"/v1/jobs/{job['id']}"

    def started() -> list[Row]:
        return [event for event in client.get(f"{path}/events").json()["data"] if event["type"] == "started"]

    _wait(lambda: bool(started()))
    seconds: float = started()[0]["time"] - began
    client.post(f"{path}/cancel")
    _wait(lambda: client.get(path).json()["status"] == "cancelled")
    report.say(f"the first step began after {seconds:.1f} s")
    return seconds


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit("it did not happen in time: see .bench/tuneserve-jobs.log")
        time.sleep(0.1)


# ---- the run, and its words


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    HOME.mkdir(exist_ok=True)
    setting = serving.make_setting(arguments)
    alike = Training(setting.model, setting.dtype, arguments.steps)
    trainings = {name: replace(alike, **SETUPS[name]) for name in arguments.setups}
    for name in ENVIRONMENTS.keys() & set(arguments.peers):
        ENVIRONMENTS[name].prepare(arguments.torch_index)
    report.check_quiet()
    rows = measure_all(arguments.peers, trainings, setting, arguments.repeats)
    first = first_steps(setting) if OURS in arguments.peers else None
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": report.machine(),
        "setting": asdict(alike) | {"threads": setting.threads, "sample_tokens": SAMPLE_TOKENS},
        "setups": {name: SETUPS[name] for name in trainings},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "rows": rows,
        "first_step": first,
    }
    text = f"{tables(rows, first)}\n"
    target = report.RESULTS / f"{document['date']}-training"
    report.save(target, document, _page(document, text))
    sys.stdout.write(f"\n{text}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    names = [trainer.name for trainer in TRAINERS]
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    add = parser.add_argument
    add("--setups", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    add("--peers", nargs="+", choices=names, default=names)
    add_options(parser, steps=20)
    add("--port", type=int, default=8390)
    add("--torch-index", help="index that torch comes from in LLaMA-Factory's environment")
    return parser.parse_args(argv)


def add_options(parser: argparse.ArgumentParser, *, steps: int) -> None:
    """Those of every comparison of trainings."""
    add = parser.add_argument
    add("--steps", type=int, default=steps, help="of each training")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, help="of everything (default: the physical cores)")
    add("--dtype", choices=["float32", "bfloat16"], help="(default: the fastest on this machine)")
    add("--model", help="a folder (default: the demo model)")


def tables(rows: list[Row], first: Row | None) -> str:
    cells = [["set-up", "trainer", "tokens/s", "peak PSS MiB", "seconds", "around it", "of the fastest peer", "target"]]
    for row in rows:
        head = [row["setup"], row["title"]]
        if "not_run" in row:
            cells.append([*head, "not run", "", "", "", "", row["not_run"]])
            continue
        share = row.get("of_fastest")
        target = "" if share is None else f"at least {SHARE_LEAST:g}: {_verdict(share >= SHARE_LEAST)}"
        numbers = [f"{row['tokens_per_second']:.1f}", f"{row['pss_mib']:.0f}"]
        numbers += [f"{row['seconds']:.1f}", f"{row['around_seconds']:.1f}"]
        cells.append([*head, *numbers, "" if share is None else f"{share:.3f}", target])
    text = report.table(cells)
    if first is not None:
        verdict = _verdict(first["seconds"] <= FIRST_STEP_MOST)
        text += (
            f"\n\nFrom creating a job to its first step: {first['seconds']:.1f} s, the median of {JOBS} "
            f"(at most {FIRST_STEP_MOST:g}: {verdict})."
        )
    return text


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def _page(document: dict[str, Any], text: str) -> str:
    s = document["setting"]
    said = f"{s['steps']} steps of {s['batch_size']} samples with {s['sample_tokens']} tokens each"
    return page("Training", document, said, text)


def page(title: str, document: dict[str, Any], said: str, text: str) -> str:
    """What was compared, and what came of it. `said`: the trainings, in words."""
    s = document["setting"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    checkpointing = f"gradient checkpointing {'on' if s['gradient_checkpointing'] else 'off'}"
    return (
        f"# {title}, {document['date']}\n\n{report.hardware(document['machine'])}; {versions}.\n\n"
        f"{Path(s['model']).name} in {s['dtype']}, {s['threads']} threads; {said}; {checkpointing}. "
        f"What is compared and how: ../README.md.\n\n{text}"
    )


if __name__ == "__main__":
    sys.exit(main())
