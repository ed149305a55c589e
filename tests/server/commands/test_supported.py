"""No parameter is accepted and ignored: what deploy supports is what the code reads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.params.deploy import DeployParams
from server.commands.supported import refusals, whatever_the_engine

ROOT = Path(__file__).parents[3]
CONFIGS = {ROOT / "engines" / name / "config.py" for name in ("process", "pt", "vllm", "lmdeploy")}
SCHEMA_HOLDS = {"task_type", "template_backend"}
"""Parameters of which one value is supported. (And `seed` is read of the parameters of a training.)"""


def built_modules() -> list[Path]:
    """What may read a parameter of deploy: all but the schema, the command line and the engines' configurations."""
    files = [*(ROOT / "server").rglob("*.py"), *(ROOT / "engines").rglob("*.py")]
    schema = {ROOT / "engines" / "params", *CONFIGS}
    return [file for file in files if not schema & {file, *file.parents}]


def reads(tree: ast.Module, schema: str = "engines.params") -> Iterator[str]:
    """Names of a module that knows `schema`: those read as `params.NAME` or `something.params.NAME`, or in a set that `model_dump(include=...)` takes."""
    nodes = list(ast.walk(tree))
    imports = any(isinstance(node, ast.ImportFrom) and schema in (node.module or "") for node in nodes)
    holds = any(isinstance(node, ast.Attribute) and node.attr == "params" for node in nodes)
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Attribute(attr="params"), attr=name):
                yield name
            case ast.Attribute(value=ast.Name(id="params"), attr=name) if imports or holds:
                yield name
            case ast.keyword(arg="include", value=ast.Set(elts=words)):
                yield from (
                    word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)
                )


def parameters_read(*files: Path) -> set[str]:
    found = {name for file in files for name in reads(ast.parse(file.read_text()))}
    return found & set(DeployParams.model_fields)


def test_what_the_code_reads_is_what_the_fields_say() -> None:
    assert parameters_read(*built_modules()) == whatever_the_engine() - SCHEMA_HOLDS | {"seed"}


def test_what_another_engine_reads_is_refused_by_name() -> None:
    told = ["--threads: the engine lmdeploy does not support it; it is for pt and vllm"]
    assert refusals(DeployParams(model="m", infer_backend="lmdeploy", threads=2, tp=2)) == told


def test_supported_parameters_are_taken() -> None:
    assert refusals(DeployParams(model="m", port=1, temperature=0.5, api_key=("k",), torch_dtype="float32")) == []


def test_a_parameter_that_nothing_reads_is_refused_by_name() -> None:
    params = DeployParams(model="m", quant_bits=4, dataset=("a",))
    assert refusals(params) == [f"--{name}: not supported in this version" for name in ("dataset", "quant_bits")]


def test_a_parameter_given_at_its_default_asks_for_nothing() -> None:
    assert refusals(DeployParams(model="m", tensor_parallel_size=1, use_hf=True)) == []


@pytest.mark.parametrize(
    ("name", "value", "built"),
    [
        ("task_type", "seq_cls", "causal_lm"),
    ],
)
def test_a_choice_that_is_not_supported_is_refused(name: str, value: str, built: str) -> None:
    given = DeployParams.model_validate({"model": "m", name: value})
    assert refusals(given) == [f"--{name}: {value} is not supported in this version; choose {built}"]
    assert refusals(DeployParams.model_validate({"model": "m", name: built})) == []


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
