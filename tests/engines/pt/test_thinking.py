"""Budgets of reasoning in the engine: closed on time, whatever else runs, and all else as without them."""

from collections.abc import Callable
from typing import Any

import pytest

from engines.errors import UnsupportedParameter
from engines.types import GenerationRequest, Structured, ThinkingBudget
from tests.engines.pt.conftest import GetRunner, Grammars
from tests.engines.pt.driving import Answer, Reference, core_of, prompt, request, run, vocabulary
from tests.engines.pt.tiny import byte_level_tokenizer

END = "</think>"
END_IDS = tuple(byte_level_tokenizer().encode(END, add_special_tokens=False))
AFTER_THINKING = Structured(
    kind="grammar", value=f'start: thinking colour\nthinking[suffix="{END}"]: /(.|\\n)*/\ncolour: "red" | "blue"'
)


def budget(tokens: int) -> ThinkingBudget:
    return ThinkingBudget(tokens=tokens, start="<think>", end=END, end_ids=END_IDS, is_open=True)


def thoughtful(tokens: int | None, request_id: str = "r", **changes: Any) -> GenerationRequest:
    limit = None if tokens is None else budget(tokens)
    return request(prompt(17), request_id, thinking_budget=limit, ignore_eos=True, max_new_tokens=30, **changes)


def text_of(answer: Answer, index: int = 0) -> str:
    return b"".join(map(vocabulary().token_bytes, answer.outputs[index].token_ids)).decode(errors="replace")


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_reasoning_is_closed_after_its_budget_and_the_answer_goes_on(runner: GetRunner, tokens: int) -> None:
    core = core_of(runner("llama"))
    free = run(core, [thoughtful(None)])["r"].tokens
    kept = run(core, [thoughtful(tokens)])["r"].tokens
    assert kept[:tokens] == free[:tokens]
    assert tuple(kept[tokens : tokens + len(END_IDS)]) == END_IDS
    assert len(kept) == 30


def test_the_logprobs_of_what_was_forced_are_the_models_own(
    runner: GetRunner, reference: Callable[[str], Reference]
) -> None:
    output = run(core_of(runner("llama")), [thoughtful(3, logprobs=2)])["r"].outputs[0]
    truth = reference("llama").logits(prompt(17) + output.token_ids)[16:-1].log_softmax(-1)
    for told, row in zip(output.logprobs, truth, strict=True):
        assert abs(told.logprob - row[told.token_id].item()) < 1e-3
    assert output.logprobs[3].token_id == END_IDS[0] != output.logprobs[3].top[0][0]


@pytest.mark.parametrize(
    ("tokens_at_once", "blocks"), [(256, None), (7, None), (256, 14)], ids=["plain", "chunks", "preempted"]
)
def test_outputs_of_one_request_and_their_neighbours_keep_their_own_budgets(
    runner: GetRunner, tokens_at_once: int, blocks: int | None
) -> None:
    core = core_of(runner("llama", blocks=blocks), max_num_batched_tokens=tokens_at_once)
    asked = [
        thoughtful(4, "several", n=3, temperature=1.0, seed=5),
        thoughtful(9, "one"),
        thoughtful(None, "free"),
    ]
    answers = run(core, asked)
    alone = core_of(runner("llama"))
    unbounded = run(alone, [thoughtful(None, n=3, temperature=1.0, seed=5)])["r"]
    for index, output in answers["several"].outputs.items():
        assert output.token_ids[:4] == unbounded.outputs[index].token_ids[:4]
        assert tuple(output.token_ids[4 : 4 + len(END_IDS)]) == END_IDS
    for name in ("one", "free"):
        again = [one for one in asked if one.request_id == name]
        assert answers[name].tokens == run(alone, again)[name].tokens
    assert (core.stats().preemptions > 0) == (blocks is not None)


def test_a_constraint_on_the_answer_holds_after_reasoning_that_was_closed(
    runner: GetRunner, grammars: Grammars
) -> None:
    core = core_of(runner("llama"), grammars=grammars)
    for tokens in range(6):  # some of them in the middle of a character, which is finished first
        one = request(prompt(17), thinking_budget=budget(tokens), structured=AFTER_THINKING, max_new_tokens=60)
        core.add(one, grammars.compile(AFTER_THINKING))
        answer = Answer()
        while core.busy:
            report = core.step()
            assert not report.errors
            for _, output in report.outputs:
                answer.add(output)
        assert text_of(answer).partition(END)[2].removesuffix("<eos>") in ("red", "blue")
        closed_at = next(at for at in range(60) if tuple(answer.tokens[at : at + len(END_IDS)]) == END_IDS)
        assert tokens <= closed_at <= tokens + 3


def test_reasoning_that_the_model_closes_itself_is_left_alone(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    free = run(core, [thoughtful(None)])["r"]
    end = vocabulary().token_text(free.tokens[5])
    own = ThinkingBudget(tokens=10, start="<think>", end=end, end_ids=END_IDS, is_open=True)
    kept = run(core, [request(prompt(17), thinking_budget=own, ignore_eos=True, max_new_tokens=30)])["r"]
    assert kept.tokens == free.tokens


def test_a_beam_search_has_no_budget(runner: GetRunner) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        core_of(runner("llama")).add(thoughtful(4, num_beams=2))
    assert refusal.value.param == "thinking_token_budget"
