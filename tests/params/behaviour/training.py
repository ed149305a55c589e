"""What is seen of a training: its rows, its events, the files it writes, and the arguments that libraries get from
it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from types import MethodType
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from engines.checkpoint.loading import load_tokenizer
from engines.checkpoint.quantize import dequantize, quantized_layers
from engines.errors import TuneserveError
from engines.params.secrets import secrets_of
from engines.pt.config import PtConfig
from server.commands.output_folder import new_training_folder
from tests.engines.pt.tiny import CONFIGS, VOCAB_SIZE, byte_level_tokenizer, save
from tests.hqq import importable
from tests.params.behaviour.table import Given, Observer
from tests.training.jobs import TEMPLATE, make_job
from tests.training.ppo.given import save_reward_model
from training.data import build
from training.folder import Evaluation, JobFolder, Message, Step
from training.methods import method_of
from training.params.sft import SftParams
from training.params.task import TASK, Task
from training.report import Report
from training.run import run
from training.trainers.job.arguments import trainer_arguments
from training.trainers.model import load_base_config, load_for_training
from training.trainers.weights.precision import Precision

QUICK: dict[str, Any] = {
    "model": "$tiny", "dataset": ["$rows"], "torch_dtype": "float32", "split_dataset_ratio": 0, "max_steps": 1,
    "logging_steps": 1, "learning_rate": 1e-2, "lora_dropout": 0, "lora_rank": 4, "report_to": ["none"],
}  # fmt: skip
BASE: dict[str, dict[str, Any]] = {"sft": QUICK, "pt": QUICK, "rlhf": QUICK | {"rlhf_type": "dpo"}}
"""What every trial of a task is given: one step of a training, on the CPU."""
ANSWERS = ["red", "blue and red", "the value", "numbers one two", "name", "the red and the blue"]
FLOAT32 = Precision(base=torch.float32, learning=torch.float32, autocast=None, saved=torch.float32)

LIBRARIES: dict[str, Any] = {
    "AutoTokenizer.from_pretrained": transformers.AutoTokenizer,
    "AutoConfig.from_pretrained": transformers.AutoConfig,
    "AutoModelForCausalLM.from_pretrained": transformers.AutoModelForCausalLM,
    "AutoModelForSequenceClassification.from_pretrained": transformers.AutoModelForSequenceClassification,
    "GenerationMixin.generate": transformers.GenerationMixin,
    "Dataset.map": datasets.Dataset,
    "HfApi.create_repo": huggingface_hub.HfApi,
    "datasets.load_dataset": datasets,
    "PtConfig.__init__": PtConfig,
}
"""Functions whose arguments are listened to, and whose they are."""


class Workshop:
    """Models, data and adapters to try tasks with; tries each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, str] = {}
        self._trials: dict[str, Trial] = {}
        self._numbers = count()
        self._make_models()
        self._make_data()

    def trial(self, task: str, given: Given) -> "Trial":
        key = json.dumps([task, given], sort_keys=True)
        if key not in self._trials:
            self._trials[key] = Trial(self, task, given, self.folder / f"trial-{next(self._numbers)}")
        return self._trials[key]

    def placed(self, task: str, value: Any) -> Any:
        """`value` with the path of what it names by `$NAME`: of rows, those of the task."""
        if isinstance(value, list):
            return [self.placed(task, one) for one in value]
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        name, *rest = value.removeprefix("$").split("#")
        task = "sft" if task in ("merge", "export") else task
        if name in ("trained", "taught"):
            return str(self.checkpoint(task, name))
        return "#".join([self.places.get(f"{name}-{task}") or self.places[name], *rest])

    def checkpoint(self, task: str, name: str) -> Path:
        """An adapter after two steps: in small ones, or (`taught`) in large ones."""
        rate = {"trained": 1e-2, "taught": 5e-2}[name]
        return self.trial(task, BASE[task] | {"max_steps": 2, "learning_rate": rate}).newest

    def _make_models(self) -> None:
        tokenizer = byte_level_tokenizer()
        tokenizer.chat_template = TEMPLATE
        for seed, name in enumerate(("tiny", "other")):
            self.places[name] = str(save(CONFIGS["llama"](), self.folder / name, seed=seed))
            tokenizer.save_pretrained(self.folder / name)
            judge = save_reward_model(self.folder / name, self.folder / f"judge-of-{name}", seed=seed)
            self.places[f"judge-of-{name}"] = str(judge)
        self.places["biased"] = str(save(CONFIGS["qwen2"](), self.folder / "biased"))
        tokenizer.save_pretrained(self.places["biased"])
        copied = shutil.copytree(self.places["tiny"], self.folder / "copied")
        said = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(said | {"_name_or_path": "org/tiny"}))
        self.places["copied"] = str(copied)
        adapted = get_peft_model(
            AutoModelForSequenceClassification.from_pretrained(judge),
            LoraConfig(init_lora_weights=False, target_modules=["q_proj"], task_type="SEQ_CLS"),
        )
        self.places["judgement"] = str(self.folder / "judgement")
        adapted.save_pretrained(self.places["judgement"])
        worth = self.folder / "worth.py"
        worth.write_text(
            "def worth(completion_ids, **columns):\n"
            "    most = 7 if 'query' in columns else 3\n"
            "    return [sum(ids) % most for ids in completion_ids]\n"
        )
        self.places["worth"] = f"{worth}:worth"
        registers = "import torch\nfrom training.plugins import metric, optimizer\n"
        registers += "optimizer('mine')(lambda model, arguments: torch.optim.SGD(model.parameters(), lr=1.0))\n"
        self._write("mine", registers + "metric('mine')(lambda answers, references: len(answers))\n", "py")

    def _make_data(self) -> None:
        answers = [{"query": f"number {i}", "response": answer} for i, answer in enumerate(ANSWERS)]
        pairs = [{**row, "rejected_response": "no"} for row in answers]
        texts = [{"text": f"{row['query']} is {row['response']}"} for row in answers]
        for task, rows, written in (
            ("sft", answers, "response"), ("pt", texts, "text"), ("rlhf", pairs, "response"),
        ):  # fmt: skip
            self._write(f"rows-{task}", rows)
            self._write(f"fewer-{task}", rows[:3])
            self._write(f"broken-{task}", [*rows, {"nothing": 1}])
            self._write(f"named-{task}", [{**rows[0], written: "{{NAME}} of {{AUTHOR}}"}])
        self._write("classes", [{**row, "label": len(row["text"]) % 2} for row in texts])
        self._write("talks-sft", answers)
        self._write("talks-pt", answers)
        self._write("talks-rlhf", pairs)
        for task in ("sft", "pt", "rlhf"):
            rows = pairs if task == "rlhf" else answers
            self._write(f"tools-{task}", [{**row, "tools": [{"name": "f", "parameters": {}}]} for row in rows])
        for task in ("sft", "pt", "rlhf"):
            for name, other in (("rows", "one"), ("fewer", "two")):
                path = self.places[f"{name}-{task}"]
                self._write(f"described-{other}-{task}", {"dataset_name": "mine", "dataset_path": path}, "json")
                code = f"import json\nDATASETS = {{'mine': lambda: map(json.loads, open({path!r}))}}\n"
                self._write(f"registers-{other}-{task}", code, "py")

    def _write(self, name: str, content: Any, end: str = "jsonl") -> None:
        lines = "".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else content
        path = self.folder / f"{name}.{end}"
        path.write_text(lines if isinstance(lines, str) else json.dumps(lines))
        self.places[name] = str(path)


class Trial:
    """A task with parameters, and what comes of it: found out when it is looked at, once."""

    def __init__(self, workshop: Workshop, task: str, given: Given, folder: Path) -> None:
        self.name = task
        self.given = {name: workshop.placed(task, value) for name, value in given.items()}
        self.folder = folder
        self.base = Path(workshop.places["tiny"])

    @cached_property
    def task(self) -> Task:
        return TASK.validate_python({"task": self.name, "params": self.given})

    @property
    def params(self) -> SftParams:
        assert isinstance(self.task.params, SftParams)
        return self.task.params

    @cached_property
    def job(self) -> JobFolder:
        """Its folder, after it ran."""
        job = make_job(self.folder / "job", self.name, **self.given)
        with (
            importable(),
            secrets_in_environment(self.task),
            fed_to_embedding() as self.batches,
            called() as self.calls,
        ):
            self.result = run(job, Report(job))
        return job

    @property
    def outcome(self) -> str:
        """How it ended, in short."""
        assert self.job
        return self.result.error.message if self.result.error else self.result.status

    @property
    def events(self) -> list[Any]:
        return [event for event, _ in self.job.read_events()]

    @property
    def newest(self) -> Path:
        assert self.job and self.result.status == "succeeded", self.outcome
        assert self.result.artifact
        return self.job.path / self.result.artifact

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor for file in self.newest.glob("*.safetensors") for name, tensor in load_file(file).items()}

    @cached_property
    def arguments(self) -> Any:
        """transformers' TrainingArguments, which it writes into each checkpoint."""
        return torch.load(self.newest / "training_args.bin", weights_only=False)

    @cached_property
    def data(self) -> Any:
        params = self.params
        assert params.model
        tokenizer = load_tokenizer(params.model)
        tokenizer.pad_token = tokenizer.eos_token
        return build(params, tokenizer, learns=method_of(params).rows)


@contextmanager
def secrets_in_environment(task: Task) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ)  # datasets leaves a copy of it there
        for variable, value in secrets_of(task.params).items():
            patch.setenv(variable, value)
        yield


@contextmanager
def fed_to_embedding() -> Iterator[list[Any]]:
    """The token ids of every batch that goes into a model."""
    seen: list[Any] = []

    def look(module: Any, inputs: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and inputs[0].dim() == 2:
            seen.append(inputs[0].tolist())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def called() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Every call of those functions of libraries: its name, and its arguments that have names. The hub is away."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def listening(name: str, function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            calls.append((name, named))
            return function(*given, **named)

        return staticmethod(call) if isinstance(function, MethodType) else call

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("the hub is away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", away)
        for name in ("create_repo", "model_info"):
            patch.setattr(huggingface_hub.HfApi, name, away)
        for name, owner in LIBRARIES.items():
            function = name.partition(".")[2]
            patch.setattr(owner, function, listening(name, getattr(owner, function)))
        yield calls


# ---- observers


def asked(name: str) -> Observer[Trial]:
    """An argument of transformers' trainer."""
    return lambda trial: getattr(trial.arguments, name)


def adapter(name: str) -> Observer[Trial]:
    """What an adapter's own configuration says."""

    def look(trial: Trial) -> Any:
        said = json.loads((trial.newest / "adapter_config.json").read_text())[name]
        return sorted(said) if isinstance(said, list) else said

    return look


def adalora(name: str) -> Observer[Trial]:
    """What the configuration says that AdaLoRA goes on from."""

    def look(trial: Trial) -> Any:
        return json.loads((trial.newest / "adalora" / "adapter_config.json").read_text())[name]

    return look


def config(name: str) -> Observer[Trial]:
    """What config.json says, of a model or beside an adapter with a head."""
    return lambda trial: json.loads((trial.newest / "config.json").read_text())[name]


def outcome(trial: Trial) -> str:
    return trial.outcome


def makes(trial: Trial) -> str | None:
    return trial.outcome and trial.result.artifact


def checkpoints(trial: Trial) -> list[int]:
    assert trial.newest
    return trial.job.checkpoints()


def files(trial: Trial) -> list[str]:
    """Of the last checkpoint."""
    return sorted(path.name for path in trial.newest.iterdir())


def changed(trial: Trial) -> list[str]:
    """Weights that are no longer as they were."""
    before = load_file(trial.base / "model.safetensors")
    return sorted(name for name, tensor in trial.weights.items() if not torch.equal(tensor, before[name]))


def base_weights(trial: Trial) -> dict[str, Any]:
    """What the training begins with: of each layer that is quantised, its types and what it stands for."""
    with importable():
        config = load_base_config(trial.params)
        model = load_for_training(trial.params, config, torch.float32)
    types = {
        path: (next(layer.parameters(False)).dtype, getattr(layer, "compute_dtype", None))
        for path, layer in quantized_layers(model).items()
    }
    return {path: (types.get(path), layer.weight.sum().item()) for path, layer in linears(dequantize(model))}


def linears(model: Any) -> Iterator[tuple[str, Any]]:
    return ((path, layer) for path, layer in model.named_modules() if isinstance(layer, torch.nn.Linear))


def dtypes(trial: Trial) -> set[str]:
    return {str(tensor.dtype) for tensor in trial.weights.values()}


def rates(trial: Trial) -> list[float]:
    """The learning rates of the optimizer, of which each group of weights has one."""
    groups = torch.load(trial.newest / "optimizer.pt", weights_only=False)["param_groups"]
    return sorted({group["initial_lr"] for group in groups})


def optimizer(setting: str) -> Observer[Trial]:
    """What the groups of the optimizer's weights have as a setting."""

    def look(trial: Trial) -> list[Any]:
        groups = torch.load(trial.newest / "optimizer.pt", weights_only=True)["param_groups"]
        return [group[setting] for group in groups if setting in group]

    return look


def projected(*, embeddings: bool) -> Observer[Trial]:
    """How many weights GaLore projects, of embeddings or of others."""

    def look(trial: Trial) -> int:
        saved = torch.load(trial.newest / "optimizer.pt", weights_only=True)
        weights = [index for group in saved["param_groups"] if "rank" in group for index in group["params"]]
        rows = [max(saved["state"][index]["exp_avg"].shape) for index in weights]
        return sum((each == VOCAB_SIZE) == embeddings for each in rows)

    return look


def norms(trial: Trial) -> list[float]:
    """Of the gradients of each step."""
    return [event.metrics["grad_norm"] for event in trial.events if isinstance(event, Step)]


def learned(trial: Trial) -> dict[str, Any]:
    return {name: tensor.double().sum().item() for name, tensor in trial.weights.items()}


def steps(trial: Trial) -> list[tuple[int, float]]:
    """The steps that were logged, with their losses."""
    return [(event.step, event.metrics["loss"]) for event in trial.events if isinstance(event, Step)]


def numbers(trial: Trial) -> list[dict[str, float]]:
    """All that is told of the steps, but for what time it took."""
    told = [event.metrics for event in trial.events if isinstance(event, Step)]
    return [{name: value for name, value in each.items() if not name.startswith("rollouts/")} for each in told]


def told_of(trial: Trial) -> list[str]:
    """What numbers are told of the steps."""
    return sorted({name for event in trial.events if isinstance(event, Step) for name in event.metrics})


def left(trial: Trial) -> list[str]:
    """The files in the folder of the run."""
    assert trial.newest
    return sorted(path.name for path in trial.job.path.iterdir() if path.is_file())


def says(trial: Trial) -> list[str]:
    """What it tells beside numbers."""
    return [event.message for event in trial.events if isinstance(event, Message)]


def evaluated(trial: Trial) -> list[str]:
    """Names of the metrics of evaluations."""
    return sorted({name for event in trial.events if isinstance(event, Evaluation) for name in event.metrics})


def scores(trial: Trial) -> list[dict[str, float]]:
    """What evaluations found."""
    return [event.metrics for event in trial.events if isinstance(event, Evaluation)]


def batches(trial: Trial) -> list[Any]:
    """The token ids that went into the model."""
    assert trial.newest
    return list(trial.batches)


def prepared(trial: Trial) -> Any:
    """The rows of training and validation data as their trainer takes them; or why there are none."""
    try:
        data = trial.data
    except TuneserveError as error:
        return error.message
    return [None if rows is None else list(islice(rows, 100)) for rows in (data.train, data.evaluation)]


def kind(trial: Trial) -> str:
    """How the training reads its rows."""
    return type(trial.data.train).__name__


def kept(trial: Trial) -> list[str]:
    """What is in the cache of prepared data afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESERVE_CACHE", str(trial.folder / "cache"))
        assert trial.data
    return sorted(path.name for path in (trial.folder / "cache").rglob("*.arrow"))


def folder(trial: Trial) -> str:
    """Where the command line has the results go, but for the time in its name."""
    with pytest.MonkeyPatch.context() as patch:
        trial.folder.mkdir(exist_ok=True)
        patch.chdir(trial.folder)
        made = new_training_folder(trial.params)
    return str(made.relative_to(trial.folder)).partition("-")[0]


def merged(trial: Trial) -> str:
    return str(trial.task.target())


def told(name: str, to: str) -> Observer[Trial]:
    """An argument of a library's function, in every call of it."""

    def look(trial: Trial) -> list[Any]:
        assert trial.job
        return [named.get(name) for function, named in trial.calls if function == to]

    return look


def told_of_several(name: str) -> Observer[Trial]:
    """An argument of transformers' trainer in a training by two processes, as one of them."""

    def look(trial: Trial) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")
            return trainer_arguments(trial.params, trial.folder, precision=FLOAT32, evaluates=False)[name]

    return look
