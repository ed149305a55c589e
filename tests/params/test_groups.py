"""Parameter groups: what they accept, and with which words they refuse."""

import pytest
from pydantic import ValidationError

from engines.params.deploy import DeployParams
from engines.params.model_kwargs import FAMILIES, Qwen2VlKwargs, family_of, resolve_model_kwargs
from engines.params.shapes import shape_of
from server.commands.params import COMMANDS


def test_parameters_cannot_be_changed() -> None:
    params = DeployParams()
    with pytest.raises(ValidationError, match="frozen"):
        params.port = 1  # type: ignore[misc]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="prot"):
        DeployParams.model_validate({"prot": 1})


def test_given_is_told_from_default() -> None:
    assert DeployParams(port=8000).model_fields_set == {"port"}


def test_one_string_counts_as_a_list_of_one() -> None:
    params = DeployParams.model_validate({"api_key": "infer:k", "adapters": "a=b", "stop_words": ["x", "y"]})
    assert (params.api_key, params.adapters, params.stop_words) == (("infer:k",), ("a=b",), ("x", "y"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", ""),
        ("api_key", []),
        ("stop_words", ["a", ""]),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("repetition_penalty", float("inf")),
        ("top_p", 0),
        ("port", 65536),
        ("max_model_len", 0),
        ("gpu_memory_utilization", 1.1),
        ("torch_dtype", "float8"),
        ("max_shard_size", "five"),
        ("model_name", ["a", "b", "c"]),
        ("use_hf", False),
        ("port", True),
        ("temperature", False),
        ("max_new_tokens", True),
        ("model_name", [True]),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        DeployParams.model_validate({name: value})
    assert error.value.errors()[0]["loc"][0] == name


def test_a_truth_value_is_no_number_in_any_parameter_of_any_command() -> None:
    for model in COMMANDS.values():
        for name, field in model.model_fields.items():
            kinds = shape_of(field.annotation).kinds
            if kinds & {int, float} and bool not in kinds:
                with pytest.raises(ValidationError) as error:
                    model.model_validate({name: True})
                assert name in {problem["loc"][0] for problem in error.value.errors()}, name


@pytest.mark.parametrize("value", [True, "true", "yes", 1])
def test_a_yes_or_no_parameter_is_given_in_many_ways(value: object) -> None:
    assert DeployParams.model_validate({"verbose": value}).verbose is True


def test_secrets_are_not_printed() -> None:
    assert "s3cret" not in repr(DeployParams(api_key=("s3cret",), hub_token="s3cret"))


def test_each_model_type_belongs_to_one_family() -> None:
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert family_of("qvq") is Qwen2VlKwargs
    assert family_of("llama3") is None


def test_model_kwargs_win_over_the_environment_and_this_over_defaults() -> None:
    environ = {"MAX_PIXELS": "1000", "FPS": "4", "NUM_CROPS": "9"}
    settings = resolve_model_kwargs("qwen2_vl", {"max_pixels": 2000}, environ)
    assert settings == Qwen2VlKwargs(MAX_PIXELS=2000, FPS=4)


def test_a_setting_of_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="NUM_CROPS"):
        resolve_model_kwargs("qwen2_vl", {"num_crops": 4}, {})
    with pytest.raises(ValueError, match="llama3"):
        resolve_model_kwargs("llama3", {"num_crops": 4}, {})
    assert resolve_model_kwargs("llama3", None, {"NUM_CROPS": "4"}) is None
