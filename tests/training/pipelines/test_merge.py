"""A merged model says what its base model and the adapter say together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import Conflict, InvalidAdapter, InvalidRequest, UnsupportedModel
from engines.pt.runner import ModelRunner
from tests.engines.pt.adapters import save_adapter
from tests.engines.pt.driving import core_of, prompt, request, run, settings
from tests.engines.pt.tiny import CONFIGS, SIZES, byte_level_tokenizer, save
from tests.gguf_files import write_gguf
from training.exports.files import shard_bytes
from training.folder import JobFolder
from training.params.export import MergeParams
from training.pipelines import merge
from training.report import Report

EXPERTS = {name: ["q_proj", "k_proj", "v_proj", "o_proj"] for name in ("mixtral", "qwen3-moe", "phimoe")}
TOLERANCE = 1e-3


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny model, by its name in `tiny.CONFIGS`; changes are to its config."""
    known = {}

    def get(name: str = "llama", **changes: Any) -> Path:
        key = (name, repr(changes))
        if key not in known:
            config = CONFIGS[name]()
            config.update(changes)
            known[key] = save(config, tmp_path_factory.mktemp(name), tokenizer=True)
        return known[key]

    return get


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., Path]:
    """Run a merge as a job, and return the model's folder."""

    def run(**params: Any) -> Path:
        folder = JobFolder(tmp_path / f"job-{len(list(tmp_path.iterdir()))}")
        folder.path.mkdir()
        result = merge.run(MergeParams.model_validate(params), Report(folder))
        assert (result.status, result.kind) == ("succeeded", "model")
        return folder.path / result.artifact

    return run


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([prompt(21), prompt(21, seed=1)])).logits.float()


def load(folder: Path, **settings: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32} | settings)


def expected(model: Path, *adapters: Path) -> Tensor:
    """What PEFT says, computing with the adapters beside the weights."""
    adapted = load(model)
    for adapter in adapters:
        adapted = PeftModel.from_pretrained(adapted, adapter)
        if adapter != adapters[-1]:
            adapted = adapted.merge_and_unload()
    return logits(adapted)


def deviation(found: Tensor, truth: Tensor) -> float:
    return (found - truth).abs().max().item()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_every_architecture(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path, name: str, use_dora: bool
) -> None:
    layers = EXPERTS.get(name, "all-linear")
    adapter = save_adapter(base(name), tmp_path / "adapter", use_dora=use_dora, target_modules=layers)
    truth = expected(base(name), adapter)
    found = logits(load(merged(model=str(base(name)), adapters=[str(adapter)])))
    assert deviation(found, truth) < TOLERANCE
    assert deviation(logits(load(base(name))), truth) > 0.1


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {"use_rslora": True, "r": 7}),
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
        ("llama", {"target_modules": ["embed_tokens", "o_proj"], "use_dora": True}),
        ("llama", {"trainable_token_indices": {"embed_tokens": [3, 5]}}),
        ("qwen2", {"bias": "all"}),
        ("opt", {"lora_bias": True}),
        ("mixtral", {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    ],
    ids=["rslora", "patterns", "saved", "embeddings", "dora-embedding", "tokens", "biases", "lora-bias", "experts"],
)  # fmt: skip
def test_every_kind_of_lora(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    adapter = save_adapter(base(name), tmp_path / "adapter", **config)
    truth = expected(base(name), adapter)
    found = logits(load(merged(model=str(base(name)), adapters=[str(adapter)])))
    assert deviation(found, truth) < TOLERANCE
    assert deviation(logits(load(base(name))), truth) > 0.01


@pytest.mark.parametrize(
    ("config", "stays_tied"),
    [
        ({"target_modules": "all-linear"}, True),
        ({"target_modules": ["lm_head", "q_proj"]}, False),
        ({"target_modules": ["embed_tokens", "q_proj"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
    ],
    ids=["neither", "head", "embedding", "saved-embedding", "saved-head"],
)
def test_tied_embeddings_part_where_the_adapter_changes_one(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path, config: dict[str, Any], stays_tied: bool
) -> None:
    model = base(tie_word_embeddings=True)
    adapter = save_adapter(model, tmp_path / "adapter", **config)
    truth = expected(model, adapter)
    folder = merged(model=str(model), adapters=[str(adapter)])
    assert deviation(logits(load(folder)), truth) < TOLERANCE
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is stays_tied
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not stays_tied


def test_several_adapters_are_merged_in_their_order(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path
) -> None:
    first = save_adapter(base(), tmp_path / "first", seed=1)
    second = save_adapter(base(), tmp_path / "second", seed=2, use_dora=True)
    truth = expected(base(), first, second)
    found = logits(load(merged(model=str(base()), adapters=[str(first), f"other={second}"])))
    assert deviation(found, truth) < TOLERANCE
    assert deviation(expected(base(), second, first), truth) > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_half_precision_is_kept_and_rounded_once(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path, dtype: str, use_dora: bool
) -> None:
    half = getattr(torch, dtype)
    model = tmp_path / "half"
    load(base(), dtype=half).save_pretrained(model)
    adapter = save_adapter(base(), tmp_path / "adapter", use_dora=use_dora)
    exact = PeftModel.from_pretrained(load(model), adapter).merge_and_unload()
    found = load(merged(model=str(model), adapters=[str(adapter)]), dtype="auto")
    for name, weight in exact.named_parameters():
        assert torch.equal(found.get_parameter(name), weight.to(half)), name


def test_another_type_can_be_asked_for(base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    folder = merged(model=str(base()), adapters=[str(adapter)], torch_dtype="bfloat16")
    assert load(folder, dtype="auto").dtype is torch.bfloat16


def test_the_engine_serves_the_merged_model(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    folder = merged(adapters=[str(adapter)])  # the adapter says what its base model is
    core = core_of(ModelRunner(settings(folder)))
    one = request(prompt(9), ignore_eos=True)
    tokens = run(core, [one])["r"].tokens
    truth = load(folder).generate(
        torch.tensor([one.prompt_ids]), max_new_tokens=12, min_new_tokens=12, do_sample=False
    )  # fmt: skip
    assert tokens == truth[0, 9:].tolist()


def test_shards_are_no_larger_than_asked_for(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    folder = merged(model=str(base()), adapters=[str(adapter)], max_shard_size="50KiB")
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            assert sum(file.get_tensor(name).nbytes for name in file.keys()) <= 50 * 1024  # noqa: SIM118
    assert deviation(logits(load(folder)), expected(base(), adapter)) < TOLERANCE


@pytest.mark.parametrize(("size", "count"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("300b", 300), ("2kb", 2000)])
def test_sizes(size: str, count: int) -> None:
    assert shard_bytes(MergeParams(max_shard_size=size).max_shard_size) == count


def test_what_belongs_to_the_model_comes_along(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path
) -> None:
    model, adapter = tmp_path / "base", save_adapter(base(), tmp_path / "adapter")
    load(base()).save_pretrained(model)
    AutoTokenizer.from_pretrained(base()).save_pretrained(model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    (model / "modeling_own.py").write_text("# code of its own")
    (model / "args.json").write_text("{}")  # of another training
    (adapter / "chat_template.jinja").write_text("{{ messages[0] }}")
    folder = merged(model=str(model), adapters=[str(adapter)])
    assert AutoTokenizer.from_pretrained(folder).encode("the red") == AutoTokenizer.from_pretrained(base()).encode(
        "the red"
    )
    assert (folder / "chat_template.jinja").read_text() == "{{ messages[0] }}"  # the adapter was trained with it
    for name in ("generation_config.json", "modeling_own.py"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    assert not {"args.json", CONFIG, WEIGHTS} & {path.name for path in folder.iterdir()}


def test_an_adapter_is_merged_into_a_gguf_file(merged: Callable[..., Path], tmp_path: Path) -> None:
    model, tokenizer = save(LlamaConfig(**SIZES), tmp_path / "base"), byte_level_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    file, adapter = tmp_path / "base.gguf", save_adapter(model, tmp_path / "adapter")
    write_gguf(load(model), file, tokenizer=tokenizer)
    folder = merged(model=str(file), adapters=[str(adapter)])
    assert deviation(logits(load(folder)), expected(model, adapter)) < TOLERANCE
    assert AutoTokenizer.from_pretrained(folder).encode("the red") == tokenizer.encode("the red")
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_chat_template_of_an_older_adapter_goes_before_the_models_files(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path
) -> None:
    model, adapter = tmp_path / "base", save_adapter(base(), tmp_path / "adapter")
    load(base()).save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(base())
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(model)
    (adapter / "tokenizer_config.json").write_text(
        json.dumps({**json.loads((model / "tokenizer_config.json").read_text()), "chat_template": "{{ messages[0] }}"})
    )
    folder = merged(model=str(model), adapters=[str(adapter)])
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages[0] }}"


# ---- what is refused


def test_no_adapter(merged: Callable[..., Path]) -> None:
    with pytest.raises(InvalidRequest, match="name the adapter"):
        merged(model="m")


def test_several_processes(
    merged: Callable[..., Path], base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidRequest, match="one process"):
        merged(adapters=[str(save_adapter(base(), tmp_path / "adapter"))])


def test_a_folder_that_holds_no_adapter(base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match="adapter_config"):
        merged(model=str(base()), adapters=[str(tmp_path)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"init_lora_weights": "lora_ga"}, "changed the base model's weights"),
        ({"ensure_weight_tying": True}, "not merged"),
        ({"task_type": "SEQ_CLS"}, "neither the adapter nor its base model has a head"),
        ({"task_type": "QUESTION_ANS"}, "not merged"),
        ({"peft_type": "PROMPT_TUNING"}, "cannot be"),
        ({"peft_type": "NEW"}, "cannot be"),
        ({"target_modules": ["none_such"]}, "cannot be"),
        ({"target_modules": ["q_proj"]}, "does not fit"),
    ],
)
def test_an_adapter_that_cannot_be_merged_exactly(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    config = json.loads((adapter / CONFIG).read_text()) | change
    (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InvalidAdapter, match=told):
        merged(model=str(base()), adapters=[str(adapter)])


def test_a_broken_adapter(base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    weights = load_file(adapter / WEIGHTS)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(InvalidAdapter, match="NaN"):
        merged(model=str(base()), adapters=[str(adapter)])
    (adapter / WEIGHTS).write_bytes(b"none")
    with pytest.raises(InvalidAdapter, match="cannot be loaded"):
        merged(model=str(base()), adapters=[str(adapter)])


def test_an_adapter_of_another_model(base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    other = base(hidden_size=64)
    with pytest.raises(InvalidAdapter, match="cannot be loaded"):
        merged(model=str(other), adapters=[str(adapter)])


def test_a_quantised_base_model(base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    model = tmp_path / "quantised"
    load(base()).save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=r"quantised \(bitsandbytes\)"):
        merged(model=str(model), adapters=[str(adapter)])


def test_what_is_there_is_never_overwritten(base: Callable[..., Path], tmp_path: Path) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    job = JobFolder(tmp_path)
    (tmp_path / "merged").mkdir()
    with pytest.raises(Conflict, match="nothing is overwritten"):
        merge.run(MergeParams(adapters=(str(adapter),)), Report(job))
    assert list((tmp_path / "merged").iterdir()) == []


def test_a_merge_that_fails_leaves_nothing(
    base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(base(), tmp_path / "adapter")
    folder = tmp_path / "job"
    folder.mkdir()

    def full(*paths: Path) -> Never:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge, "copy_what_belongs_to_it", full)
    with pytest.raises(OSError, match="No space"):
        merge.run(MergeParams(adapters=(str(adapter),)), Report(JobFolder(folder)))
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_the_files_can_be_read_by_others(
    base: Callable[..., Path], merged: Callable[..., Path], tmp_path: Path
) -> None:
    folder: Path = merged(adapters=[str(save_adapter(base(), tmp_path / "adapter"))])
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
