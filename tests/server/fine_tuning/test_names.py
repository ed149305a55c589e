"""Names of fine-tuned models: OpenAI's form, whatever the base model, its owner and the suffix are called."""

import pytest

from engines.adapters.names import check_name
from engines.errors import InvalidRequest
from server.fine_tuning.names import checkpoint_name, model_name


def named(**parts: str | None) -> str:
    return model_name(**({"base": "demo", "owner": "org", "suffix": "mine", "job_id": "ftjob-abc"} | parts))


def test_the_name_tells_base_owner_suffix_and_job() -> None:
    assert named() == "ft:demo:org:mine:abc"
    assert named(suffix=None) == "ft:demo:org::abc"
    assert checkpoint_name(named(), 12) == "ft:demo:org:mine:abc:ckpt-step-12"


@pytest.mark.parametrize(
    "base", ["Qwen/Qwen3-0.6B", "my model (new)", "a" * 150, "/", "ft:demo:org::abc", "größe", "a/-b"]
)
@pytest.mark.parametrize("owner", ["ACME, Inc.", "x/y", "", "o" * 100])
@pytest.mark.parametrize("suffix", [None, "s" * 64])
def test_every_name_can_be_an_adapters(base: str, owner: str, suffix: str | None) -> None:
    name = model_name(base=base, owner=owner, suffix=suffix, job_id=f"ftjob-{'a' * 24}")
    check_name(name, base_name=base)
    check_name(checkpoint_name(name, 123_456), base_name=base)


def test_a_base_model_whose_adapters_begin_so_is_told() -> None:
    with pytest.raises(InvalidRequest, match="'ft'") as error:
        named(base="ft")
    assert error.value.param == "model"
