"""Models whose weights are quantised while they are loaded, and what is refused before."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from torchao.quantization import quantize_
from transformers import LlamaConfig

from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import Quantization, quantization_conflicts, quantization_of
from engines.checkpoint.quantize import let_go_of_file
from engines.errors import UnsupportedModel
from engines.params.quantization import QuantizationParams
from tests.engines.pt.tiny import CONFIGS, save
from tests.plain_weights import plain_layers

WAYS = {
    "nf4": {"quant_method": "bnb", "quant_bits": 4},
    "fp4": {"quant_method": "bnb", "quant_bits": 4, "bnb_4bit_quant_type": "fp4"},
    "nf4 without double quantisation": {"quant_method": "bnb", "quant_bits": 4, "bnb_4bit_use_double_quant": False},
    "nf4 kept as bfloat16": {"quant_method": "bnb", "quant_bits": 4, "bnb_4bit_quant_storage": "bfloat16"},
    "bnb with 8 bits": {"quant_method": "bnb", "quant_bits": 8},
    "torchao with 8 bits": {"quant_method": "torchao", "quant_bits": 8},
    "torchao with 4 bits": {"quant_method": "torchao", "quant_bits": 4},
}
IDS = torch.arange(16)[None]
MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CONFIGS["llama"](), tmp_path_factory.mktemp("model"))


def loaded(model: Path, dtype: torch.dtype = torch.float32, **given: Any) -> Any:
    quantization = quantization_of(QuantizationParams(**given))
    return load_model(
        str(model), config=load_config(str(model)), dtype=dtype, device_map="cpu", quantization=quantization
    )


def wide(folder: Path) -> Path:
    sizes = CONFIGS["llama"]().to_dict() | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    return save(LlamaConfig.from_dict(sizes), folder)


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_quantised_model_answers_nearly_as_it_did(model: Path, way: str) -> None:
    plain, quantised = logits(loaded(model)), logits(loaded(model, **WAYS[way]))
    off = float((quantised - plain).norm() / plain.norm())
    assert 0 < off < (0.1 if WAYS[way]["quant_bits"] == 8 else 1.0)  # random weights suffer far more than learned ones


@pytest.mark.parametrize("way", WAYS)
def test_head_and_embeddings_stay_as_they_are(model: Path, way: str) -> None:
    plain, quantised = loaded(model), loaded(model, **WAYS[way])
    assert quantised.lm_head.weight.equal(plain.lm_head.weight)
    assert quantised.get_input_embeddings().weight.equal(plain.get_input_embeddings().weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_are_quantised_as_they_are_read(model: Path, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the plain weights of the whole model are never there together."""
    plain: list[int] = []

    def watched(*given: Any, **more: Any) -> None:
        plain.append(plain_layers() - before)
        quantize_(*given, **more)

    monkeypatch.setattr("torchao.quantization.quantize_", watched)
    gc.collect()
    before = plain_layers()
    loaded(model, quant_method="torchao", quant_bits=bits)
    assert len(plain) == 14 and max(plain) <= 2  # the layer itself, and the head


def test_the_linear_layers_of_an_nf4_model_take_less_than_0_35_of_their_memory_in_bfloat16(tmp_path: Path) -> None:
    plain, quantised = loaded(wide(tmp_path)), loaded(tmp_path, **WAYS["nf4"])
    in_bfloat16 = 2 * sum(layer.weight.numel() for layer in linears(plain))
    assert sum(map(size_of, linears(quantised))) <= 0.35 * in_bfloat16


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not say what is mapped")
@pytest.mark.parametrize("way", ["nf4", "bnb with 8 bits", "torchao with 8 bits"])
def test_the_file_that_weights_were_quantised_from_stays_nowhere_in_memory(tmp_path: Path, way: str) -> None:
    kept = loaded(wide(tmp_path), **WAYS[way])
    gc.collect()

    assert kept.get_input_embeddings().weight.shape
    assert str(tmp_path) not in MAPS.read_text()


@pytest.mark.parametrize("way", ["nf4", "torchao with 8 bits"])
def test_weights_that_lie_in_no_file_are_copied_no_more(model: Path, way: str) -> None:
    kept = loaded(model, **WAYS[way]).get_input_embeddings()
    lies = kept.weight.data_ptr()
    let_go_of_file(kept)
    assert kept.weight.data_ptr() == lies


def linears(model: Any) -> Iterator[Any]:
    return (module for module in model.model.modules() if isinstance(module, torch.nn.Linear))


def size_of(layer: Any) -> int:
    """Bytes of a layer of bitsandbytes: its weight, and the scales that it needs besides."""
    state = layer.weight.quant_state
    scales = [state.absmax, state.code, *([state.state2.absmax, state.state2.code] if state.nested else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in (layer.weight, *scales))


def test_what_is_saved_after_an_evaluation_is_what_was_loaded_without_double_quantisation_too(tmp_path: Path) -> None:
    """bitsandbytes would pack such weights for the CPU in an evaluation, and could not undo it."""
    given = WAYS["nf4 without double quantisation"]
    quantised = loaded(wide(tmp_path / "model"), dtype=torch.bfloat16, **given)
    before = logits(quantised)
    quantised.save_pretrained(tmp_path / "saved")
    assert logits(quantised).equal(before)
    assert logits(loaded(tmp_path / "saved", dtype=torch.bfloat16)).equal(before)


def test_a_description_crosses_to_another_process() -> None:
    quantization = Quantization(method="bnb", bits=4, storage="bfloat16")
    packed = msgspec.msgpack.encode(quantization)
    assert msgspec.msgpack.decode(packed, type=Quantization) == quantization


@pytest.mark.parametrize(
    ("given", "refused", "reason"),
    [
        ({"quant_method": "eetq", "quant_bits": 8}, "quant_method", "no package of EETQ"),
        ({"quant_method": "bnb"}, "quant_method", "quant_bits 4 or 8"),
        ({"quant_method": "bnb", "quant_bits": 3}, "quant_bits", "bnb has 4 or 8, not 3"),
        ({"quant_method": "torchao", "quant_bits": 2}, "quant_bits", "torchao has 4 or 8, not 2"),
        ({"quant_method": "hqq", "quant_bits": 5}, "quant_bits", "hqq has 2, 3, 4 or 8, not 5"),
        ({"quant_method": "hqq", "quant_bits": 4}, "quant_method", "pip install 'tuneserve[hqq]'"),
        ({"quant_bits": 4}, "quant_bits", "give quant_method too"),
        ({"quant_method": "bnb", "quant_bits": 4, "hqq_axis": 1}, "hqq_axis", "only quant_method hqq"),
        ({"quant_method": "bnb", "quant_bits": 8, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type", "quant_bits 4"),
        ({"bnb_4bit_compute_dtype": "float32"}, "bnb_4bit_compute_dtype", "quant_method bnb with quant_bits 4"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], refused: str, reason: str
) -> None:
    monkeypatch.setattr("engines.checkpoint.quantization.find_spec", lambda name: None if name == "hqq" else object())
    found = dict(quantization_conflicts(QuantizationParams(**given)))
    assert reason in found[refused]


def test_a_forward_pass_in_8_bits_writes_nothing_into_the_log(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits(loaded(model, quant_method="bnb", quant_bits=8))
    assert caplog.records == []


def test_a_model_that_is_quantised_already_is_not_quantised_again(model: Path, tmp_path: Path) -> None:
    loaded(model, **WAYS["nf4"]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"quantised already \(bitsandbytes\)"):
        loaded(tmp_path, **WAYS["nf4"])


def test_without_its_package_the_message_says_how_to_install_it(model: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"pip install 'tuneserve\[hqq\]'") as refused:
        loaded(model, quant_method="hqq", quant_bits=4)
    assert refused.value.param == "quant_method"


def test_parameters_say_nothing_of_quantising_unless_asked() -> None:
    assert quantization_of(QuantizationParams()) is None
    assert not quantization_conflicts(QuantizationParams())
    assert not quantization_conflicts(QuantizationParams(**WAYS["nf4"]))
