"""What `deploy` says of a parameter that it does not take, and of parameters that do not go together."""

from pathlib import Path
from typing import Any

import pytest

from engines.params.deploy import DeployParams
from server.commands.supported import refusals


def test_what_another_engine_reads_is_refused_by_name() -> None:
    told = ["--threads: the engine lmdeploy does not support it; it is for pt and vllm"]
    assert refusals(DeployParams(model="m", infer_backend="lmdeploy", threads=2, tp=2)) == told


def test_a_parameter_that_nothing_reads_is_refused_by_name() -> None:
    params = DeployParams(model="m", val_dataset=("b",), dataset=("a",))
    assert refusals(params) == [f"--{name}: not supported in this version" for name in ("dataset", "val_dataset")]


def test_a_model_must_be_named() -> None:
    assert refusals(DeployParams()) == ["--model: name the model to serve, a folder or an id on the hub"]


@pytest.mark.parametrize("name", ["stream", "logprobs"])
def test_what_requests_say_themselves_is_refused_with_that_reason(name: str) -> None:
    given = DeployParams.model_validate({"model": "m", name: True})
    assert refusals(given) == [f"--{name}: a request over HTTP says so itself"]


def test_a_template_that_nothing_uses_is_refused() -> None:
    told = ["--chat_template: nothing uses it where --use_chat_template is false"]
    assert refusals(DeployParams(model="m", chat_template="{{ messages }}", use_chat_template=False)) == told
    assert refusals(DeployParams(model="m", chat_template="{{ messages }}", use_chat_template=True)) == []


def test_two_names_of_one_thing_are_not_given_together() -> None:
    told = ["--max_length and --max_model_len mean the same here: give one"]
    assert refusals(DeployParams(model="m", max_length=8, max_model_len=16)) == told
    assert refusals(DeployParams(model="m", max_length=8, max_num_seqs=16)) == []
    told = ["--vllm_max_lora_rank and --max_lora_rank mean the same here: give one"]
    assert refusals(DeployParams(model="m", infer_backend="vllm", vllm_max_lora_rank=8, max_lora_rank=8)) == told


def test_folders_of_adapters_must_be_there(tmp_path: Path) -> None:
    given = DeployParams(model="m", adapter_roots=(str(tmp_path), "/no/such"), adapter_dir="/nor/this")
    assert refusals(given) == [
        "--adapter_roots: '/no/such' is not a folder",
        "--adapter_dir: '/nor/this' is not a folder",
    ]


def test_two_adapters_of_one_name_are_refused() -> None:
    [told] = refusals(DeployParams(model="m", adapters=("a=x", "y/a")))
    assert told.startswith("--adapters: two adapters have the name 'a'")


NGRAM = {"method": "ngram", "num_speculative_tokens": 4}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (NGRAM, None),
        (NGRAM | {"prompt_lookup_min": 2, "prompt_lookup_max": 4}, None),
        ({"method": "eagle3", "model": "m"}, "the engine pt knows the method ngram alone; eagle3 is for vllm"),
        (NGRAM | {"draft_tensor_parallel_size": 1}, "the engine pt does not know draft_tensor_parallel_size here"),
        ({"method": "ngram"}, "num_speculative_tokens: Field required"),
        ({"num_speculative_tokens": 4}, "method: Field required"),
        (NGRAM | {"num_speculative_tokens": 0}, "num_speculative_tokens: Input should be greater than or equal to 1"),
        (
            NGRAM | {"prompt_lookup_min": 4, "prompt_lookup_max": 2},
            "prompt_lookup_min 4 is more than prompt_lookup_max 2",
        ),
    ],
)
def test_of_speculative_decoding_is_refused_by_name_what_the_engine_does_not_do(
    config: dict[str, Any], reason: str | None
) -> None:
    told = [] if reason is None else [f"--speculative_config: {reason}"]
    assert refusals(DeployParams(model="m", speculative_config=config)) == told
    assert refusals(DeployParams(model="m", infer_backend="vllm", speculative_config=config)) == []
    (unread,) = refusals(DeployParams(model="m", infer_backend="lmdeploy", speculative_config=config))
    assert unread == "--speculative_config: the engine lmdeploy does not support it; it is for pt and vllm"


def test_a_type_of_the_kv_cache_that_the_engine_does_not_have_is_refused_with_those_that_it_has() -> None:
    told = "--kv_cache_dtype: pt keeps 8 bits with a scale for each token and head, which fp8 has not: choose "
    assert refusals(DeployParams(model="m", kv_cache_dtype="fp8")) == [
        told + "int8_per_token_head or fp8_per_token_head"
    ]
    for engine, name in (("pt", "fp8_per_token_head"), ("pt", "int8_per_token_head"), ("vllm", "fp8")):
        asked = {"model": "m", "infer_backend": engine, "kv_cache_dtype": name}
        assert refusals(DeployParams.model_validate(asked)) == []
    (unread,) = refusals(DeployParams(model="m", infer_backend="lmdeploy", kv_cache_dtype="fp8"))
    assert unread == "--kv_cache_dtype: the engine lmdeploy does not support it; it is for pt and vllm"


def test_what_quantises_the_base_is_refused_where_the_engine_has_no_such_thing_and_must_say_how() -> None:
    asked = {"model": "m", "quant_method": "bnb", "quant_bits": 4}
    assert refusals(DeployParams(**asked)) == []
    (only,) = refusals(DeployParams(**asked, infer_backend="vllm"))
    assert only.startswith("--quant_method: vLLM 0.32 quantises weights by torchao only while it loads them")
    assert refusals(DeployParams(**asked | {"quant_method": "torchao"}, infer_backend="vllm")) == []
    nothing = "LMDeploy 0.18 serves checkpoints that are quantised already, and quantises none while it loads"
    told = refusals(DeployParams(**asked, infer_backend="lmdeploy"))
    assert [line.partition(":")[0] for line in told] == ["--quant_bits", "--quant_method"]
    assert all(nothing in line for line in told)
    (missing,) = refusals(DeployParams(model="m", quant_method="bnb"))
    assert missing.startswith("--quant_method: say how many bits each weight is to have")
    (unread,) = refusals(DeployParams(**asked, hqq_axis=0))
    assert unread == "--hqq_axis: only --quant_method hqq reads it"
