"""What an adapter's folder may hold, and how the rest is refused: by the name of the field at fault."""

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines.adapters import folder as adapter_folder
from engines.adapters.folder import content_hash, read_adapter
from engines.adapters.spec import CONFIG, MODEL_CONFIG, WEIGHTS, LoraModule
from engines.capabilities import AdapterSupport
from engines.errors import InvalidAdapter
from engines.types import Head
from tests.adapter_folders import ECHO, MODULES, lora_tensors, write_adapter

Q_PROJ, DOWN_PROJ = MODULES
EMBEDDING = "model.embed_tokens"
PREFIX = "base_model.model."


def refused(folder: Path, support: AdapterSupport = ECHO) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as error:
        read_adapter(folder, support)
    return error.value


# ---- what is read


def test_each_layer_has_its_matrices_its_rank_and_its_scale(tmp_path: Path) -> None:
    spec = read_adapter(write_adapter(tmp_path, rank=2, lora_alpha=6), ECHO)
    assert spec.linears == {
        path: LoraModule(a=f"{PREFIX}{path}.lora_A.weight", b=f"{PREFIX}{path}.lora_B.weight", rank=2, scale=3.0)
        for path in MODULES
    }
    assert (spec.rank, spec.base_model, spec.embeddings, spec.saved) == (2, "tests/echo", {}, {})
    assert spec.num_bytes == (tmp_path / WEIGHTS).stat().st_size


def test_rank_stabilised_lora_divides_by_the_root_of_the_rank(tmp_path: Path) -> None:
    spec = read_adapter(write_adapter(tmp_path, rank=4, lora_alpha=6, use_rslora=True), ECHO)
    assert spec.linears[Q_PROJ].scale == 3.0


def test_the_settings_that_peft_writes_and_that_are_neutral_are_let_through(tmp_path: Path) -> None:
    neutral: dict[str, Any] = {
        "use_dora": False, "lora_bias": False, "bias": "none", "use_qalora": False, "layer_replication": None,
        "alora_invocation_tokens": None, "target_parameters": None, "trainable_token_indices": None,
        "arrow_config": None, "init_lora_weights": True, "lora_dropout": 0.1, "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "down_proj"], "modules_to_save": None, "inference_mode": True,
        "rank_pattern": {}, "alpha_pattern": {}, "megatron_config": None, "a_setting_of_tomorrow": {"x": 1},
    }  # fmt: skip
    assert read_adapter(write_adapter(tmp_path, **neutral), ECHO).rank == 2


@pytest.mark.parametrize(
    "key",
    ["q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj", r".*\.0\..*", r"layers\.[0-9]+\.self_attn\..*"],
)
def test_a_pattern_gives_the_layers_that_it_matches_a_rank_and_an_alpha_of_their_own(tmp_path: Path, key: str) -> None:
    tensors = lora_tensors([Q_PROJ], rank=4) | lora_tensors([DOWN_PROJ], rank=2)
    spec = read_adapter(
        write_adapter(tmp_path, tensors=tensors, lora_alpha=2, rank_pattern={key: 4}, alpha_pattern={key: 12}), ECHO
    )
    assert (spec.linears[Q_PROJ].rank, spec.linears[Q_PROJ].scale) == (4, 3.0)
    assert (spec.linears[DOWN_PROJ].rank, spec.linears[DOWN_PROJ].scale) == (2, 1.0)
    assert spec.rank == 4


def test_the_first_pattern_that_matches_decides(tmp_path: Path) -> None:
    tensors = lora_tensors(rank=4)
    patterns = {"nothing": 1, "proj": 3, r"\w+_proj": 4, "q_proj": 5}
    spec = read_adapter(write_adapter(tmp_path, tensors=tensors, rank_pattern=patterns), ECHO)
    assert {module.rank for module in spec.linears.values()} == {4}


def test_embeddings_can_be_adapted(tmp_path: Path) -> None:
    spec = read_adapter(write_adapter(tmp_path, tensors=lora_tensors([EMBEDDING])), ECHO)
    assert spec.embeddings == {
        EMBEDDING: LoraModule(
            a=f"{PREFIX}{EMBEDDING}.lora_embedding_A", b=f"{PREFIX}{EMBEDDING}.lora_embedding_B", rank=2, scale=2.0
        )
    }


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.embed_tokens.base_layer.weight", "lm_head.weight"]
)
def test_embeddings_and_the_output_head_can_be_replaced(tmp_path: Path, name: str) -> None:
    vocabulary, hidden = ECHO.embeddings[EMBEDDING]
    tensors = {f"{PREFIX}{name}": np.zeros((vocabulary, hidden), np.float32)}
    spec = read_adapter(write_adapter(tmp_path, tensors=tensors), ECHO)
    assert spec.saved == {name.removesuffix(".weight").removesuffix(".base_layer"): f"{PREFIX}{name}"}
    assert spec.rank == 0


# ---- the hash


def test_the_hash_is_of_what_determines_the_outputs(tmp_path: Path) -> None:
    def content(name: str, **changes: Any) -> str:
        return content_hash(write_adapter(tmp_path / name, **changes))

    same = content("a")
    assert content("b", base_model_name_or_path="elsewhere/echo", lora_dropout=0.5, revision="main") == same
    others = [
        content("c", seed=1),
        content("d", rank=3),
        content("e", lora_alpha=5),
        content("f", use_rslora=True),
        content("g", alpha_pattern={"q_proj": 1}),
    ]
    assert len({same, *others}) == 6


# ---- what is refused: the configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("r", 0),
        ("r", "8"),
        ("r", 2.5),
        ("lora_alpha", "many"),
        ("lora_alpha", math.nan),
        ("lora_alpha", math.inf),
        ("lora_alpha", 10**400),
        ("r", 10**400),
        ("use_rslora", "yes"),
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("use_qalora", True),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [1, 2]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("trainable_token_indices", {"embed_tokens": [1]}),
        ("ensure_weight_tying", True),
        ("arrow_config", {"top_k": 2}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj(": 2}),
        ("alpha_pattern", {"*": 2}),
        ("alpha_pattern", {"q_proj": math.inf}),
    ],
)
def test_what_cannot_be_served_exactly_is_refused_by_its_name(tmp_path: Path, field: str, value: Any) -> None:
    error = refused(write_adapter(tmp_path, **{field: value}))
    assert error.param is not None and error.param.split(".")[0] == field
    assert error.code == "invalid_adapter"


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "eva", False])
def test_initialisations_that_leave_the_base_model_alone_do_not_matter(tmp_path: Path, init: bool | str) -> None:
    assert read_adapter(write_adapter(tmp_path, init_lora_weights=init), ECHO).rank == 2


@pytest.mark.parametrize("text", ["", "no json", "[1, 2]", "null", '"text"', "[" * 100_000, '{"a":' * 100_000, "\xff"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write_adapter(tmp_path)
    (tmp_path / CONFIG).write_bytes(text.encode("latin-1"))
    assert refused(tmp_path).param == CONFIG


def test_a_huge_configuration_is_not_read(tmp_path: Path) -> None:
    write_adapter(tmp_path, filler="x" * adapter_folder.MAX_CONFIG_BYTES)
    error = refused(tmp_path)
    assert error.param == CONFIG and "larger" in error.message


def test_a_pattern_that_would_take_years_ends_with_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_folder, "MATCHING_SECONDS", 0.05)
    error = refused(write_adapter(tmp_path, rank_pattern={r"(\w|\w\w|.)+[A-Z]": 2}))
    assert error.param == "rank_pattern" and "too long" in error.message


def test_a_rank_above_what_is_served_is_refused(tmp_path: Path) -> None:
    error = refused(write_adapter(tmp_path, rank=ECHO.max_rank + 1))
    assert error.param == "r" and str(ECHO.max_rank) in error.message


# ---- what is refused: the weights


def test_a_folder_without_files_says_which_it_lacks(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing").param == CONFIG
    write_adapter(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    assert refused(tmp_path).param == WEIGHTS


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / WEIGHTS).unlink()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("adapter_model.bin", "adapter_model.pt", WEIGHTS):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        error = refused(tmp_path)
        assert error.param == WEIGHTS and "safetensors" in error.message
    assert not (tmp_path / "exploded").exists()


def damage(weights: Path, kind: str) -> None:
    data = weights.read_bytes()
    match kind:
        case "empty":
            weights.write_bytes(b"")
        case "cut":
            weights.write_bytes(data[:-1])
        case "longer":
            weights.write_bytes(data + b"x")
        case "a header that never ends":
            weights.write_bytes((2**62).to_bytes(8, "little") + data[8:])
        case "a header that is none":
            weights.write_bytes(data[:8] + b"x" + data[9:])
        case "a folder":
            weights.unlink()
            weights.mkdir()


@pytest.mark.parametrize(
    "kind", ["empty", "cut", "longer", "a header that never ends", "a header that is none", "a folder"]
)
def test_a_broken_file_is_refused(tmp_path: Path, kind: str) -> None:
    damage(write_adapter(tmp_path) / WEIGHTS, kind)
    assert refused(tmp_path).param == WEIGHTS


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    save_file({}, tmp_path / WEIGHTS)
    assert refused(tmp_path).param == WEIGHTS


def changed(name: str | None, tensor: np.ndarray | None, **more: np.ndarray) -> dict[str, np.ndarray]:
    """The usual tensors, one of them taken out or put in the place of another."""
    tensors = lora_tensors()
    if name is not None:
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    return tensors | more


A, B = f"{PREFIX}{Q_PROJ}.lora_A.weight", f"{PREFIX}{Q_PROJ}.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "param"),
    [
        pytest.param(changed(A, None), B, id="B alone"),
        pytest.param(changed(B, None), A, id="A alone"),
        pytest.param(changed(A, np.zeros((3, 32), np.float32)), "r", id="another rank in A"),
        pytest.param(changed(B, np.zeros((32, 3), np.float32)), "r", id="another rank in B"),
        pytest.param(changed(A, np.zeros((2, 33), np.float32)), "base_model_name_or_path", id="another input"),
        pytest.param(changed(B, np.zeros((31, 2), np.float32)), "base_model_name_or_path", id="another output"),
        pytest.param(changed(A, np.zeros(64, np.float32)), "base_model_name_or_path", id="a vector"),
    ],
)
def test_matrices_that_do_not_fit_the_model_are_refused(tmp_path: Path, tensors: dict[str, Any], param: str) -> None:
    assert refused(write_adapter(tmp_path, tensors=tensors)).param == param


@pytest.mark.parametrize(
    ("name", "param"),
    [
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "target_modules"),
        ("base_model.model.model.embed_tokens.lora_A.weight", "target_modules"),
        ("base_model.model.lm_head.lora_embedding_A", "target_modules"),
        (f"{PREFIX}{Q_PROJ}.lora_magnitude_vector", f"{PREFIX}{Q_PROJ}.lora_magnitude_vector"),
        (f"{PREFIX}{Q_PROJ}.lora_B.bias", f"{PREFIX}{Q_PROJ}.lora_B.bias"),
        (f"{PREFIX}{Q_PROJ}.lora_A.default.weight", f"{PREFIX}{Q_PROJ}.lora_A.default.weight"),
        (f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_A.weight"),
        ("transformer.weight", "transformer.weight"),
        ("base_model.model.model.norm.weight", "modules_to_save"),
        ("base_model.model.lm_head.bias", "modules_to_save"),
        ("base_model.model.score.bias", "modules_to_save"),
        ("base_model.model.lm_head.weight", "modules_to_save"),
    ],
)
def test_a_tensor_that_has_no_place_in_the_model_is_refused(tmp_path: Path, name: str, param: str) -> None:
    tensors = changed(None, None, **{name: np.zeros((2, 32), np.float32)})
    assert refused(write_adapter(tmp_path, tensors=tensors)).param == param


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "head"])
def test_a_module_that_is_to_be_replaced_and_is_not_there_is_refused_by_name(tmp_path: Path, module: str) -> None:
    tensors = lora_tensors() | {f"{PREFIX}lm_head.weight": np.zeros(ECHO.embeddings[EMBEDDING], np.float32)}
    without = write_adapter(tmp_path / "without", modules_to_save=[module])
    assert refused(without).param == "modules_to_save" and repr(module) in refused(without).message
    folder = write_adapter(tmp_path / "with", tensors=tensors, modules_to_save=[module])
    if module == "lm_head":
        assert read_adapter(folder, ECHO).saved == {"lm_head": f"{PREFIX}lm_head.weight"}
    else:
        assert refused(folder).param == "modules_to_save"


def test_an_output_head_cannot_be_replaced_where_the_engine_does_not_say_so(tmp_path: Path) -> None:
    vocabulary, hidden = ECHO.embeddings[EMBEDDING]
    tensors = {f"{PREFIX}lm_head.weight": np.zeros((vocabulary, hidden), np.float32)}
    support = replace(ECHO, replaceable=frozenset())
    assert refused(write_adapter(tmp_path, tensors=tensors), support).param == "modules_to_save"


@pytest.mark.parametrize("name", ["{}.lora_A.weight", "{}.lora_B.weight", "{}.lora_C.weight", "{}.weight"])
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_names_that_are_long_or_hold_control_characters_are_quoted_in_part(
    tmp_path: Path, prefix: str, name: str
) -> None:
    name = prefix + name.format("\n\x1b[31m" + "x" * 5000)
    error = refused(write_adapter(tmp_path, tensors={name: np.zeros((2, 2), np.float32)}))
    assert len(error.message) < 600 and error.message.isprintable()


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint8, np.bool_])
def test_numbers_that_are_no_floats_are_refused(tmp_path: Path, kind: type[np.generic]) -> None:
    tensors = lora_tensors() | {A: np.ones((2, 32), kind)}
    error = refused(write_adapter(tmp_path, tensors=tensors))
    assert error.param == A and "quantized" in error.message


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_of_any_width_are_served(tmp_path: Path, kind: type[np.generic]) -> None:
    tensors = {name: tensor.astype(kind) for name, tensor in lora_tensors().items()}
    assert read_adapter(write_adapter(tmp_path, tensors=tensors), ECHO).rank == 2


# ---- heads that classify

SCORE = f"{PREFIX}score.weight"


def with_head(*shape: int) -> dict[str, np.ndarray]:
    return lora_tensors() | {SCORE: np.zeros(shape, np.float32)}


def test_a_head_is_told_apart_from_modules_of_the_model(tmp_path: Path) -> None:
    saved = ["classifier", "score"]  # PEFT names both for every model
    path = write_adapter(tmp_path, tensors=with_head(2, 32), task_type="SEQ_CLS", modules_to_save=saved)
    spec = read_adapter(path, ECHO)
    assert spec.head == Head(labels=("LABEL_0", "LABEL_1")) and spec.head_weight == SCORE
    assert spec.saved == {} and len(spec.linears) == 2


@pytest.mark.parametrize("shape", [(2, 16), (0, 32), (5000, 32), (32,)])
def test_a_head_that_does_not_fit_the_model_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert refused(write_adapter(tmp_path, tensors=with_head(*shape))).param == "modules_to_save"


def test_an_adapter_that_was_trained_to_classify_needs_its_head(tmp_path: Path) -> None:
    error = refused(write_adapter(tmp_path, task_type="SEQ_CLS"))
    assert error.param == "modules_to_save" and SCORE in error.message


def test_an_engine_without_heads_says_so(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, tensors=with_head(1, 32), task_type="SEQ_CLS")
    error = refused(path, replace(ECHO, head_inputs=None))
    assert error.param == "task_type" and "not served by this engine" in error.message


def test_the_configuration_beside_an_adapter_says_what_its_labels_are_and_where_a_text_ends(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, tensors=with_head(2, 32), task_type="SEQ_CLS")
    plain = content_hash(path)
    said = {"id2label": {"0": "ham", "1": "spam"}, "problem_type": "multi_label_classification", "pad_token_id": 7}
    (path / MODEL_CONFIG).write_text(json.dumps(said | {"model_type": "llama"}))
    spec = read_adapter(path, ECHO)
    assert spec.head == Head(labels=("ham", "spam"), problem_type="multi_label_classification", padding=7)
    assert content_hash(path) != plain


@pytest.mark.parametrize("said", ["[]", "{", '{"id2label": {"0": "ham"}}', '{"problem_type": "guess"}'])
def test_a_configuration_that_does_not_fit_the_head_is_refused(tmp_path: Path, said: str) -> None:
    path = write_adapter(tmp_path, tensors=with_head(2, 32), task_type="SEQ_CLS")
    (path / MODEL_CONFIG).write_text(said)
    assert refused(path).param == MODEL_CONFIG
