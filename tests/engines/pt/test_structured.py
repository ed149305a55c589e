"""Constrained and free requests in one batch: the first keep to their constraints, the others are as without them."""

import json
import re
from collections.abc import Callable

import jsonschema
import pytest

from engines.pt.core import EngineCore
from engines.pt.outputs.requests import StepReport
from engines.types import FinishReason, Structured
from tests.engines.pt.conftest import GetRunner, Grammars
from tests.engines.pt.driving import Answer, Reference, core_of, prompt, request, run
from tests.engines.pt.tiny import EOS

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"enum": ["small", "large"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "size", "count"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "schema": Structured(kind="json_schema", value=json.dumps(SCHEMA)),
    "regex": Structured(kind="regex", value="[a-c]{3}-[0-9]{2}"),
    "choice": Structured(kind="choice", value='["red", "blue"]'),
}


def check(name: str, text: str) -> None:
    match name:
        case "schema":
            jsonschema.validate(json.loads(text), SCHEMA)
        case "regex":
            assert re.fullmatch("[a-c]{3}-[0-9]{2}", text)
        case "choice":
            assert text in ("red", "blue")


def run_mixed(core: EngineCore, grammars: Grammars, *, temperature: float = 0.0, n: int = 1) -> dict[str, Answer]:
    """Each constraint once, between free requests."""
    answers: dict[str, Answer] = {}
    free = [request(prompt(11 + i, i), f"free{i}", ignore_eos=True) for i in range(3)]

    def add_constrained(step: int) -> None:
        for name, structured in CONSTRAINTS.items() if step == 1 else ():
            one = request(
                prompt(17, len(name)),
                name,
                n=n,
                structured=structured,
                temperature=temperature,
                seed=3,
                max_new_tokens=90,
                logprobs=0,
            )
            core.add(one, grammars.compile(structured))

    core_step = core.step

    def step() -> StepReport:
        report = core_step()
        for request_id, output in [pair for pair in report.outputs if pair[0] in CONSTRAINTS]:
            answers.setdefault(request_id, Answer()).add(output)
        assert not report.errors
        report.outputs[:] = [pair for pair in report.outputs if pair[0] not in CONSTRAINTS]
        return report

    core.step = step  # type: ignore[method-assign]
    return answers | run(core, free, between=add_constrained)


@pytest.mark.parametrize(
    ("budget", "blocks"), [(256, None), (7, None), (256, 11)], ids=["plain", "chunks", "preempted"]
)
@pytest.mark.parametrize("n", [1, 3])
def test_outputs_keep_to_their_constraints_and_neighbours_do_not_notice(
    runner: GetRunner, grammars: Grammars, budget: int, blocks: int | None, n: int
) -> None:
    core = core_of(runner("llama", blocks=blocks), grammars=grammars, max_num_batched_tokens=budget)
    answers = run_mixed(core, grammars, temperature=1.0, n=n)
    for name in CONSTRAINTS:
        assert len(answers[name].outputs) == n
        for output in answers[name].outputs.values():
            assert output.finish_reason is FinishReason.STOP
            tokens = [token for token in output.token_ids if token != EOS]
            check(name, grammars.decode(tokens))
    for i in range(3):
        alone = request(prompt(11 + i, i), ignore_eos=True)
        assert answers[f"free{i}"].tokens == run(core_of(runner("llama")), [alone])["r"].tokens
    assert (core.stats().preemptions > 0) == (blocks is not None)


def test_logprobs_of_a_constrained_output_are_the_models_own(
    runner: GetRunner, reference: Callable[[str], Reference], grammars: Grammars
) -> None:
    answers = run_mixed(core_of(runner("llama"), grammars=grammars), grammars)
    output = answers["choice"].outputs[0]
    whole = prompt(17, len("choice")) + output.token_ids
    truth = reference("llama").logits(whole)[16:-1].log_softmax(-1)
    for told, row in zip(output.logprobs, truth, strict=True):
        assert abs(told.logprob - row[told.token_id].item()) < 1e-3
