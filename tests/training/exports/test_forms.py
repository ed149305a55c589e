"""A model that was exported is loaded again by what reads it, and says what the model said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.checkpoint.loading import load_config, load_model, load_tokenizer
from engines.checkpoint.quantization import Quantization
from engines.errors import InvalidAdapter, InvalidRequest, TuneserveError, UnsupportedModel
from tests.engines.pt.adapters import save_adapter
from tests.engines.pt.tiny import CONFIGS, byte_level_tokenizer, save
from tests.hqq import importable
from tests.training.jobs import TEMPLATE, make_data, make_job
from training.folder import JobFolder
from training.params.export import ExportParams
from training.pipelines import export
from training.refusals.supported import refusals
from training.report import Report

IDS = torch.tensor([[3, 40, 5, 60, 7, 80], [9, 10, 110, 12, 130, 14]])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models, an adapter of the one that is called llama, and data."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("llama", "qwen2", "gpt2"):
        save(CONFIGS[name](), folder / name)
        tokenizer = byte_level_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / name)
    save_adapter(folder / "llama", folder / "adapter", rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3})
    make_data(folder / "rows.jsonl", rows=24)
    return folder


Export = Callable[..., Path]


@pytest.fixture
def exported(given: Path, tmp_path: Path) -> Export:
    """Run an export as a job, and return the result's folder. Names are those of what is given."""

    def run(model: str | None = "llama", kind: str = "model", **params: Any) -> Path:
        asked = params | ({} if model is None else {"model": str(given / model)})
        for name in asked.keys() & {"adapters", "dataset"}:
            asked[name] = [str(given / each) for each in asked[name]]
        job = make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", "export", **asked)
        assert refusals(job.read_task()) == []
        result = export.run(params_of(job), Report(job))
        assert (result.status, result.kind) == ("succeeded", kind)
        return job.path / str(result.artifact)

    return run


def params_of(job: JobFolder) -> ExportParams:
    params = job.read_task().params
    assert isinstance(params, ExportParams)
    return params


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()


def loaded(folder: Path, **settings: Any) -> Any:
    config = load_config(str(folder))
    return load_model(str(folder), config=config, dtype=torch.float32, device_map="cpu", **settings)


def change(found: Tensor, truth: Tensor) -> float:
    """How far what the model says has moved, in parts of how far its answers lie apart."""
    return ((found - truth).norm() / truth.norm()).item()


def adapted(given: Path, adapter: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(given / "llama", dtype=torch.float32)
    return logits(PeftModel.from_pretrained(model, adapter).eval())


# ---- merged, and as it is


def test_an_adapter_is_merged_first(given: Path, exported: Export) -> None:
    folder = exported(adapters=["adapter"], merge_lora=True)
    assert change(logits(loaded(folder)), adapted(given, given / "adapter")) < 1e-4
    assert "the adapter adapter merged" in (folder / "README.md").read_text()
    assert (folder / "tokenizer.json").is_file()


def test_an_adapter_in_the_form_of_swifts_tuners_becomes_one_of_pefts(
    given: Path, exported: Export, tmp_path: Path
) -> None:
    adapter, swift = given / "adapter", given / "swift"
    (swift / "default").mkdir(parents=True)
    config = json.loads((adapter / CONFIG).read_text()) | {"swift_type": "LORA", "lora_dtype": None}
    (swift / "default" / CONFIG).write_text(json.dumps(config))
    tensors = load_file(adapter / WEIGHTS)
    names = {name: name.removeprefix("base_model.model.").replace(".weight", ".default.weight") for name in tensors}
    save_file({names[name]: tensor for name, tensor in tensors.items()}, swift / "default" / WEIGHTS)

    for source in ("adapter", "swift"):
        folder = exported(None, "adapter", adapters=[source], to_peft_format=True)
        assert change(adapted(given, folder), adapted(given, adapter)) < 1e-6
        assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS, "README.md"}


def test_what_peft_has_no_place_for_is_refused(given: Path, exported: Export, tmp_path: Path) -> None:
    (given / "odd" / "default").mkdir(parents=True)
    (given / "odd" / "default" / CONFIG).write_text(json.dumps({"swift_type": "SIDE"}))
    with pytest.raises(InvalidAdapter, match="'SIDE'"):
        exported(None, adapters=["odd"], to_peft_format=True)


# ---- quantised


OURS: dict[str, Any] = {"dataset": ["rows.jsonl"], "group_size": 16}


@pytest.mark.parametrize(("method", "bits"), [("bnb", 4), ("bnb", 8), ("torchao", 4), ("torchao", 8)])
def test_what_a_library_has_quantised_is_what_it_is_while_it_is_loaded(
    given: Path, exported: Export, method: Any, bits: int
) -> None:
    folder = exported(quant_method=method, quant_bits=bits)
    truth = logits(loaded(given / "llama", quantization=Quantization(method=method, bits=bits)))
    assert change(logits(loaded(folder)), truth) == 0


@pytest.mark.parametrize(("bits", "axis"), [(4, 1), (3, 0)])
def test_what_hqq_has_quantised_is_read_without_it(given: Path, exported: Export, bits: int, axis: int) -> None:
    with importable():
        folder = exported(quant_method="hqq", quant_bits=bits, hqq_axis=axis)
        truth = logits(loaded(given / "llama", quantization=Quantization(method="hqq", bits=bits, axis=axis)))
    assert change(logits(loaded(folder)), truth) < 1e-5
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "hqq"


@pytest.mark.parametrize(("method", "most"), [("fp8", 0.04), ("w8a8", 0.01)])
def test_weights_of_eight_bits_are_nearly_what_they_were(
    given: Path, exported: Export, method: str, most: float
) -> None:
    pytest.importorskip("compressed_tensors")
    found, truth = (loaded(folder).state_dict() for folder in (exported(quant_method=method), given / "llama"))
    for name in (f"model.layers.1.{part}.weight" for part in ("self_attn.k_proj", "mlp.down_proj")):
        assert 0 < change(found[name], truth[name]) < most
    assert torch.equal(found["lm_head.weight"], truth["lm_head.weight"])


def unpacked(folder: Path) -> dict[str, Tensor]:
    """The weights that a checkpoint of GPTQ or AWQ stands for, read as its form is described."""
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = load_file(folder / "model.safetensors")
    found = {}
    for name in [name for name in tensors if name.endswith(".qweight")]:
        path, bits = name.removesuffix(".qweight"), said["bits"]
        words, zeros, scales = (tensors[f"{path}.{end}"] for end in ("qweight", "qzeros", "scales"))
        places, order = torch.arange(32 // bits) * bits, [0, 4, 1, 5, 2, 6, 3, 7]
        spread = (zeros[..., None].long() >> places) & (2**bits - 1)
        if said["quant_method"] == "gptq":
            numbers = ((words[:, None].long() >> places[:, None]) & (2**bits - 1)).flatten(0, 1)
            zero = spread.flatten(1) + 1
        else:
            numbers = ((words[..., None].long() >> places) & 15)[..., order].flatten(1)
            zero = spread[..., order].flatten(1)
        group = torch.arange(len(numbers)) // (len(numbers) // len(scales))
        found[f"{path}.weight"] = (scales.float()[group] * (numbers - zero[group])).T
        for end in ("qweight", "qzeros", "scales", "g_idx"):
            tensors.pop(f"{path}.{end}", None)
    return found | {name: tensor.float() for name, tensor in tensors.items()}


def told_by(folder: Path, given: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(given / "llama", dtype=torch.float32)
    model.load_state_dict(unpacked(folder))
    return logits(model.eval())


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({"quant_method": "gptq", "quant_bits": 8, "quant_batch_size": 5}, 0.1),
        ({"quant_method": "gptq", "quant_bits": 4, "group_size": -1}, 0.7),
        ({"quant_method": "awq"}, 0.7),
    ],
    ids=["gptq-8", "gptq-4", "awq"],
)  # fmt: skip
def test_weights_that_data_has_quantised_say_nearly_the_same(
    given: Path, exported: Export, asked: dict[str, Any], most: float
) -> None:
    folder = exported(**OURS | asked)
    told = told_by(folder, given)
    assert 0 < change(told, logits(loaded(given / "llama"))) < most
    assert change(logits(loaded(folder)), told) < 1e-3  # what unpacks it to serve it, and to train on it


def test_a_group_size_that_does_not_divide_the_layers_is_refused_with_those_that_do(exported: Export) -> None:
    with pytest.raises(InvalidRequest, match=r"128 does not divide .* these do: 16, -1") as refused:
        exported(quant_method="awq", dataset=["rows.jsonl"])
    assert refused.value.param == "group_size"


def test_blocks_that_awq_does_not_know_are_refused_by_name(exported: Export) -> None:
    with pytest.raises(UnsupportedModel, match="not of gpt2"):
        exported("gpt2", quant_method="awq", **OURS)


@pytest.mark.parametrize(("method", "bits"), [("torchao", 4), ("hqq", 4), ("fp8", None), ("w8a8", None)])
def test_a_model_without_linear_layers_is_refused(exported: Export, method: str, bits: int | None) -> None:
    with importable(), pytest.raises(UnsupportedModel, match="models of type gpt2 have no"):
        exported("gpt2", quant_method=method, **({} if bits is None else {"quant_bits": bits}))


@pytest.mark.parametrize("method", ["fp8", "w8a8"])
def test_mixtures_of_experts_are_not_quantised_in_part(given: Path, exported: Export, method: str) -> None:
    save(CONFIGS["mixtral"](), given / f"mixtral-{method}")
    byte_level_tokenizer().save_pretrained(given / f"mixtral-{method}")
    with pytest.raises(UnsupportedModel, match="mixtures of experts, which are not quantised"):
        exported(f"mixtral-{method}", quant_method=method)


# ---- GGUF


@pytest.mark.parametrize(("model", "file", "most"), [
    ("llama", "f32", 1e-5), ("qwen2", "f32", 1e-5), ("llama", "bf16", 0.05),
])  # fmt: skip
def test_a_gguf_file_says_what_the_model_says(
    given: Path, exported: Export, model: str, file: str, most: float
) -> None:
    folder = exported(model, "gguf", to_gguf=file)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    assert change(logits(read), logits(loaded(given / model))) < most
    assert change(logits(loaded(folder / "model.gguf")), logits(read)) < 1e-5
    assert load_tokenizer(str(folder / "model.gguf")).chat_template == TEMPLATE


@pytest.mark.parametrize(("file", "most"), [("f16", 1e-3), ("q8_0", 0.05), ("q5_1", 0.5), ("q4_0", 1.0)])
def test_a_gguf_file_is_served_and_exported_again(given: Path, exported: Export, file: str, most: float) -> None:
    folder = exported("llama", "gguf", to_gguf=file)
    found = logits(loaded(folder / "model.gguf", keep_integers=True))
    moved = change(found, logits(loaded(given / "llama")))
    assert moved < most and (moved == 0) == (file == "f16")  # which has every digit of these weights
    again = exported(str(folder / "model.gguf"), "gguf", to_gguf="f32", torch_dtype="float32")
    assert change(logits(loaded(again / "model.gguf")), found) < 1e-5
    assert load_tokenizer(str(again / "model.gguf")).chat_template == TEMPLATE


def test_an_adapter_of_gguf_is_what_peft_would_add(given: Path, exported: Export) -> None:
    from gguf import GGUFReader, dequantize

    folder = exported(None, "gguf", adapters=["adapter"], to_gguf="f32")
    found = {each.name: torch.tensor(dequantize(each.data, each.tensor_type)) for each in
             GGUFReader(folder / "adapter.gguf").tensors}  # fmt: skip
    tensors = load_file(given / "adapter" / WEIGHTS)
    prefix = "base_model.model.model.layers.1.self_attn.{}_proj.lora_{}.weight"
    for part, name, scale in (("o", "output", 8 / 4), ("v", "v", 3 / 4), ("q", "q", 8 / 2)):
        update = found[f"blk.1.attn_{name}.weight.lora_b"] @ found[f"blk.1.attn_{name}.weight.lora_a"]
        meant = scale * tensors[prefix.format(part, "B")] @ tensors[prefix.format(part, "A")]
        if part == "q":  # four heads, whose halves llama.cpp has interleaved
            update = update.view(4, -1, 2, 32).transpose(1, 2).reshape(meant.shape)
        torch.testing.assert_close(update, meant)


@pytest.mark.parametrize(
    ("model", "asked", "said"),
    [
        ("gpt2", {"to_gguf": "f16"}, "not of GPT2LMHeadModel"),
        ("llama", {"to_gguf": "q4_k_m"}, "llama-quantize model.gguf out.gguf q4_k_m"),
    ],
)
def test_what_no_gguf_file_can_be_made_of_is_refused_by_name(
    exported: Export, monkeypatch: pytest.MonkeyPatch, model: str, asked: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("training.exports.gguf.types.library", lambda: None)
    with pytest.raises(UnsupportedModel, match=said):
        exported(model, "gguf", **asked)


def test_ollama_gets_a_model_an_adapter_and_the_template(exported: Export) -> None:
    folder = exported("llama", "gguf", adapters=["adapter"], to_ollama=True)
    assert {path.name for path in folder.iterdir()} == {"model.gguf", "adapter.gguf", "Modelfile", "README.md"}
    said = (folder / "Modelfile").read_text()
    assert said.startswith("FROM ./model.gguf\nADAPTER ./adapter.gguf\nTEMPLATE")
    assert '{{ "<user>" }}{{ .Content }}{{ "<eos>\\n<assistant>" }}' in said


# ---- what is left behind


def test_an_export_that_fails_leaves_nothing_half_written(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "job", "export", model=str(given / "llama"), to_gguf="f16", to_ollama=True)
    monkeypatch.setattr("training.pipelines.export.write_model", broken)
    with pytest.raises(TuneserveError, match="the disk"):
        export.run(params_of(job), Report(job))
    assert sorted(path.name for path in job.path.iterdir()) == ["events.jsonl", "task.json"]


def broken(*_: Any, **__: Any) -> None:
    raise TuneserveError("the disk")
