"""GGUF files as models: what they hold is what the model held that they were made of."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SmolLM3Config,
)

from engines.build import build_engine
from engines.checkpoint import spans
from engines.checkpoint.gguf.blocks import KINDS, integers_from
from engines.checkpoint.gguf.file import open_gguf
from engines.checkpoint.gguf.named import name_of
from engines.checkpoint.integers import IntegersLinear
from engines.checkpoint.loading import load_config, load_generation_config, load_model, load_tokenizer
from engines.checkpoint.quantization import Quantization
from engines.errors import UnsupportedModel
from engines.params.deploy import DeployParams
from tests.engines.pt.tiny import CONFIGS, SIZES, byte_level_tokenizer, save
from tests.gguf_files import ARCHITECTURES, write_gguf
from tests.training.largest import largest_tensor

IDS = torch.tensor([[3, 40, 5, 60, 7, 80, 9, 10, 110, 12, 130, 14, 15, 16, 17, 18, 19]])
TIED = SIZES | {"tie_word_embeddings": True}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    **{name: CONFIGS[name] for name in ("llama", "qwen2", "qwen3", "phi3", "granite")},
    "llama with biases": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama with tied embeddings": lambda: LlamaConfig(**TIED),
    "llama 3.1": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "qwen2 with yarn": lambda: Qwen2Config(
        **SIZES,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        },
    ),
    "gemma": lambda: GemmaConfig(**TIED, head_dim=16),
    "gemma2": lambda: Gemma2Config(
        **TIED | {"num_hidden_layers": 4},
        head_dim=8,
        sliding_window=12,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=30.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **TIED | {"num_hidden_layers": 6},
        head_dim=8,
        sliding_window=12,
        query_pre_attn_scalar=8,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "smollm3": lambda: SmolLM3Config(**SIZES | {"num_hidden_layers": 4}),
}  # fmt: skip


def model_of(config: PreTrainedConfig, folder: Path) -> Any:
    """Its attention is the one that can cap scores."""
    return AutoModelForCausalLM.from_pretrained(save(config, folder), dtype=torch.float32, attn_implementation="eager")


def loaded(file: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    return load_model(str(file), config=load_config(str(file)), dtype=dtype, device_map="cpu", **more)


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_file_says_what_the_model_says(family: str, tmp_path: Path) -> None:
    model = model_of(FAMILIES[family](), tmp_path)
    write_gguf(model, tmp_path / "model.gguf")
    torch.testing.assert_close(logits(loaded(tmp_path / "model.gguf")), logits(model), rtol=1e-4, atol=1e-4)


SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
"""Where the blocks of each type have numbers of 16 bits."""


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_integers_stand_for_what_their_blocks_stand_for(kind: str) -> None:
    random = numpy.random.default_rng(0)
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = random.integers(0, 256, (5, 3, size), dtype=numpy.uint8)
    for place in SCALES[kind]:
        halves = random.standard_normal((5, 3, 1)).astype(numpy.float16)
        blocks[:, :, place : place + 2] = halves.view(numpy.uint8)
    rows = blocks.reshape(5, -1)
    meant = torch.tensor(dequantize(rows, GGMLQuantizationType[kind]))
    torch.testing.assert_close(integers_from(kind, torch.tensor(rows)).weights(), meant, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(("kind", "keeps"), [("Q8_0", True), ("Q4_1", True), ("F16", False), ("BF16", False)])
def test_matrices_keep_their_integers_or_are_what_these_stand_for(kind: str, keeps: bool, tmp_path: Path) -> None:
    model = model_of(LlamaConfig(**TIED | {"intermediate_size": 64}), tmp_path)
    meant = write_gguf(model, tmp_path / "model.gguf", kind)
    model.load_state_dict(meant, strict=False)
    for asked in (False, True):
        found = loaded(tmp_path / "model.gguf", keep_integers=asked)
        layers = [found.lm_head, *(each.self_attn.q_proj for each in found.model.layers)]
        assert {type(layer) is IntegersLinear for layer in layers} == {asked and keeps}
        torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["BF16", "Q4_1", "Q8_0"])
def test_some_rows_of_a_tensor_are_read_at_a_time(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, or as bytes that each hold one of its bits, all of them would take many times what comes of them."""
    write_gguf(model_of(LlamaConfig(**TIED | {"intermediate_size": 64}), tmp_path), tmp_path / "model.gguf", kind)
    whole = [loaded(tmp_path / "model.gguf", keep_integers=keep) for keep in (False, True)]
    meant = [logits(model) for model in whole]

    monkeypatch.setattr(spans, "VALUES", 256)
    file = open_gguf(str(tmp_path / "model.gguf"))
    sizes = [
        (len(rows), tensor.shape[-1]) for tensor in file.tensors.values() for _, rows in tensor.rows()
    ]  # fmt: skip
    assert max(count * width for count, width in sizes) <= 256
    for keep in (False, True):
        found = loaded(tmp_path / "model.gguf", keep_integers=keep)
        torch.testing.assert_close(logits(found), meant[keep], rtol=1e-5, atol=1e-5)
        if keep and kind != "BF16":
            with largest_tensor(torch.float32) as largest, torch.inference_mode():
                found(IDS[:, :1])
            assert largest.numel <= SIZES["vocab_size"]  # the logits, and not the weights of the head


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")]
)
def test_the_type_of_a_file_is_that_of_its_matrices(kind: str, dtype: str, tmp_path: Path) -> None:
    write_gguf(model_of(LlamaConfig(**SIZES | {"intermediate_size": 64}), tmp_path), tmp_path / "model.gguf", kind)
    assert load_config(str(tmp_path / "model.gguf")).dtype is getattr(torch, dtype)


# ---- tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return model_of(CONFIGS["llama"](), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = byte_level_tokenizer()
    found.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return found


def test_texts_are_encoded_as_the_models_tokenizer_encodes_them(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "model.gguf", tokenizer=tokenizer)
    found = load_tokenizer(str(tmp_path / "model.gguf"))
    for text in ("the red and 1020 'blue'", "  two  spaces\n\n", "déjà 你好 🙂", "<bos>hi<eos>", ""):
        assert found(text).input_ids == tokenizer(text).input_ids
        assert found.decode(found(text).input_ids) == text
    assert (found.bos_token, found.eos_token) == ("<bos>", "<eos>")
    assert found.chat_template == tokenizer.chat_template
    assert found.model_max_length == 128


@pytest.mark.parametrize("begins", [False, True])
def test_texts_begin_with_the_first_token_where_the_file_says_so(
    begins: bool, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    write_gguf(model, tmp_path / "model.gguf", tokenizer=tokenizer, tokenizer__ggml__add_bos_token=begins)
    found = load_tokenizer(str(tmp_path / "model.gguf"))
    assert found("the").input_ids == [0] * begins + tokenizer("the").input_ids


def test_answers_end_at_every_end_that_the_file_names(model: Any, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "model.gguf", tokenizer__ggml__eot_token_id=7)
    assert load_generation_config(str(tmp_path / "model.gguf")).eos_token_id == [1, 7]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("/models/SmolLM2-135M-Instruct-Q8_0.gguf", "SmolLM2-135M-Instruct-Q8_0"),
        ("out/SmolLM2-135M-Instruct-gguf-q8_0/model.gguf", "SmolLM2-135M-Instruct-gguf-q8_0"),
        ("model.gguf", "model"),
        ("run/checkpoint-45/", "checkpoint-45"),
    ],
)
def test_a_file_that_is_called_model_has_the_name_of_its_folder(model: str, name: str) -> None:
    assert name_of(model) == name


# ---- what is refused


def refused(file: Path, load: Callable[[str], Any] = load_config) -> str:
    with pytest.raises(UnsupportedModel) as error:
        load(str(file))
    assert error.value.param == "model" and error.value.message.startswith(f"{file.name!r} ")
    return error.value.message


def test_other_files_are_refused_by_their_name(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    assert "No such file" in refused(file)
    file.touch()
    assert "it is empty" in refused(file)
    file.write_bytes(b"PK\x03\x04 what is this")
    assert "does not begin as one" in refused(file, load_tokenizer)
    file.write_bytes(b"GGUF" + struct.pack("<I", 1))
    assert "its version is 1" in refused(file)


def test_a_file_is_refused_wherever_it_ends_too_early(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(model, file)
    whole = file.read_bytes()
    for length in (*range(4, 2000, 97), len(whole) // 2, len(whole) - 64):
        file.write_bytes(whole[:length])
        assert "not a whole GGUF file" in refused(file)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"general__type": "adapter"}, "holds no model, but what llama.cpp calls 'adapter'"),
        ({"split__count": 2}, "llama-gguf-split --merge"),
        ({"llama__expert_count": 4}, "a mixture of experts"),
        ({"llama__rope__scaling__type": "spiral"}, "in a way that is not read here: spiral"),
    ],
)
def test_what_is_no_such_model_is_refused(said: dict[str, Any], reason: str, model: Any, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "model.gguf", **said)
    assert reason in refused(tmp_path / "model.gguf")


def test_other_architectures_are_refused_with_those_that_are_known(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "llama", "xverse")
    write_gguf(model, tmp_path / "model.gguf")
    assert "of the architecture xverse: GGUF files are read of llama, qwen2" in refused(tmp_path / "model.gguf")


def test_a_tokenizer_that_splits_in_a_way_that_is_not_known_is_refused(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gguf.GGUFWriter.add_tokenizer_pre", lambda self, _: self.add_string("tokenizer.ggml.pre", "x"))
    write_gguf(model, tmp_path / "model.gguf", tokenizer=tokenizer)
    assert "splits texts as x; known are" in refused(tmp_path / "model.gguf", load_tokenizer)


def test_a_file_without_a_layers_weights_is_refused(model: Any, tmp_path: Path) -> None:
    taken = model.state_dict()
    del taken["model.layers.1.mlp.up_proj.weight"]

    class Without:
        config = model.config

        def state_dict(self) -> dict[str, Tensor]:
            return taken

    write_gguf(Without(), tmp_path / "model.gguf")
    assert "has no weights for model.layers.1.mlp.up_proj.weight" in refused(tmp_path / "model.gguf", lambda _: loaded(
        tmp_path / "model.gguf"))  # fmt: skip


def test_it_is_not_quantised_again(model: Any, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "model.gguf")
    with pytest.raises(UnsupportedModel, match="keeps its own types") as error:
        loaded(tmp_path / "model.gguf", quantization=Quantization(method="torchao", bits=8))
    assert error.value.param == "quant_method"


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
def test_engines_that_do_not_read_it_refuse_it_by_its_name(engine: Any) -> None:
    with pytest.raises(UnsupportedModel, match=rf"'tiny\.gguf' is a GGUF file, which {engine} does not read: pt does"):
        build_engine(DeployParams(model="/models/tiny.gguf", infer_backend=engine), several_owners=False)
