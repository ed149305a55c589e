"""What the engine's core promises for requests that run together: order, sharing, ends, facts about the prompt."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Never

import pytest
import torch

from engines.errors import ContextLengthExceeded, EngineFailure, InvalidRequest, TuneserveError
from engines.pt.runner import ModelRunner, Segment, StepResult
from engines.types import FinishReason, GenerationRequest, PoolingRequest
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import BLOCK_SIZE, Answer, Reference, core_of, prompt, request, run
from tests.engines.pt.tiny import EOS, POSITIONS, VOCAB_SIZE


class Watched:
    """A runner that counts the tokens of each step, and fails where it is told to."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.steps: list[list[Segment]] = []
        self.fail_at: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def step(self, segments: list[Segment]) -> StepResult:
        self.steps.append(segments)
        if len(self.steps) - 1 in self.fail_at:
            raise RuntimeError("a broken kernel")
        return self._runner.step(segments)

    def lengths(self) -> list[list[int]]:
        return [[len(segment.token_ids) for segment in segments] for segments in self.steps]


@pytest.fixture
def watched(runner: GetRunner) -> Watched:
    return Watched(runner("llama"))


def greedy(runner: GetRunner, prompt_ids: list[int], **changes: Any) -> list[int]:
    return run(core_of(runner("llama")), [request(prompt_ids, ignore_eos=True, **changes)])["r"].tokens


# ---- the order of things


def test_no_step_computes_more_than_its_budget(watched: Watched) -> None:
    core = core_of(watched, max_num_batched_tokens=10)
    run(core, [request(prompt(5 + i, i), f"r{i}", ignore_eos=True) for i in range(14)])
    assert max(sum(step) for step in watched.lengths()) == 10


def test_decodes_come_first_then_prompts_begun_then_new_ones(watched: Watched) -> None:
    core = core_of(watched, max_num_batched_tokens=10)
    core.add(request(prompt(4), "decoding", ignore_eos=True))
    core.step()
    core.add(request(prompt(20), "begun", ignore_eos=True))
    core.step()
    core.add(request(prompt(3), "new", ignore_eos=True))
    for _ in range(3):
        core.step()
    assert watched.lengths() == [[4], [1, 9], [1, 9], [1, 2, 3], [1, 1, 1]]


def test_the_lower_priority_number_is_admitted_first_and_equals_in_order_of_arrival(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_seqs=1)
    finished = []
    for name, priority in (("a", 1), ("b", 1), ("c", 0)):
        core.add(request(prompt(9), name, priority=priority, max_new_tokens=2, ignore_eos=True))
    while core.busy:
        finished += [request_id for request_id, output in core.step().outputs if output.finish_reason]
    assert finished == ["c", "a", "b"]


@pytest.mark.parametrize("scarce", ["sequences", "blocks"])
def test_one_that_runs_makes_way_for_a_higher_priority_and_then_goes_on(runner: GetRunner, scarce: str) -> None:
    few: dict[str, Any] = {"max_num_seqs": 2} if scarce == "sequences" else {}
    core = core_of(runner("llama") if scarce == "sequences" else runner("llama", blocks=8, max_model_len=64), **few)
    asked = {
        name: request(prompt(9, i), name, priority=9, max_new_tokens=16, ignore_eos=True) for i, name in enumerate("ab")
    }
    for one in asked.values():
        core.add(one)
    answers: dict[str, Answer] = defaultdict(Answer)
    finished = []
    for step in range(200):
        if step == 4:
            asked["now"] = request(prompt(33, 7), "now", max_new_tokens=8, ignore_eos=True)
            core.add(asked["now"])
        for request_id, output in core.step().outputs:
            answers[request_id].add(output)
            finished += [request_id] if output.finish_reason else []
        if not core.busy:
            break
    assert finished == ["now", "a", "b"] and core.stats().preemptions == 1
    for name, one in asked.items():
        assert answers[name].tokens == greedy(runner, one.prompt_ids, max_new_tokens=one.sampling.max_new_tokens)


def test_the_last_part_of_an_output_tells_how_often_it_was_put_back(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_seqs=1)
    core.add(request(prompt(9), "later", priority=9, max_new_tokens=8, ignore_eos=True))
    core.step()
    core.add(request(prompt(9, 1), "now", max_new_tokens=2, ignore_eos=True))
    told: dict[str, list[int | None]] = defaultdict(list)
    while core.busy:
        for request_id, output in core.step().outputs:
            told[request_id].append(output.preemptions)
    assert told == {"later": [None] * 6 + [1], "now": [None, 0]}


def test_steps_are_counted_by_the_tokens_they_compute(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_batched_tokens=10)
    core.add(request(prompt(25), max_new_tokens=3, ignore_eos=True))
    while core.busy:
        core.step()
    stats = core.stats()
    assert (stats.step_sizes, stats.step_tokens) == ({16: 2, 8: 1, 1: 2}, 27)


def test_equals_make_no_way(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_seqs=1)
    run(core, [request(prompt(9, i), f"r{i}", max_new_tokens=4, ignore_eos=True) for i in range(3)])
    assert core.stats().preemptions == 0


def test_no_more_sequences_run_than_allowed(watched: Watched) -> None:
    core = core_of(watched, max_num_seqs=3)
    run(core, [request(prompt(5, i), f"r{i}", n=1 + i % 3, ignore_eos=True) for i in range(7)])
    assert max(len(step) for step in watched.steps) == 3


def test_every_request_ends_in_a_cache_that_barely_holds_one(runner: GetRunner) -> None:
    """The longest sequence is as long as the whole cache, and the prompts alone do not fit it together."""
    small = runner("llama", blocks=6, max_model_len=6 * BLOCK_SIZE)
    core = core_of(small, max_num_batched_tokens=7)
    asked = [request(prompt(20, i), f"r{i}", n=1 + i % 3, max_new_tokens=28, ignore_eos=True) for i in range(6)]
    answers = run(core, asked)
    assert core.stats().preemptions > 0
    for one in asked:
        expected = greedy(runner, one.prompt_ids, max_new_tokens=28)
        assert [output.token_ids for output in answers[one.request_id].outputs.values()] == [expected] * one.n


# ---- outputs of one prompt


def test_the_outputs_of_one_prompt_compute_it_once(watched: Watched) -> None:
    core = core_of(watched, max_num_batched_tokens=16)
    answers = run(core, [request(prompt(37), n=5, max_new_tokens=4, ignore_eos=True)])
    assert watched.lengths() == [[16], [16], [5], [1] * 5, [1] * 5, [1] * 5]
    assert len(answers["r"].outputs) == 5


def test_forks_share_full_blocks_and_copy_only_the_last_partial_one(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    core.add(request(prompt(2 * BLOCK_SIZE + 3), n=4, ignore_eos=True))
    core.step()
    held = [sequence.blocks for sequence in core.scheduler.running]
    assert [len(blocks) for blocks in held] == [3] * 4
    assert len({tuple(blocks[:2]) for blocks in held}) == 1
    assert len({blocks[2] for blocks in held}) == 4


def test_forks_of_a_prompt_that_fills_its_blocks_share_them_all(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    core.add(request(prompt(2 * BLOCK_SIZE), n=4, ignore_eos=True))
    core.step()
    assert core.scheduler.pool.free == core.scheduler.pool.num_blocks - 2


def test_finish_drops_one_output_and_the_others_go_on(runner: GetRunner) -> None:
    core = core_of(runner("llama"))

    def finish_second(step: int) -> None:
        if step == 3:
            core.requests.finish("r", 1)

    outputs = run(core, [request(prompt(9), n=3, ignore_eos=True)], between=finish_second)["r"].outputs
    assert [(len(o.token_ids), o.finish_reason) for _, o in sorted(outputs.items())] == [
        (12, FinishReason.LENGTH),
        (3, None),
        (12, FinishReason.LENGTH),
    ]


@pytest.mark.parametrize("ended", [{0}, {1}, {0, 2}])
def test_an_output_may_be_ended_before_it_has_begun(runner: GetRunner, ended: set[int]) -> None:
    core = core_of(runner("llama"))

    def finish(step: int) -> None:
        for index in ended if step == 0 else ():
            core.requests.finish("r", index)

    outputs = run(core, [request(prompt(9), n=3, ignore_eos=True)], between=finish)["r"].outputs
    assert {*outputs} == {0, 1, 2} - ended
    assert all(output.finish_reason is FinishReason.LENGTH for output in outputs.values())


def test_a_request_of_which_nothing_is_wanted_any_more_is_gone(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    core.add(request(prompt(9), n=2))
    core.requests.finish("r", 1)
    core.requests.finish("r", 0)
    assert not core.busy


def test_abort_frees_everything_at_once(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_batched_tokens=16, max_num_seqs=4)
    for i, beams in enumerate((1, 3, 1)):
        core.add(request(prompt(30, i), f"r{i}", ignore_eos=True, num_beams=beams))
    for _ in range(5):
        core.step()
    for name in ("r0", "r1", "r2", "unknown"):
        core.requests.abort(name)
    assert not core.busy
    assert core.stats().kv_cache_usage == 0


# ---- ends


def test_a_stop_token_ends_the_output_and_is_its_last(runner: GetRunner) -> None:
    tokens = greedy(runner, prompt(9))
    [answer] = run(core_of(runner("llama")), [request(prompt(9), stop_token_ids=(tokens[4],))]).values()
    output = answer.outputs[0]
    assert (output.finish_reason, output.stop_token_id) == (FinishReason.STOP, tokens[4])
    assert output.token_ids == tokens[: tokens.index(tokens[4]) + 1]


def test_the_models_own_end_token_ends_the_output_unless_ignored(runner: GetRunner) -> None:
    tokens = greedy(runner, prompt(9))
    core = core_of(runner("llama"), eos=(EOS, tokens[2]))
    asked = [request(prompt(9), "ends"), request(prompt(9), "goes on", ignore_eos=True)]
    answers = run(core, asked)
    assert answers["ends"].outputs[0].finish_reason is FinishReason.STOP
    assert answers["ends"].tokens == tokens[: tokens.index(tokens[2]) + 1]
    assert answers["goes on"].tokens == tokens


def test_end_tokens_are_forbidden_before_the_shortest_length(runner: GetRunner) -> None:
    tokens = greedy(runner, prompt(9))
    [answer] = run(
        core_of(runner("llama")), [request(prompt(9), min_new_tokens=6, stop_token_ids=(tokens[2],), max_new_tokens=8)]
    ).values()
    assert len(answer.tokens) > 6 or answer.tokens[-1] == tokens[2]
    assert tokens[2] not in answer.tokens[:6]


def test_the_context_ends_the_output(runner: GetRunner) -> None:
    [answer] = run(
        core_of(runner("llama")), [request(prompt(POSITIONS - 3), max_new_tokens=50, ignore_eos=True)]
    ).values()
    assert (len(answer.tokens), answer.outputs[0].finish_reason) == (3, FinishReason.LENGTH)


# ---- what is refused


@pytest.mark.parametrize(
    ("prompt_ids", "sampling", "error", "words"),
    [
        ([], {}, InvalidRequest, "empty"),
        ([VOCAB_SIZE], {}, InvalidRequest, "below the vocabulary's 300"),
        ([-1], {}, InvalidRequest, "below the vocabulary's 300"),
        (prompt(POSITIONS), {}, ContextLengthExceeded, "your prompt has 128 tokens"),
        (prompt(4), {"num_beams": 2, "logprobs": 1}, InvalidRequest, "beam search"),
        (prompt(4), {"num_beams": 2, "n": 3}, InvalidRequest, "more than the 2 beams"),
        (prompt(4), {"n": 9}, InvalidRequest, "more than the 8 sequences"),
        (prompt(4), {"logit_bias": {VOCAB_SIZE: 1.0}}, InvalidRequest, "logit_bias names the token 300"),
    ],
)
def test_a_request_that_can_never_run_is_refused(
    runner: GetRunner, prompt_ids: list[int], sampling: dict[str, Any], error: type[TuneserveError], words: str
) -> None:
    core = core_of(runner("llama"), max_num_seqs=8)
    with pytest.raises(error, match=words):
        core.add(request(prompt_ids, **sampling))
    assert not core.busy


def test_too_many_outputs_are_refused_by_their_name(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_seqs=2)
    for name, refused in (("n", request(prompt(4), n=3)), ("num_beams", request(prompt(4), num_beams=3))):
        with pytest.raises(InvalidRequest) as refusal:
            core.add(refused)
        assert refusal.value.param == name


def test_a_request_id_cannot_be_used_twice_at_once(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    core.add(request(prompt(4)))
    with pytest.raises(InvalidRequest, match="in use"):
        core.add(request(prompt(5)))


# ---- facts about the prompt


@pytest.mark.parametrize("budget", [5, 8, 256])
def test_prompt_logprobs_are_the_models_whatever_the_chunks(
    runner: GetRunner, reference: Callable[[str], Reference], budget: int
) -> None:
    core = core_of(runner("llama"), max_num_batched_tokens=budget)
    asked = [request(prompt(10 + 7 * i, i), f"r{i}", n=1 + i % 2, prompt_logprobs=i) for i in range(4)]
    answers = run(core, asked)
    for one in asked:
        first = answers[one.request_id].first
        assert len(first.prompt_logprobs[1].top) == one.sampling.prompt_logprobs
        reference("llama").check_prompt(one.prompt_ids, first.prompt_logprobs)


def test_prompt_logprobs_are_whole_in_spite_of_a_warm_cache_and_preemption(
    runner: GetRunner, reference: Callable[[str], Reference]
) -> None:
    small = runner("llama", blocks=9, max_model_len=72)
    core = core_of(small, max_num_batched_tokens=9)
    run(core, [request(prompt(30, 1), "before")])
    asked = [request(prompt(30, i), f"r{i}", prompt_logprobs=2, max_new_tokens=20, ignore_eos=True) for i in range(4)]
    answers = run(core, asked)
    assert core.stats().preemptions > 0
    for one in asked:
        assert answers[one.request_id].first.cached_tokens == 0
        reference("llama").check_prompt(one.prompt_ids, answers[one.request_id].first.prompt_logprobs)


def test_a_request_of_no_tokens_tells_about_its_prompt_only(
    runner: GetRunner, reference: Callable[[str], Reference]
) -> None:
    one = request(prompt(20), max_new_tokens=0, prompt_logprobs=3, n=2)
    [answer] = run(core_of(runner("llama")), [one]).values()
    assert [(o.token_ids, o.finish_reason) for o in answer.outputs.values()] == [([], FinishReason.LENGTH)] * 2
    reference("llama").check_prompt(one.prompt_ids, answer.first.prompt_logprobs)


def test_a_beam_search_of_no_tokens_ends_too(runner: GetRunner) -> None:
    [answer] = run(core_of(runner("llama")), [request(prompt(20), max_new_tokens=0, num_beams=2)]).values()
    assert answer.outputs[0].finish_reason is FinishReason.LENGTH


def test_the_facts_come_with_the_first_output_only(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    core.add(request(prompt(9), n=2, prompt_logprobs=0, ignore_eos=True))
    outputs = [output for _ in range(3) for _, output in core.step().outputs]
    assert [output.cached_tokens is None for output in outputs] == [False] + [True] * 5
    assert [output.queue_seconds is None for output in outputs] == [False] + [True] * 5
    assert [output.prompt_logprobs is None for output in outputs] == [False] + [True] * 5


# ---- the prefix cache


def test_an_answer_is_found_again_as_the_prefix_of_the_next_turn(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    first = run(core, [request(prompt(20), ignore_eos=True)])["r"].tokens
    turn = prompt(20) + first + prompt(5, 7)
    answer = run(core, [request(turn, ignore_eos=True)])["r"]
    assert answer.first.cached_tokens == 24  # the last token's keys and values were never computed: 31 of 32
    assert answer.tokens == greedy(runner, turn)


def test_without_prefix_caching_nothing_is_found(runner: GetRunner) -> None:
    core = core_of(runner("llama"), enable_prefix_caching=False)
    for _ in range(2):
        [answer] = run(core, [request(prompt(20))]).values()
        assert answer.first.cached_tokens == 0


def test_a_prefix_is_found_by_requests_of_the_same_salt_only(runner: GetRunner) -> None:
    expected = greedy(runner, prompt(20))
    core = core_of(runner("llama"))
    found = []
    for salt in (None, "a", "b", "a", None):
        asked = replace(request(prompt(20), ignore_eos=True), cache_salt=salt)
        answer = run(core, [asked])["r"]
        assert answer.first and answer.tokens == expected
        found.append(answer.first.cached_tokens)
    assert found == [0, 0, 0, 16, 16]
    stats = core.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (100, 32)


def test_an_embedding_tells_nothing_of_a_prompt_of_another_salt(watched: Watched) -> None:
    core = core_of(watched)
    for salt in ("a", "b", "a"):
        asked = PoolingRequest(request_id="e", prompt_ids=prompt(20), cache_salt=salt)
        run(core, [asked])
    assert watched.lengths() == [[20], [20], [4]]


# ---- embeddings


def embedding(request_id: str, prompt_ids: list[int]) -> PoolingRequest:
    return PoolingRequest(request_id=request_id, prompt_ids=prompt_ids)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2"])
def test_an_embedding_is_the_normalised_last_hidden_state(
    name: str, runner: GetRunner, reference: Callable[[str], Reference]
) -> None:
    core = core_of(runner(name), max_num_batched_tokens=16)
    prompts = [prompt(4 + 9 * i, i) for i in range(4)]
    mixed: list[GenerationRequest | PoolingRequest] = [embedding(f"e{i}", ids) for i, ids in enumerate(prompts)]
    mixed += [request(prompt(11, i), f"g{i}", ignore_eos=True) for i in range(3)]
    answers = run(core, mixed)
    for i, ids in enumerate(prompts):
        with torch.inference_mode():
            states = reference(name).model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        expected = states / states.norm()
        assert (torch.tensor(answers[f"e{i}"].pooled) - expected).abs().max() < 1e-4
    assert all(len(answers[f"g{i}"].tokens) == 12 for i in range(3))


# ---- seeds


def sampled(n: int = 3, **changes: Any) -> GenerationRequest:
    return request(prompt(19), "seeded", n=n, temperature=1.0, seed=42, ignore_eos=True, **changes)


@pytest.mark.parametrize("filters", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.01, "repetition_penalty": 1.2}])
def test_a_seed_gives_the_same_tokens_alone_in_a_batch_in_chunks_and_preempted(
    runner: GetRunner, filters: dict[str, Any]
) -> None:
    alone = run(core_of(runner("llama")), [sampled(**filters)])["seeded"].outputs
    others = [request(prompt(17, i), f"r{i}", temperature=1.0, ignore_eos=True) for i in range(6)]
    together = run(core_of(runner("llama"), max_num_batched_tokens=7), [*others, sampled(**filters)])["seeded"].outputs
    small = core_of(runner("llama", blocks=10, max_model_len=80), max_num_batched_tokens=7)
    preempted = run(small, [*others, sampled(**filters)])["seeded"].outputs
    assert small.stats().preemptions > 0
    assert alone == together == preempted
    assert len({tuple(output.token_ids) for output in alone.values()}) == 3


def test_output_i_has_the_seed_plus_i(runner: GetRunner) -> None:
    outputs = run(core_of(runner("llama")), [sampled()])["seeded"].outputs
    for i in range(3):
        one = request(prompt(19), temperature=1.0, seed=42 + i, ignore_eos=True)
        assert run(core_of(runner("llama")), [one])["r"].tokens == outputs[i].token_ids


def test_without_a_seed_outputs_differ_and_an_engine_seed_repeats_them(runner: GetRunner) -> None:
    one = request(prompt(19), temperature=1.0, ignore_eos=True)
    free = {tuple(run(core_of(runner("llama")), [one])["r"].tokens) for _ in range(3)}
    fixed = {tuple(run(core_of(runner("llama"), seed=5), [one])["r"].tokens) for _ in range(3)}
    assert (len(free), len(fixed)) == (3, 1)


# ---- when things go wrong


def test_a_step_that_fails_ends_those_in_it_and_no_other(watched: Watched) -> None:
    core = core_of(watched, max_num_seqs=2)
    for i in range(3):
        core.add(request(prompt(9, i), f"r{i}", ignore_eos=True))
    core.step()
    watched.fail_at = {1}
    with pytest.raises(RuntimeError):
        core.step()
    report = core.fail_running(EngineFailure("sorry"))
    assert [request_id for request_id, _ in report.errors] == ["r0", "r1"]
    assert core.scheduler.pool.free == core.scheduler.pool.num_blocks
    finished = [name for _ in range(12) for name, output in core.step().outputs if output.finish_reason]
    assert finished == ["r2"]


def test_what_a_failed_step_did_get_done_is_told(runner: GetRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_of(runner("llama"))
    core.add(embedding("e", prompt(5)))
    core.add(request(prompt(9)))

    def broken(*_: Any, **__: Any) -> Never:
        raise RuntimeError("a broken sampler")

    monkeypatch.setattr("engines.pt.outputs.drawing.sample", broken)
    with pytest.raises(RuntimeError):
        core.step()
    report = core.fail_running(EngineFailure("sorry"))
    assert [request_id for request_id, _ in report.pooled] == ["e"]
    assert [request_id for request_id, _ in report.errors] == ["r"]
    assert not core.busy


@pytest.mark.parametrize("beams", [1, 3])
def test_a_request_without_any_token_to_choose_fails_alone(runner: GetRunner, beams: int) -> None:
    core = core_of(runner("llama"))
    tokens = greedy(runner, prompt(9))
    asked = [
        request(prompt(9), "sound", ignore_eos=True),
        request(prompt(9), "impossible", num_beams=beams, allowed_token_ids=(7,), bad_words_ids=((7,),), n=beams),
    ]
    answers = run(core, asked)
    assert isinstance(answers["impossible"].error, InvalidRequest)
    assert answers["sound"].tokens == tokens


@pytest.mark.parametrize("beams", [1, 2])
def test_logits_that_are_no_numbers_fail_their_request_alone(
    runner: GetRunner, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = runner("llama")
    tokens = greedy(runner, prompt(9))

    def poisoned(segments: list[Segment]) -> StepResult:
        result = plain.step(segments)
        row = 0
        for segment in segments:
            if segment.token_ids == prompt(5):
                with torch.inference_mode():
                    result.logits[row] = float("nan")
            row += segment.wants
        return result

    broken = Watched(plain)
    monkeypatch.setattr(broken, "step", poisoned)
    asked = [
        request(prompt(5), "broken", num_beams=beams),
        request(prompt(9), "sound", ignore_eos=True),
        request(prompt(9), "searching", num_beams=2, ignore_eos=True),
    ]
    answers = run(core_of(broken), asked)
    assert isinstance(answers["broken"].error, EngineFailure)
    assert answers["sound"].tokens == tokens
    assert len(answers["searching"].tokens) == 12


def test_counts_add_up(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_seqs=2)
    for i in range(4):
        core.add(request(prompt(9, i), f"r{i}", ignore_eos=True))
    core.step()
    stats = core.stats()
    assert Counter(running=stats.running, waiting=stats.waiting) == Counter(running=2, waiting=2)
    assert stats.kv_cache_usage == pytest.approx(4 / core.scheduler.pool.num_blocks)
