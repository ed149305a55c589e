"""Write a model or an adapter in another form, as `training.exports` has them: merged, quantised, as GGUF, as PEFT has
adapters; and upload it."""

import shlex
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.adapters.source import fetch_adapter, name_adapters
from engines.checkpoint.gguf.named import is_gguf, name_of
from engines.checkpoint.heads import task_of
from engines.checkpoint.hub import hub_errors, reason_of
from engines.checkpoint.loading import load_config, load_generation_config, load_model, load_tokenizer
from engines.checkpoint.quantization import quantization_of, quantized_by
from engines.errors import InvalidAdapter, InvalidRequest, UnsupportedModel
from engines.params.model import TaskType
from engines.params.quantization import QuantizationParams
from training.device import device_name
from training.discreet import make_discreet
from training.exports.adapter import write_peft
from training.exports.card import Card, Relation
from training.exports.files import (
    copy_files,
    copy_what_belongs_to_it,
    model_folder,
    new_target,
    shard_bytes,
    written_whole,
)
from training.exports.gguf.adapter import write_adapter
from training.exports.gguf.model import write_model
from training.exports.libraries import write_by_library
from training.exports.ollama import modelfile
from training.exports.weights import write_quantized
from training.folder import Result
from training.hub.upload import FILES, open_repository, upload
from training.params.export import ExportParams
from training.params.export_conflicts import UNQUANTIZED
from training.params.export_quantization import OF_LIBRARIES, bits_of
from training.params.export_result import made_of, result_folder
from training.params.saved_args import read_args
from training.params.task import Artifact
from training.pipelines.merge import base_named_by, merged_model, refuse_several_processes
from training.report import Report

OUTPUT = "exported"
"""The result's folder within the job's."""
MODEL, ADAPTER = "model.gguf", "adapter.gguf"


@dataclass(frozen=True, slots=True)
class Made:
    """What stands in the folder."""

    kind: Artifact
    base: str
    """What it was made of, as it was named."""
    relation: Relation
    done: list[str]
    """What was done, a line each."""
    task_type: TaskType | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A whole model, as it is to be exported."""

    model: Any
    base: str
    """As it was named."""
    folder: Path
    """Where its other files are."""
    adapters: list[Path]
    """What was merged into it."""


def run(params: ExportParams, report: Report) -> Result:
    """Write the result to `exported/` in the job's folder. Raises TuneserveError."""
    refuse_several_processes()
    target = new_target(report, OUTPUT)
    name = result_folder(params, made_of(params)).name
    repository = open_repository(params, name) if params.push_to_hub else None
    with written_whole(target) as partial:
        made = _make(params, report, partial)
        _card(made, name).write(partial)
        if report.discreet:
            make_discreet(partial)
    if repository is not None:
        upload(repository, target, params.commit_message, report)
    return Result(status="succeeded", artifact=OUTPUT, kind=made.kind, task_type=made.task_type)


def _make(params: ExportParams, report: Report, target: Path) -> Made:
    if params.to_gguf is not None or params.to_ollama:
        return _gguf(params, report, target)
    if params.adapters and not params.merge_lora:
        return _adapter(params, report, target)
    if params.quant_method is None and not params.merge_lora:
        return _as_it_is(params, report, target)
    source = _load(params, report)
    made = Made("model", source.base, "merge", [f"the adapter {each.name} merged" for each in source.adapters])
    if params.quant_method is None:
        report.message("Writing the merged model.")
        source.model.save_pretrained(target, max_shard_size=shard_bytes(params.max_shard_size))
    else:
        _quantized(source, params, report, target)
        how = f"quantised by {params.quant_method} to {bits_of(params)} bits"
        made = replace(made, relation="quantized", done=[*made.done, how])
    copy_what_belongs_to_it(source.folder, source.adapters, target)
    return replace(made, task_type=task_of(source.model.config))


def _quantized(source: Source, params: ExportParams, report: Report, target: Path) -> None:
    shard = shard_bytes(params.max_shard_size)
    if params.quant_method not in OF_LIBRARIES:
        tokenizer = load_tokenizer(str(source.folder))
        write_quantized(source.model, tokenizer, params, report, target, shard)
        return
    asked = params.model_dump(include=params.model_fields_set & QuantizationParams.model_fields.keys())
    quantization = quantization_of(QuantizationParams.model_validate(asked))
    assert quantization is not None, "refused without bits"
    report.message(f"Quantising by {quantization.method} to {quantization.bits} bits.")
    with tempfile.TemporaryDirectory(prefix=".plain-", dir=report.folder.path) as plain:
        source.model.save_pretrained(plain)
        write_by_library(Path(plain), quantization, target, dtype=source.model.dtype, shard=shard)


def _gguf(params: ExportParams, report: Report, target: Path) -> Made:
    """`model.gguf`, `adapter.gguf` or both, and a Modelfile where Ollama is to read them."""
    adapter = None
    if params.adapters and not params.merge_lora:
        [named] = name_adapters(params.adapters).values()
        adapter = fetch_adapter(named, token=params.hub_token)
        base, revision = base_named_by(adapter, params)
        config = load_config(base, revision=revision, token=params.hub_token)
        report.message(f"Writing the adapter {adapter.name}.")
        kind = params.to_gguf if params.to_gguf in UNQUANTIZED else "f16"
        write_adapter(adapter, config, target / ADAPTER, kind)
        done = [f"the adapter {adapter.name} in {kind}"]
        if not params.to_ollama:
            return Made("gguf", base, "adapter", done)
        params = params.model_copy(update={"adapters": (), "model": base, "model_revision": revision})
    source = _load(params, report)
    tokenizer, kind = load_tokenizer(str(source.folder)), params.to_gguf or "f16"
    if params.to_ollama:
        generation = load_generation_config(str(source.folder))
        (target / "Modelfile").write_text(
            modelfile(tokenizer, generation, adapter=None if adapter is None else ADAPTER)
        )
    report.message(f"Writing the GGUF file in {kind}.")
    write_model(source.model, tokenizer, source.folder, target / MODEL, kind, name=Path(source.base).name)
    done = [*(f"the adapter {each.name} merged" for each in source.adapters), f"weights in {kind}"]
    return Made("gguf", source.base, "quantized", done)


def _load(params: ExportParams, report: Report) -> Source:
    """The model, with the adapters merged into it where there are some."""
    if params.adapters:
        merged = merged_model(params, report, None)
        return Source(merged.model, merged.base_name, merged.base, merged.adapters)
    assert params.model, "refused without one"
    import torch

    config = load_config(params.model, revision=params.model_revision, token=params.hub_token)
    if method := quantized_by(config):
        message = f"{Path(params.model).name!r} is quantised ({method}): export the model that it was made of"
        raise UnsupportedModel(message, param="model")
    report.message(f"Loading {name_of(params.model)}.")
    model = load_model(
        params.model,
        config=config,
        task_type=task_of(config),
        dtype="auto" if params.torch_dtype is None else getattr(torch, params.torch_dtype),
        device_map=device_name(0) if params.quant_method in ("gptq", "awq") else "cpu",
        revision=params.model_revision,
        token=params.hub_token,
    )
    return Source(model, params.model, model_folder(params.model, params.model_revision, params.hub_token), [])


def _adapter(params: ExportParams, report: Report, target: Path) -> Made:
    [named] = name_adapters(params.adapters).values()
    folder = fetch_adapter(named, token=params.hub_token)
    report.message(f"Writing the adapter {folder.name}.")
    (write_peft if params.to_peft_format else copy_files)(folder, target)
    try:
        base, _ = base_named_by(folder, params)
    except (InvalidRequest, InvalidAdapter):  # what is no adapter of PEFT's
        base = str(read_args(folder).get("model") or "its base model")
    return Made("adapter", base, "adapter", [f"the adapter {folder.name}"])


def _as_it_is(params: ExportParams, report: Report, target: Path) -> Made:
    assert params.model, "refused without one"
    config = load_config(params.model, revision=params.model_revision, token=params.hub_token)
    folder = Path(params.model).expanduser()
    if is_gguf(params.model):
        message = f"{folder.name!r} is a GGUF file: say in what form it is to be written, as by to_gguf"
        raise InvalidRequest(message, param="model")
    if not folder.is_dir():
        folder = _downloaded(params.model, params.model_revision, params.hub_token)
    report.message(f"Copying {folder.name}.")
    copy_files(folder, target)
    return Made("model", params.model, "finetune", ["a copy of it"], task_of(config))


def _downloaded(model: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, token=token, allow_patterns=list(FILES)))
    except hub_errors() as error:
        raise InvalidRequest(f"{model!r} cannot be had from the hub: {reason_of(error)}", param="model") from error


def _card(made: Made, name: str) -> Card:
    library, command = {
        "model": ("transformers", f"tuneserve deploy --model {shlex.quote(name)}"),
        "adapter": ("peft", f"tuneserve deploy --model {shlex.quote(made.base)} --adapters {shlex.quote(name)}"),
        "gguf": ("gguf", f"tuneserve deploy --model {shlex.quote(name)}/{MODEL}"),
    }[made.kind]
    if made.kind == "gguf" and made.relation == "adapter":
        command = f"llama-server --model ... --lora {shlex.quote(name)}/{ADAPTER}"
    return Card(name=name, base=made.base, relation=made.relation, library=library, made=made.done, use=command)
