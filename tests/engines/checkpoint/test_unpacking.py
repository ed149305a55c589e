"""Checkpoints of GPTQ, AWQ and HQQ are read as the plain models that they stand for, or refused by name."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engines.checkpoint.integers import integers_of
from engines.checkpoint.loading import load_config, load_model
from engines.errors import UnsupportedModel
from tests.engines.pt.tiny import CONFIGS, save
from tests.packed import Packing
from tests.packed_by_hqq import HqqPacking
from tests.quantized_folders import SAVED, save_packed, say_quantized

PACKINGS = {
    "gptq": Packing(),
    "gptq with 8 bits": Packing(bits=8),
    "gptq, asymmetric": Packing(symmetric=False),
    "gptq of 8 bits by activations, asymmetric": Packing(bits=8, symmetric=False, act_order=True),
    "gptq_v2 by activations": Packing(layout="gptq_v2", act_order=True),
    "gptq_v2, asymmetric, a scale for each row": Packing(layout="gptq_v2", symmetric=False, group=-1),
    "awq": Packing(method="awq", layout="gemm", symmetric=False, group=8),
}
IDS = torch.arange(16)[None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save(CONFIGS[family](), tmp_path_factory.mktemp(family))
        return made[family]

    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    given = {"config": load_config(str(folder)), "dtype": dtype, "device_map": "cpu"} | more
    return load_model(str(folder), **given)


def change(folder: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write other tensors into the folder."""
    tensors = changed(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("packing", PACKINGS)
def test_its_weights_are_those_that_the_packed_ones_stand_for(
    packing: str, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    meant = save_packed(plain("llama"), tmp_path / "packed", PACKINGS[packing])
    found = loaded(tmp_path / "packed").state_dict()
    assert found.keys() == meant.keys()
    assert all(torch.equal(found[name], meant[name]) for name in meant)
    assert not torch.equal(meant["model.layers.0.mlp.up_proj.weight"], load_weight(plain("llama")))


def load_weight(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "mixtral", "qwen3-moe"])
def test_layers_that_lie_the_other_way_round_have_biases_or_are_experts_are_unpacked_too(
    family: str, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    packing = Packing(symmetric=False, act_order=True, group=8, turned=family == "gpt2")
    meant = save_packed(plain(family), tmp_path / "packed", packing)
    save_file(meant, shutil.copytree(plain(family), tmp_path / "meant") / "model.safetensors", {"format": "pt"})
    unpacked = loaded(tmp_path / "packed")
    found, expected = unpacked.state_dict(), loaded(tmp_path / "meant").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    unpacked.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == meant.keys()
    assert all(torch.equal(saved[name], meant[name]) for name in meant)


def test_what_it_is_saved_as_is_a_plain_model(plain: Callable[[str], Path], tmp_path: Path) -> None:
    save_packed(plain("llama"), tmp_path / "packed", PACKINGS["awq"])
    unpacked = loaded(tmp_path / "packed", torch.bfloat16)
    unpacked.save_pretrained(tmp_path / "saved")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert alone.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(alone(input_ids=IDS).logits, unpacked(input_ids=IDS).logits)


def test_the_log_says_what_memory_the_unpacked_weights_take(
    plain: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_packed(plain("llama"), tmp_path / "packed", PACKINGS["gptq"])
    with caplog.at_level(logging.INFO, "engines.checkpoint.loading"):
        loaded(tmp_path / "packed", torch.bfloat16)
    assert "is packed by gptq, and was unpacked to bfloat16: its weights take 0.0 GiB" in caplog.text


def test_a_zero_of_zero_has_borrowed_from_the_next_one_in_the_first_layout(
    plain: Callable[[str], Path], tmp_path: Path
) -> None:
    """As weights of one sign have it."""
    positive = save(CONFIGS["llama"](), tmp_path / "positive")
    change(positive, lambda tensors: {name: tensor.abs() for name, tensor in tensors.items()})
    packing = PACKINGS["gptq, asymmetric"]
    meant = save_packed(positive, tmp_path / "packed", packing)
    found = loaded(tmp_path / "packed").state_dict()
    assert all(torch.equal(found[name], meant[name]) for name in meant)


def test_where_inputs_are_in_order_a_file_may_leave_out_which_group_they_are_of_or_say_nothing_but_zeros(
    plain: Callable[[str], Path], tmp_path: Path
) -> None:
    for number, change_one in enumerate((lambda tensor: None, torch.zeros_like)):
        folder = tmp_path / str(number)
        meant = save_packed(plain("llama"), folder, PACKINGS["gptq"])

        def changed(tensors: dict[str, Any], change_one: Any = change_one) -> dict[str, Any]:
            found = {name: change_one(one) if "g_idx" in name else one for name, one in tensors.items()}
            return {name: one for name, one in found.items() if one is not None}

        change(folder, changed)
        found = loaded(folder).state_dict()
        assert all(torch.equal(found[name], meant[name]) for name in meant)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "unpacked from gptq and gptq_v2, not from marlin"),
        ({"quant_method": "gptq", "is_marlin_format": True}, "not from marlin"),
        ({"quant_method": "awq", "version": "gemv"}, "weights of awq are unpacked from gemm, not from gemv"),
        ({"quant_method": "awq", "backend": "llm-awq", "version": "gemm"}, "not from llm-awq"),
    ],
    ids=str,
)
def test_layouts_that_are_not_known_are_refused_by_name(
    told: dict[str, Any], reason: str, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    save_packed(plain("llama"), tmp_path / "packed", PACKINGS["gptq"])
    say_quantized(tmp_path / "packed", told)
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        loaded(tmp_path / "packed")
    assert refused.value.param == "model"


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no zeros": (
        lambda tensors: {name: one for name, one in tensors.items() if "up_proj.qzeros" not in name},
        "cannot be unpacked",
    ),
    "nothing of a layer": (
        lambda tensors: {name: one for name, one in tensors.items() if "1.mlp.up_proj" not in name},
        r"there is no model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "scales of another layer": (
        lambda tensors: tensors | {"model.layers.0.mlp.up_proj.scales": torch.ones(5, 48).half()},
        "cannot be unpacked",
    ),
    "three bits": (
        lambda tensors: tensors | {"model.layers.0.mlp.up_proj.qzeros": torch.ones(2, 5).int()},
        "cannot be unpacked",
    ),
    "scaled activations": (
        lambda tensors: tensors | {"model.layers.0.mlp.act.scales": torch.ones(48).half()},
        "activations .* are scaled, too",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_make_a_whole_model_is_refused(damage: str, plain: Callable[[str], Path], tmp_path: Path) -> None:
    changed, reason = DAMAGES[damage]
    save_packed(plain("llama"), tmp_path / "packed", PACKINGS["gptq"])
    change(tmp_path / "packed", changed)
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        loaded(tmp_path / "packed")
    assert refused.value.param == "model"


def test_fp8_whose_scales_have_other_names_is_refused_by_them(plain: Callable[[str], Path], tmp_path: Path) -> None:
    SAVED["fp8"](plain("llama"), tmp_path / "packed")
    change(
        tmp_path / "packed", lambda tensors: {name.replace("_scale_inv", "_scale"): tensors[name] for name in tensors}
    )
    with pytest.raises(UnsupportedModel, match=r"weight_scale has another name than weight_scale_inv") as refused:
        loaded(tmp_path / "packed")
    assert refused.value.param == "model"


def test_scales_of_inputs_are_left_with_the_packing(plain: Callable[[str], Path], tmp_path: Path) -> None:
    """As a checkpoint has them whose inputs share one scale."""
    meant = SAVED["compressed-tensors in fp8, a scale for each weight"](plain("llama"), tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    group["input_activations"] = group["weights"] | {"dynamic": False}
    config["quantization_config"]["kv_cache_scheme"] = group["weights"] | {"dynamic": False}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    scale = torch.tensor([0.5])
    layers = [name.removesuffix("weight") for name in meant if name.endswith("_proj.weight")]
    cached = {f"model.layers.{n}.self_attn.{one}_scale": scale.clone() for n in range(2) for one in "kv"}
    change(
        tmp_path / "packed",
        lambda tensors: tensors | cached | {f"{layer}input_scale": scale.clone() for layer in layers},
    )
    found = loaded(tmp_path / "packed")
    assert found.state_dict().keys() == meant.keys()
    assert all(torch.equal(found.state_dict()[name], meant[name]) for name in meant)


@pytest.mark.parametrize("form", ["gptq", "awq", "fp8", "hqq"])
def test_its_shapes_are_known_without_its_weights(form: str, plain: Callable[[str], Path], tmp_path: Path) -> None:
    """As vLLM's engine asks for the head of a model that classifies."""
    SAVED[form](plain("llama"), tmp_path / "packed")
    shapes = loaded(tmp_path / "packed", device_map="meta").state_dict()
    assert {name: one.shape for name, one in shapes.items()} == {
        name: one.shape for name, one in load_file(plain("llama") / "model.safetensors").items()
    }


KEPT = {
    **dict.fromkeys(
        ["gptq", "gptq with 8 bits", "gptq, asymmetric", "gptq_v2, asymmetric, a scale for each row", "awq"], True
    ),
    "gptq of 8 bits by activations, asymmetric": False,
    "gptq_v2 by activations": False,
}
"""Whether the kernel for integers has a place for them."""


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_integers_that_are_kept_stand_for_the_weights(
    packing: str, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    meant = save_packed(plain("llama"), tmp_path / "packed", PACKINGS[packing])
    found = loaded(tmp_path / "packed", keep_integers=True)
    layers = {path: layer for path, layer in found.named_modules() if "integers" in vars(layer)}
    assert len(layers) == 7 * found.config.num_hidden_layers
    for path, layer in layers.items():
        kept = integers_of(layer)
        assert (kept is not None) == KEPT[packing]
        assert kept is None or torch.equal(kept.weights(), meant[f"{path}.weight"])


COMPRESSED = ["4 bits", "4 bits and zeros", "8 bits", "8 bits, inputs too"]
"""Integers, as compressed-tensors saves them: packed into words but for the last."""


@pytest.mark.parametrize("form", COMPRESSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_do_those_of_compressed_tensors_whatever_type_the_weights_were_unpacked_to(
    form: str, dtype: torch.dtype, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    meant = SAVED[f"compressed-tensors with {form}"](plain("llama"), tmp_path / "packed")
    found = loaded(tmp_path / "packed", dtype, keep_integers=True)
    layers = {path: layer for path, layer in found.named_modules() if "integers" in vars(layer)}
    assert layers
    for path, layer in layers.items():
        kept = integers_of(layer)
        assert kept is not None
        torch.testing.assert_close(kept.weights(), meant[f"{path}.weight"], rtol=2**-7, atol=0)


@pytest.mark.parametrize("form", COMPRESSED)
def test_layers_of_compressed_tensors_whose_integers_are_kept_are_never_unpacked(
    form: str, plain: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SAVED[f"compressed-tensors with {form}"](plain("llama"), tmp_path / "packed")
    from compressed_tensors.compressors import BaseCompressor

    decompress_module, seen = BaseCompressor.decompress_module.__func__, list[Any]()

    def watched(kind: type, layer: Any) -> None:
        seen.append(layer)
        decompress_module(kind, layer)

    monkeypatch.setattr(BaseCompressor, "decompress_module", classmethod(watched))
    loaded(tmp_path / "packed", keep_integers=True)
    assert not seen
    loaded(tmp_path / "packed")
    assert seen, "this is how they are unpacked"


# ---- HQQ


BY_HQQ = {
    "4 bits": HqqPacking(),
    "2 bits in groups that go on in the next row": HqqPacking(bits=2, group=32),
    "3 bits": HqqPacking(bits=3, group=8),
    "8 bits": HqqPacking(bits=8),
    "4 bits along outputs": HqqPacking(axis=0),
    "3 bits along outputs": HqqPacking(bits=3, axis=0, group=8),
}


@pytest.mark.parametrize("packing", BY_HQQ)
def test_what_hqq_has_saved_is_read_without_it(packing: str, plain: Callable[[str], Path], tmp_path: Path) -> None:
    how = BY_HQQ[packing]
    meant = save_packed(plain("llama"), tmp_path / "packed", how)
    found = loaded(tmp_path / "packed").state_dict()
    assert found.keys() == meant.keys()
    assert all(torch.equal(found[name], meant[name]) for name in meant)
    kept = {path: layer for path, layer in loaded(tmp_path / "packed", keep_integers=True).named_modules()
            if "integers" in vars(layer)}  # fmt: skip
    assert len(kept) == 14
    for path, layer in kept.items():
        there = integers_of(layer)
        assert (there is not None) == (how.axis == 1 and layer.in_features % how.group == 0)
        if there is not None:
            torch.testing.assert_close(there.weights(), meant[f"{path}.weight"], rtol=1e-5, atol=1e-6)


def test_experts_that_hqq_has_saved_are_put_together(plain: Callable[[str], Path], tmp_path: Path) -> None:
    meant = save_packed(plain("mixtral"), tmp_path / "packed", HqqPacking())
    loaded(tmp_path / "packed").save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == meant.keys() and all(torch.equal(saved[name], meant[name]) for name in meant)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"W_q": None}, "there is no model.layers.0.mlp.up_proj.weight"),
        ({"zero": None}, "cannot be unpacked"),
        ({"packing": torch.tensor([*b"5bit_u8"], dtype=torch.uint8)}, "cannot be unpacked"),
        ({"shape": torch.tensor([48, 31])}, "cannot be unpacked"),
    ],
    ids=["no integers", "no zeros", "packing", "shape"],
)
def test_what_is_no_layer_of_hqq_is_refused(
    changed: dict[str, Any], reason: str, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    save_packed(plain("llama"), tmp_path / "packed", HqqPacking())
    layer = "model.layers.0.mlp.up_proj."
    others = {f"{layer}{name}": tensor for name, tensor in changed.items()}
    change(
        tmp_path / "packed",
        lambda tensors: {name: each for name, each in (tensors | others).items() if each is not None},
    )
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        loaded(tmp_path / "packed")
    assert refused.value.param == "model"
