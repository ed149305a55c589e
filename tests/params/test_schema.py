"""The schema against the reference's parameters: each name, default, choice and star, and how commands are composed."""

import json
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from engines.params.base import Params
from engines.params.common import BaseParams
from engines.params.data import DataParams
from engines.params.deploy import DeployParams, ServerParams
from engines.params.engine import EngineParams
from engines.params.generation import GenerationParams
from engines.params.infer import InferParams
from engines.params.lmdeploy import LmdeployParams
from engines.params.merge import MergeLoraParams
from engines.params.model import ModelParams
from engines.params.model_kwargs import FAMILIES
from engines.params.parsers import ParserParams
from engines.params.quantization import QuantizationParams
from engines.params.speculation import SpeculationParams
from engines.params.template import ChatTemplateParams, TemplateParams
from engines.params.vllm import VllmParams
from training.params import tuner
from training.params.app import AppParams, StudioParams
from training.params.choices import Schedule
from training.params.dry_run import DryRunParams
from training.params.eval import EvalParams, HarnessParams
from training.params.export import ExportParams, MergeParams
from training.params.export_forms import FormParams
from training.params.gkd import GkdParams
from training.params.grader import GraderParams
from training.params.grpo import GrpoParams
from training.params.head import HeadParams
from training.params.houlsby import HoulsbyParams
from training.params.infer import AnswerParams
from training.params.mixing import MixingParams
from training.params.numbers import NumbersParams
from training.params.optimizer import OptimizerParams
from training.params.parallel import ParallelParams
from training.params.ppo import PpoParams
from training.params.reference import ReferenceParams
from training.params.response_format import ResponseFormatParams
from training.params.rlhf import RlhfParams
from training.params.rm import RewardModelParams
from training.params.rollouts import RolloutParams
from training.params.sft import PredictParams, PtParams, SftParams
from training.params.tokens import TrainableTokensParams
from training.params.trainer import TrainerParams
from training.params.web_ui import WebUiParams

REFERENCE: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "parameters.json").read_text())

GROUPS: dict[str, Any] = {
    "base": BaseParams,
    "model": ModelParams,
    "data": DataParams,
    "template": TemplateParams,
    "generation": GenerationParams,
    "quantization": QuantizationParams,
    "trainer": TrainerParams,
    "tuner": tuner.TunerParams,
    "tuner.full": tuner.FullParams,
    "tuner.lora": tuner.LoraParams,
    "tuner.lora_ga": tuner.LoraGaParams,
    "tuner.fourierft": tuner.FourierFtParams,
    "tuner.boft": tuner.BoftParams,
    "tuner.vera": tuner.VeraParams,
    "tuner.galore": tuner.GaloreParams,
    "tuner.lisa": tuner.LisaParams,
    "tuner.llamapro": tuner.LlamaproParams,
    "tuner.adalora": tuner.AdaloraParams,
    "tuner.reft": tuner.ReftParams,
    "tuner.liger": tuner.LigerParams,
    "lmdeploy": LmdeployParams,
    "vllm": VllmParams,
    "merge": MergeLoraParams,
    "training": SftParams,
    "rlhf": RlhfParams,
    "rlhf.ppo": PpoParams,
    "infer": InferParams,
    "deploy": DeployParams,
    "web_ui": WebUiParams,
    "app": AppParams,
    "eval": EvalParams,
    "export": ExportParams,
} | {f"model_kwargs.{'+'.join(family.model_types)}": family for family in FAMILIES}

SERVING: tuple[type[Params], ...] = (ChatTemplateParams, SpeculationParams, EngineParams, ParserParams, ServerParams)
LEARNING: tuple[type[Params], ...] = (
    ChatTemplateParams,
    NumbersParams,
    OptimizerParams,
    ParallelParams,
    PredictParams,
    MixingParams,
    HeadParams,
    TrainableTokensParams,
    HoulsbyParams,
    DryRunParams,
)
OF_RLHF: tuple[type[Params], ...] = (
    ReferenceParams,
    RewardModelParams,
    GkdParams,
    GrpoParams,
    ResponseFormatParams,
    GraderParams,
    RolloutParams,
)
ADDITIONS: tuple[type[Params], ...] = (*SERVING, *LEARNING[1:], *OF_RLHF, FormParams, HarnessParams)
"""Groups of our own, which the reference does not have."""

OTHER_DEFAULTS = {
    "host": "127.0.0.1",
    "server_name": "127.0.0.1",
    "owned_by": "tuneserve",
    "max_batch_size": None,
    "use_hf": True,
    "template_backend": "jinja",
    "tools_prompt": None,
}
"""Documented deviations: the field's docstring gives the reason."""

REQUIRED = {"rlhf_type"}

OTHER_CHOICES = {
    "train_type": {"lora", "full", "longlora", "adalora", "llamapro", "adapter", "vera", "boft", "fourierft", "reft"}
    | {"bone", "loha", "lokr", "ia3", "randlora", "trainable_tokens"},
    "rlhf_type": {"dpo", "orpo", "simpo", "kto", "cpo", "rm", "ppo"} | {"ipo", "grpo", "rloo", "gkd"},
    "quant_method": {"bnb", "hqq", "eetq"} | {"torchao"},
    "bnb_4bit_quant_storage": {"uint8", "float16", "bfloat16", "float32"},  # the reference leaves the names to torch
    "truncation_strategy": {"delete", "left", "right", "split"},
    "eval_strategy": {"no", "steps", "epoch"},  # follows save_strategy, so it has that one's choices
    "lr_scheduler_type": set(get_args(Schedule)),  # the reference leaves the names to transformers
    "init_weights": set(),  # the reference gives patterns; the validator has tests of its own
}
OF_EXPORT = {"quant_method": {"gptq", "awq", "fp8", "w8a8", "bnb", "hqq", "torchao"}}
"""`quant_method` of export means another thing."""

BASE = {"base", "model", "data", "template", "generation", "quantization"}
TRAINING = BASE | {group for group in GROUPS if group.startswith("tuner")} | {"trainer", "training"}
INFER = BASE | {"vllm", "lmdeploy", "merge", "infer"}
COMPOSITION: dict[type[Params], tuple[set[str], tuple[type[Params], ...]]] = {
    SftParams: (TRAINING, LEARNING),
    PtParams: (TRAINING, LEARNING),
    RlhfParams: (TRAINING | {"rlhf", "rlhf.ppo"}, (*LEARNING, *OF_RLHF)),
    InferParams: (INFER, (SpeculationParams, EngineParams)),
    AnswerParams: (INFER, (ChatTemplateParams, SpeculationParams, EngineParams, ParserParams)),
    DeployParams: (INFER | {"deploy"}, SERVING),
    AppParams: (INFER | {"deploy", "web_ui", "app"}, SERVING),
    EvalParams: (INFER | {"deploy", "eval"}, (*SERVING, HarnessParams)),
    ExportParams: (BASE | {"merge", "export"}, (FormParams,)),
    MergeParams: (BASE | {"merge", "export"}, (FormParams,)),
    StudioParams: (INFER | {"deploy", "web_ui", "app"}, SERVING),
}


ALSO: dict[type[Params], set[str]] = {AnswerParams: {"metric"}}
"""What a command has under a name that another one of the reference's has."""


def own_fields(group: type[Params]) -> set[str]:
    return set(vars(group)["__annotations__"]) & set(group.model_fields)


def home(row: dict[str, Any]) -> type[Params]:
    """The reference lists init_weights twice, and the namespace is flat."""
    return tuner.TunerParams if row["name"] == "init_weights" else GROUPS[row["group"]]


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def choices(annotation: Any) -> set[Any]:
    origin = get_origin(annotation)
    if origin is Literal:
        return set(get_args(annotation))
    if origin is Annotated:
        return choices(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*(choices(arg) for arg in get_args(annotation) if arg is not NoneType))
    return set()


def test_the_reference_has_285_parameters() -> None:
    assert len(REFERENCE) == 285
    assert {row["group"] for row in REFERENCE} == set(GROUPS)


@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: f"{row['group']}-{row['name']}")
def test_each_parameter_is_as_the_reference_has_it(row: dict[str, Any]) -> None:
    name, group = row["name"], home(row)
    assert name in own_fields(group)
    field = group.model_fields[name]
    if name in REQUIRED:
        assert field.is_required()
    else:
        assert plain(field.get_default()) == OTHER_DEFAULTS.get(name, row["default"])
    others = OF_EXPORT if row["group"] == "export" else OTHER_CHOICES
    assert choices(field.annotation) == others.get(name, set(row.get("choices", ())))
    assert (name in group.starred) == any(r.get("starred", False) for r in REFERENCE if same_field(r, row))


def same_field(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["name"] == other["name"] and home(one) is home(other)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_no_group_has_a_parameter_that_the_reference_does_not_have(group: str) -> None:
    named = {row["name"] for row in REFERENCE if home(row) is GROUPS[group]}
    assert own_fields(GROUPS[group]) == named


def test_additions_of_our_own_do_not_take_a_name_of_the_references() -> None:
    names = [name for group in ADDITIONS for name in own_fields(group)]
    assert len(names) == len(set(names))
    assert not set(names) & {row["name"] for row in REFERENCE}


@pytest.mark.parametrize("command", COMPOSITION, ids=lambda command: command.__name__)
def test_each_command_is_composed_as_the_reference_composes_it(command: type[Params]) -> None:
    groups, additions = COMPOSITION[command]
    expected = {row["name"] for row in REFERENCE if row["group"] in groups}
    added = {name for group in additions for name in own_fields(group)}
    assert set(command.model_fields) == expected | added | ALSO.get(command, set())


@pytest.mark.parametrize(
    ("command", "name", "default"),
    [
        (SftParams, "temperature", 0.0),
        (SftParams, "max_new_tokens", 64),
        (SftParams, "use_chat_template", True),
        (PtParams, "use_chat_template", False),
        (RlhfParams, "temperature", 0.7),
        (RlhfParams, "max_new_tokens", 64),
        (InferParams, "temperature", None),
        (EvalParams, "temperature", 0.0),
        (EvalParams, "verbose", False),
        (DeployParams, "verbose", True),
        (StudioParams, "lang", "zh"),
        (AppParams, "lang", "en"),
        (ExportParams, "max_length", 2048),
        (MergeParams, "merge_lora", True),
    ],
)
def test_a_command_may_have_a_default_of_its_own(command: type[Params], name: str, default: object) -> None:
    assert command.model_fields[name].get_default() == default


@pytest.mark.parametrize("command", COMPOSITION, ids=lambda command: command.__name__)
def test_every_parameter_is_described_in_whole_sentences(command: type[Params]) -> None:
    for name, field in command.model_fields.items():
        assert field.description, name
        assert re.fullmatch(r"[A-Z`\d].*[.)]", field.description, re.DOTALL), name


@pytest.mark.parametrize("name", OTHER_DEFAULTS)
def test_a_deviation_says_why(name: str) -> None:
    description = AppParams.model_fields[name].description or ""
    assert "reference" in description
