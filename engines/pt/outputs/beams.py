"""Beam search in the steps of the engine: the beams of a request are siblings, and `beam_search.py` chooses among
them."""

from collections.abc import Collection

from torch import Tensor

from engines.errors import InvalidRequest, UnsupportedParameter
from engines.pt.outputs.requests import Requests, StepReport
from engines.pt.outputs.siblings import Row, Siblings
from engines.pt.sequences.beam_search import BeamSearch
from engines.pt.sequences.kv_cache import BlockPool
from engines.pt.sequences.scheduler import Scheduler
from engines.pt.sequences.sequence import Group, Sequence
from engines.sampler.sampling import SamplingError, beam_candidates
from engines.types import FinishReason, GenerationRequest, TokenOutput


def check_beams(request: GenerationRequest) -> None:
    """Refuse what cannot be done beside beam search. Raises InvalidRequest, UnsupportedParameter."""
    sampling = request.sampling
    if request.n > sampling.num_beams:
        raise InvalidRequest(f"n is {request.n}, more than the {sampling.num_beams} beams", param="n")
    apart = {
        "logprobs": sampling.logprobs,
        "structured": sampling.structured,
        "thinking_token_budget": sampling.thinking_budget,
    }
    for name, value in apart.items():
        if value is not None:
            raise UnsupportedParameter(f"{name} cannot be combined with beam search", param=name)


def new_search(request: GenerationRequest, *, end_token_ids: Collection[int], max_new_tokens: int) -> BeamSearch:
    return BeamSearch(
        num_beams=request.sampling.num_beams,
        length_penalty=request.sampling.length_penalty,
        eos_token_ids=end_token_ids,
        max_new_tokens=max_new_tokens,
        n=request.n,
    )


def too_many_beams(pool: BlockPool) -> InvalidRequest:
    """The error of a request whose beams wait for blocks that they hold themselves."""
    tokens = pool.num_blocks * pool.block_size
    return InvalidRequest(
        f"the beams of this request do not fit the cache of {tokens} tokens at once", param="num_beams"
    )


class Beams:
    def __init__(self, scheduler: Scheduler, requests: Requests, siblings: Siblings) -> None:
        self._scheduler = scheduler
        self._requests = requests
        self._siblings = siblings

    def search(self, sequences: list[Sequence], logits: Tensor, report: StepReport) -> None:
        """Note the candidates of each beam; where a request has those of all its beams, let it choose and go on.

        logits: (sequences, vocab_size)
        """
        groups = {id(s.group): s.group for s in sequences}.values()
        count = max(group.beams.candidates for group in groups if group.beams is not None)
        try:
            candidates = beam_candidates(logits, [s.sampler for s in sequences], None, count)
        except SamplingError as error:
            for at, reason in error.failures.items():
                self._requests.fail(sequences[at].group, reason, report)
            failed = {id(sequences[at].group) for at in error.failures}
            kept = [at for at, sequence in enumerate(sequences) if id(sequence.group) not in failed]
            if kept:
                self.search([sequences[at] for at in kept], logits[kept], report)
            return
        for sequence, found in zip(sequences, candidates, strict=True):
            sequence.candidates = found
        for group in groups:
            if all(sequence.candidates is not None for sequence in group.sequences):
                self._advance(group, report)

    def _advance(self, group: Group, report: StepReport) -> None:
        search = group.beams
        assert search is not None, "only beams come here"
        parents = group.sequences
        step = search.advance([sequence.candidates or [] for sequence in parents])
        group.sequences, group.forked = [], True
        forks = [Row(self._siblings.fork(parents[at], index), parents[at]) for index, (at, _) in enumerate(step)]
        self._siblings.run(forks)
        for fork, (_, token) in zip(forks, step, strict=True):
            child = fork.sequence
            child.sampler = fork.parent.sampler.fork()
            child.tokens.append(token)
            child.sampler.accept(token)
        for parent_sequence in parents:
            self._scheduler.remove(parent_sequence)
        if not step:
            self._end(group, search, report)

    def _end(self, group: Group, search: BeamSearch, report: StepReport) -> None:
        hypotheses = search.hypotheses()
        if len(hypotheses) < group.request.n:
            message = f"the constraints leave fewer than the {group.request.n} outputs asked for"
            self._requests.fail(group, InvalidRequest(message, param="n"), report)
            return
        for index, hypothesis in enumerate(hypotheses):
            ids = hypothesis.token_ids
            output = TokenOutput(
                index=index,
                token_ids=ids,
                finish_reason=FinishReason.STOP if hypothesis.stopped else FinishReason.LENGTH,
                stop_token_id=ids[-1] if hypothesis.stopped else None,
            )
            self._requests.tell(group, output, report)
        self._requests.forget(group)
