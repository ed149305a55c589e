"""Add trained adapters to the weights of their base model, and write a model that needs no adapter any more.

PEFT merges, one layer at a time: its weights are widened to float32, the update is added, and the sum is rounded once
to the type of the model. So a model in half precision needs little more memory than its own weights.

An adapter that was trained on a quantised base model has learned to make up for the error of quantising, too: it is
merged into the weights that quantising leaves, in the type that they had before.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engines.adapters.folder import CHANGES_THE_BASE, refuse_inserted
from engines.adapters.heads import put_on, take_head
from engines.adapters.source import fetch_adapter, name_adapters
from engines.adapters.spec import CONFIG, WEIGHTS
from engines.checkpoint.heads import is_classifier, task_of
from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import Quantization, quantization_of, stays_quantized
from engines.checkpoint.quantize import dequantize
from engines.errors import InvalidAdapter, InvalidRequest, UnsupportedModel
from engines.params.quantization import QuantizationParams
from training.exports.files import copy_what_belongs_to_it, model_folder, new_target, shard_bytes, written_whole
from training.folder import Result
from training.hub.upload import open_repository, upload
from training.params.export import ExportParams, MergeParams
from training.params.export_result import result_folder
from training.params.saved_args import ARGS, base_of, read_args
from training.processes import Processes
from training.report import Report
from training.tuners.adapter import PEFT_TASKS

QUANTIZED = (
    "The adapter was trained on weights of {bits} bits ({method}): it is merged into what these stand for, so that the "
    "error of quantising stays. The merged model takes as much memory as the base model does unquantised."
)
OUTPUT = "merged"
"""The model's folder within the job's."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A model with adapters in its weights."""

    model: Any
    base_name: str
    base: Path
    """Folder of the files that it shares with the base model, or the GGUF file that says what is in them."""
    adapters: list[Path]


def run(params: MergeParams, report: Report) -> Result:
    """Write the merged model to `merged/` in the job's folder. Raises TuneserveError."""
    refuse_several_processes()
    if not params.adapters:
        raise InvalidRequest("name the adapter to merge", param="adapters")
    target = new_target(report, OUTPUT)
    repository = open_repository(params, result_folder(params, OUTPUT).name) if params.push_to_hub else None
    asked = None if params.quant_method is None else quantization_of(params)
    merged = merged_model(params, report, asked)
    report.message("Writing the merged model.")
    with written_whole(target) as partial:
        merged.model.save_pretrained(partial, max_shard_size=shard_bytes(params.max_shard_size))
        copy_what_belongs_to_it(merged.base, merged.adapters, partial)
    if repository is not None:
        upload(repository, target, params.commit_message, report)
    return Result(status="succeeded", artifact=OUTPUT, kind="model", task_type=task_of(merged.model.config))


def refuse_several_processes() -> None:
    """Raises InvalidRequest."""
    if Processes.of_environment().count > 1:
        raise InvalidRequest("this is the work of one process", param="devices")


def merged_model(params: ExportParams, report: Report, quantization: Quantization | None) -> Merged:
    """The base model with all that `adapters` name merged into it.

    `quantization`: how the base model was quantised when they were trained; None: as args.json beside them says.
    Raises InvalidAdapter, InvalidRequest, UnsupportedModel.
    """
    adapters = [fetch_adapter(source, token=params.hub_token) for source in name_adapters(params.adapters).values()]
    configs = [_read_config(folder) for folder in adapters]
    base, revision = _base_of(adapters[0], params)
    report.message(f"Loading {Path(base).name}.")
    quantization = quantization or _trained_on(adapters)
    model = _load_base(base, revision, adapters, configs, params, quantization)
    if quantization is not None:
        model = dequantize(model)
        report.message(QUANTIZED.format(method=quantization.method, bits=quantization.bits), level="warn")
    for folder, config in zip(adapters, configs, strict=True):
        report.message(f"Merging {folder.name}.")
        model = merge(model, folder, config)
    return Merged(model, base, model_folder(base, revision, params.hub_token), adapters)


def base_named_by(adapter: Path, params: ExportParams) -> tuple[str, str | None]:
    """The base model of the adapter in a folder, and its revision. Raises InvalidAdapter, InvalidRequest."""
    try:
        json.loads((adapter / CONFIG).read_bytes())
    except (OSError, ValueError):
        raise InvalidAdapter(f"{adapter.name!r} has no {CONFIG} that can be read", param="adapters") from None
    return _base_of(adapter, params)


def _base_of(adapter: Path, params: ExportParams) -> tuple[str, str | None]:
    """The model to merge into and its revision: as given, or as the adapter says. Raises InvalidRequest."""
    if params.model:
        return params.model, params.model_revision
    base, revision = base_of(adapter)
    if not base:
        raise InvalidRequest("the adapter does not say what its base model is: name it", param="model")
    return base, params.model_revision or revision


def _trained_on(adapters: list[Path]) -> Quantization | None:
    """How the base model was quantised when the adapters were trained, as args.json beside them says.

    Raises InvalidAdapter where they say different things.
    """
    found = {quantization_of(_quantization_params(folder)) for folder in adapters}
    if len(found) > 1:
        message = "the adapters were trained on a base model quantised in different ways: give quant_method for all"
        raise InvalidAdapter(message, param="quant_method")
    return found.pop()


def _quantization_params(folder: Path) -> QuantizationParams:
    said = {name: value for name, value in read_args(folder).items() if name in QuantizationParams.model_fields}
    try:
        return QuantizationParams.model_validate(said)
    except ValidationError:
        message = f"{ARGS} of {folder.name!r} says what is not known of quantising: give quant_method"
        raise InvalidAdapter(message, param="quant_method") from None


def merge(model: Any, folder: Path, config: dict[str, Any]) -> Any:
    """The model with the adapter in `folder` added to its weights, which keep their types. `model` is used up.

    Raises InvalidAdapter.
    """
    dtypes = {name: tensor.dtype for name, tensor in model.named_parameters()}
    tied = _untie(model)
    try:
        adapted = put_on(model, folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tied embeddings, which were untied, and merging what is merged
            _merge_layers(adapted)
            merged = adapted.merge_and_unload()
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"the adapter {folder.name!r} ({config['peft_type']}) cannot be merged: {reason}"
        raise InvalidAdapter(message, param="adapters") from error
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, merged.dtype))
    if tied:
        _tie_again_if_equal(merged)
    return merged


def _merge_layers(adapted: Any) -> None:
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer) and not layer.merged:
            dtypes = {name: tensor.dtype for name, tensor in layer.get_base_layer().named_parameters()}
            layer.to(torch.float32)
            layer.merge(safe_merge=True)  # safe: refuses an adapter with NaNs
            for name, tensor in layer.get_base_layer().named_parameters():
                tensor.data = tensor.data.to(dtypes[name])


def _untie(model: Any) -> bool:
    """Give the output head weights of its own, as an adapter may change it or the embedding alone."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    import torch

    head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False
    return True


def _tie_again_if_equal(model: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight.shape == embedding.weight.shape and bool((head.weight == embedding.weight).all()):
        head.weight = embedding.weight
        model.config.tie_word_embeddings = True
        model.config.get_text_config().tie_word_embeddings = True


def _read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration, once it is clear that it can be merged exactly. Raises InvalidAdapter."""
    refuse_inserted(folder)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        raise InvalidAdapter(f"{folder.name!r} has no {CONFIG} that can be read", param="adapters") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise InvalidAdapter(f"{CONFIG} of {folder.name!r} names no peft_type", param="adapters")
    if not (folder / WEIGHTS).is_file():
        message = f"{folder.name!r} has no {WEIGHTS}: weights are read as safetensors only"
        raise InvalidAdapter(message, param="adapters")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_THE_BASE):
        message = (
            f"init_lora_weights {init!r} changed the base model's weights: "
            "save the adapter relative to the original ones"
        )
        raise InvalidAdapter(message, param="adapters")
    if config.get("ensure_weight_tying"):
        raise InvalidAdapter("ensure_weight_tying: weights tied within the adapter are not merged", param="adapters")
    if config.get("task_type") not in (None, *PEFT_TASKS.values()):
        message = f"adapters of the task {config['task_type']!r} are not merged, only those of CAUSAL_LM and SEQ_CLS"
        raise InvalidAdapter(message, param="adapters")
    return config


def _load_base(
    base: str,
    revision: str | None,
    adapters: list[Path],
    configs: list[dict[str, Any]],
    params: ExportParams,
    quantization: Quantization | None,
) -> Any:
    """The base model on the CPU, in the type asked for or its own, with a head where the adapters are for one.

    Raises UnsupportedModel, InvalidAdapter.
    """
    import torch

    config = load_config(base, revision=revision, token=params.hub_token)
    if method := stays_quantized(config):
        message = f"{Path(base).name!r} is quantised ({method}): merge into the model that it was quantised from"
        raise UnsupportedModel(message, param="model")
    tasks = {each.get("task_type") or "CAUSAL_LM" for each in configs}
    if len(tasks) > 1:
        raise InvalidAdapter(f"the adapters are for several tasks: {' and '.join(sorted(tasks))}", param="adapters")
    judges = tasks == {PEFT_TASKS["seq_cls"]}
    brought = [take_head(config, folder) for folder in adapters] if judges else []
    if judges and not any(brought) and not is_classifier(config):
        raise InvalidAdapter("neither the adapter nor its base model has a head for SEQ_CLS", param="adapters")
    return load_model(
        base,
        config=config,
        task_type="seq_cls" if judges else "causal_lm",
        dtype="auto" if params.torch_dtype is None else getattr(torch, params.torch_dtype),
        device_map="cpu",
        revision=revision,
        token=params.hub_token,
        quantization=quantization,
    )
