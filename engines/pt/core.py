"""The engine's heart, one step after another: schedule, compute, sample, tell. No sockets, no threads but the masks'.

`add` and `abort` may be called between steps only; `engines/pt/process.py` sees to that.
"""

import logging
import random
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from engines.adapters.slots import AdapterSlots
from engines.errors import EngineFailure, InvalidRequest, TuneserveError, UnsupportedParameter
from engines.pt.adapter_store import AdapterStore, Arrival
from engines.pt.beam import BeamSearch
from engines.pt.config import PtConfig
from engines.pt.kv_cache import BlockHashes, BlockPool
from engines.pt.runner import ModelRunner, Segment, StepResult
from engines.pt.scheduler import Chunk, Scheduler, check_fits
from engines.pt.sequence import Group, Sequence
from engines.sampler.grammar import GrammarCompiler, GrammarState, MaskWorker
from engines.sampler.sampling import SamplerRow, SamplingError, beam_candidates, sample, token_logprobs
from engines.text.request_check import check_prompt
from engines.types import (
    EmbeddingRequest,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Sampling,
    TokenLogprob,
    TokenOutput,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step has to tell."""

    outputs: list[tuple[str, TokenOutput]] = field(default_factory=list)
    embeddings: list[tuple[str, list[float]]] = field(default_factory=list)
    errors: list[tuple[str, TuneserveError]] = field(default_factory=list)
    adapters: list[Arrival] = field(default_factory=list)


class EngineCore:
    def __init__(
        self, runner: ModelRunner, config: PtConfig, eos_token_ids: tuple[int, ...], grammars: GrammarCompiler | None
    ) -> None:
        """`grammars` None: no request will bring a constraint."""
        self.runner = runner
        self.eos_token_ids = eos_token_ids
        self._masks = None if grammars is None else MaskWorker(grammars)
        cache = self.runner.cache
        pool = BlockPool(cache.num_blocks, cache.block_size, prefix_caching=config.enable_prefix_caching)
        budget = config.max_num_batched_tokens or (2048 if self.runner.device.type == "cuda" else 256)
        slots = AdapterSlots(runner.lora.num_slots)
        self.scheduler = Scheduler(
            pool, max_num_seqs=config.max_num_seqs, max_num_batched_tokens=budget, adapters=slots
        )
        max_in_host = config.max_cpu_loras or 4 * runner.lora.num_slots
        self.adapters = AdapterStore(runner.lora, slots, dtype=runner.dtype, max_in_host=max_in_host)
        self._report = StepReport()  # of the step that runs; kept here so that a step which fails loses nothing
        self._groups: dict[str, Group] = {}
        self._arrivals = 0
        self._seeds = None if config.seed is None else random.Random(config.seed)

    # ---- requests in and out

    def add(self, request: GenerationRequest | EmbeddingRequest, grammar: GrammarState | None = None) -> None:
        """Queue a request; `grammar` is its compiled constraint. Raises InvalidRequest where it can never run."""
        embed = isinstance(request, EmbeddingRequest)
        if isinstance(request, EmbeddingRequest):
            nothing = Sampling(max_new_tokens=0)
            request = GenerationRequest(
                request_id=request.request_id,
                prompt_ids=request.prompt_ids,
                sampling=nothing,
                adapter=request.adapter,
                priority=request.priority,
            )
        if request.sampling.seed is None and self._seeds is not None:
            seed = self._seeds.getrandbits(63)
            request = replace(request, sampling=replace(request.sampling, seed=seed))
        group = Group(request, self._arrivals, len(request.prompt_ids), embed)
        self._refuse(group)
        self._arrivals += 1
        sampling = request.sampling
        if sampling.num_beams > 1 and sampling.max_new_tokens:
            group.beams = BeamSearch(
                num_beams=sampling.num_beams,
                length_penalty=sampling.length_penalty,
                eos_token_ids=() if sampling.ignore_eos else self.eos_token_ids + sampling.stop_token_ids,
                max_new_tokens=self._room(group),
                n=request.n,
            )
        hashes = BlockHashes(self.scheduler.pool.block_size, request.adapter or "")
        sampler = SamplerRow(sampling, request.prompt_ids, self.eos_token_ids, 0, self.runner.vocab_size)
        sequence = Sequence(group, 0, list(request.prompt_ids), hashes, sampler, grammar)
        group.sequences.append(sequence)
        self._groups[request.request_id] = group
        self.scheduler.add(sequence)

    def _refuse(self, group: Group) -> None:
        request = group.request
        if request.adapter is not None and request.adapter not in self.adapters:
            raise EngineFailure(f"the engine does not hold the adapter {request.adapter!r}")
        if request.request_id in self._groups:
            raise InvalidRequest(f"request id {request.request_id!r} is in use")
        check_prompt(
            request.prompt_ids,
            vocab_size=self.runner.vocab_size,
            max_model_len=self.runner.max_model_len,
            more=min(request.sampling.max_new_tokens, 1),
        )
        if request.sampling.num_beams > 1:
            _refuse_beside_beams(request)
        check_fits(group, self.scheduler.pool, self.scheduler.max_num_seqs)

    def _room(self, group: Group) -> int:
        """How many tokens the request may generate."""
        return min(group.request.sampling.max_new_tokens, self.runner.max_model_len - group.num_prompt)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks; nothing happens where it has ended."""
        group = self._groups.pop(request_id, None)
        for sequence in group.sequences if group else ():
            self.scheduler.remove(sequence)

    def finish(self, request_id: str, index: int) -> None:
        """Drop one output of a request; the others go on."""
        group = self._groups.get(request_id)
        if group is None or group.beams is not None:
            return  # a beam is not an output
        if not group.forked:
            group.ended.add(index)
            if len(group.ended) == group.request.n:
                self.abort(request_id)
            return
        for sequence in [s for s in group.sequences if s.index == index]:
            self._drop(sequence)

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    @property
    def stalled(self) -> bool:
        """Whether all that waits, waits for adapters that are being read."""
        return self.scheduler.blocked and self.adapters.reading

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_cache_usage=scheduler.pool.usage,
            prefix_cache_queries=scheduler.prefix_queries,
            prefix_cache_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            adapter_slots=scheduler.adapters.resident,
            adapter_host=self.adapters.in_host,
            adapter_loads=dict(scheduler.adapters.loads),
            adapter_evictions=dict(scheduler.adapters.evictions),
        )

    # ---- adapters

    def unload_adapter(self, version: str, report: StepReport) -> None:
        """Forget an adapter; requests that name it still end with an error."""
        self._fail_users(version, EngineFailure(f"the adapter {version!r} was unloaded"), report)
        self.adapters.unload(version)

    def _read_adapters(self, report: StepReport) -> None:
        """Fetch those of the first in line; requests whose adapter has gone from the disk end with an error."""
        adapters = (sequence.group.request.adapter for sequence in self.scheduler.waiting)
        self.adapters.want(adapter for adapter in adapters if adapter is not None)
        for arrival in self.adapters.arrivals():
            report.adapters.append(arrival)
            if arrival.error is not None:
                self._fail_users(arrival.version, EngineFailure(arrival.error.message), report)

    def _fill_slots(self, chunks: list[Chunk], report: StepReport) -> list[Chunk]:
        """Copy adapters to their slots; return the chunks without those of adapters for which that failed."""
        failed = self.adapters.fill_slots()
        for arrival in failed:
            assert arrival.error is not None, "it failed"
            self._fail_users(arrival.version, arrival.error, report)
            self.adapters.vacate(arrival.version)
        return [chunk for chunk in chunks if chunk.sequence in self.scheduler.running] if failed else chunks

    def _fail_users(self, version: str, error: TuneserveError, report: StepReport) -> None:
        for group in [g for g in self._groups.values() if g.request.adapter == version]:
            self._fail(group, error, report)

    # ---- one step

    def step(self) -> StepReport:
        """Compute the next tokens of everything that is scheduled.

        What fails in it, fails alone: its request gets an error. An exception that leaves here concerns all requests
        of the step, which `fail_running` then ends.
        """
        self._report = report = StepReport()
        self._read_adapters(report)
        chunks = self._fill_slots(self.scheduler.schedule(), report)
        if self.scheduler.stuck is not None:
            self._fail(self.scheduler.stuck.group, _too_many_beams(self.scheduler), report)
        if not chunks:
            return report
        # 1. Whose logits are sampled from, new outputs of a shared prompt included; their masks are filled meanwhile.
        complete = [chunk.sequence for chunk in chunks if chunk.completes]
        rows = [row for sequence in complete if _samples(sequence) for row in self._with_forks(sequence)]
        masks = self._masks and self._masks.start([row.sequence.grammar for row in rows])
        # 2. Forward.
        result = self.runner.step([self._segment(chunk) for chunk in chunks])
        ends = self._read_prompts(chunks, result)
        for chunk in chunks:
            self.scheduler.computed(chunk)
        # 3. What comes of it.
        self._embed([s for s in complete if s.group.embed], ends, result, report)
        self._end_without_output([s for s in complete if _wants_nothing(s)], report)
        self._search([s for s in complete if s.group.beams is not None], ends, result, report)
        self._sample(rows, ends, result, masks and masks.result(), report)
        return report

    def fail_running(self, error: TuneserveError) -> StepReport:
        """End all requests that take part in steps with an error; what the failed step did get done is told too."""
        report, self._report = self._report, StepReport()
        for group in {id(s.group): s.group for s in self.scheduler.running}.values():
            self._fail(group, error, report)
        return report

    def running_http_request_ids(self) -> list[str]:
        """For logs: of the requests that take part in steps."""
        return sorted({str(sequence.group.request.http_request_id) for sequence in self.scheduler.running})

    def _segment(self, chunk: Chunk) -> Segment:
        sequence = chunk.sequence
        tokens = sequence.tokens[sequence.computed : sequence.computed + chunk.length]
        wants = chunk.length if _wants_prompt(sequence) else int(chunk.completes)
        return Segment(tokens, sequence.computed, sequence.blocks, wants, sequence.slot)

    def _read_prompts(self, chunks: list[Chunk], result: StepResult) -> dict[int, int]:
        """Note prompt logprobs; return the row of the last logits of each sequence that is complete, by its id()."""
        ends: dict[int, int] = {}
        row = 0
        for chunk in chunks:
            if _wants_prompt(chunk.sequence):
                self._note_prompt(chunk, result.logits[row : row + chunk.length])
                row += chunk.length
            else:
                row += int(chunk.completes)
            if chunk.completes:
                ends[id(chunk.sequence)] = row - 1
        return ends

    def _note_prompt(self, chunk: Chunk, logits: Tensor) -> None:
        group, start = chunk.sequence.group, chunk.sequence.computed
        if start == 0:
            group.prompt_logprobs = [None]  # nothing comes before the first token
        told = group.request.prompt_ids[start + 1 : start + 1 + chunk.length]
        if told:
            ids = torch.tensor(told, device=logits.device)
            count = group.request.sampling.prompt_logprobs
            assert count is not None, "asked for"
            group.prompt_logprobs += token_logprobs(logits[: len(told)], ids, count)

    # ---- outputs that share a prompt

    def _with_forks(self, sequence: Sequence) -> list["_Row"]:
        """The sequence, and where its prompt is complete for the first time, the other outputs of its request."""
        rows = [_Row(sequence, sequence)]
        group = sequence.group
        if not group.forked:
            for index in range(1, group.request.n):
                child = self._fork(sequence, index)
                child.sampler = SamplerRow(
                    group.request.sampling, group.request.prompt_ids, self.eos_token_ids, index, self.runner.vocab_size
                )
                rows.append(_Row(child, sequence))
            group.forked = True
        return rows

    def _fork(self, parent: Sequence, index: int) -> Sequence:
        """A sequence with its parent's text and constraint, not yet with blocks."""
        grammar = None if parent.grammar is None else parent.grammar.fork()
        child = Sequence(parent.group, index, list(parent.tokens), parent.hashes.copy(), parent.sampler, grammar)
        parent.group.sequences.append(child)
        return child

    def _seat(self, child: Sequence, parent: Sequence) -> None:
        """Let a fork run on its parent's blocks: full ones shared, the last, partial one copied."""
        pool = self.scheduler.pool
        full, rest = divmod(parent.computed, pool.block_size)
        if rest and not pool.free:
            self.scheduler.add(child)  # no room for the copy: it computes its tokens itself, later
            return
        pool.share(parent.blocks[:full])
        child.blocks, child.computed = parent.blocks[:full], parent.computed
        if rest:
            child.blocks = child.blocks + pool.allocate(1)
            self.runner.cache.copy_blocks(parent.blocks[full : full + 1], child.blocks[full:])
        self.scheduler.run(child)

    # ---- what comes of the logits

    def _embed(self, sequences: list[Sequence], ends: dict[int, int], result: StepResult, report: StepReport) -> None:
        for sequence in sequences:
            hidden = result.hidden[ends[id(sequence)]].float()
            report.embeddings.append((sequence.group.request.request_id, (hidden / hidden.norm()).tolist()))
            self._drop(sequence)

    def _end_without_output(self, sequences: list[Sequence], report: StepReport) -> None:
        """For requests of no tokens: they wanted what the prompt tells."""
        for sequence in sequences:
            for index in range(sequence.group.request.n):
                self._tell(sequence.group, TokenOutput(index=index, finish_reason=FinishReason.LENGTH), report)
            self._drop(sequence)

    def _search(self, sequences: list[Sequence], ends: dict[int, int], result: StepResult, report: StepReport) -> None:
        """Note the candidates of each beam; where a request has those of all its beams, let it choose and go on."""
        if not sequences:
            return
        groups = {id(s.group): s.group for s in sequences}.values()
        count = max(group.beams.candidates for group in groups if group.beams is not None)
        logits = result.logits[[ends[id(s)] for s in sequences]]
        try:
            candidates = beam_candidates(logits, [s.sampler for s in sequences], None, count)
        except SamplingError as error:
            for at, reason in error.failures.items():
                self._fail(sequences[at].group, reason, report)
            failed = {id(sequences[at].group) for at in error.failures}
            self._search([s for s in sequences if id(s.group) not in failed], ends, result, report)
            return
        for sequence, found in zip(sequences, candidates, strict=True):
            sequence.candidates = found
        for group in groups:
            if all(sequence.candidates is not None for sequence in group.sequences):
                self._next_beams(group, report)

    def _next_beams(self, group: Group, report: StepReport) -> None:
        search = group.beams
        assert search is not None, "only beams come here"
        parents = group.sequences
        step = search.advance([sequence.candidates or [] for sequence in parents])
        group.sequences, group.forked = [], True
        for index, (parent, token) in enumerate(step):
            child = self._fork(parents[parent], index)
            child.sampler = parents[parent].sampler.fork()
            self._seat(child, parents[parent])
            child.tokens.append(token)
            child.sampler.accept(token)
        for parent_sequence in parents:
            self.scheduler.remove(parent_sequence)
        if not step and len(search.hypotheses()) < group.request.n:
            message = f"the constraints leave fewer than the {group.request.n} outputs asked for"
            self._fail(group, InvalidRequest(message, param="n"), report)
        elif not step:
            for index, hypothesis in enumerate(search.hypotheses()):
                ids = hypothesis.token_ids
                output = TokenOutput(
                    index=index,
                    token_ids=ids,
                    finish_reason=FinishReason.STOP if hypothesis.stopped else FinishReason.LENGTH,
                    stop_token_id=ids[-1] if hypothesis.stopped else None,
                )
                self._tell(group, output, report)
            self._groups.pop(group.request.request_id, None)

    def _sample(
        self, rows: list["_Row"], ends: dict[int, int], result: StepResult, masks: Tensor | None, report: StepReport
    ) -> None:
        for row in rows:
            if row.sequence is not row.parent:
                self._seat(row.sequence, row.parent)
        while rows:
            places = [ends[id(row.parent)] for row in rows]
            logits = result.logits if places == list(range(len(result.logits))) else result.logits[places]
            try:
                batch = sample(logits, [row.sequence.sampler for row in rows], masks)
            except SamplingError as error:
                rows, masks = self._without(rows, masks, error, report)
                continue
            for row, token, logprob in zip(rows, batch.token_ids, batch.logprobs, strict=True):
                self._take(row.sequence, token, logprob, report)
            return

    def _without(
        self, rows: list["_Row"], masks: Tensor | None, error: SamplingError, report: StepReport
    ) -> tuple[list["_Row"], Tensor | None]:
        """Fail the requests of the rows that have no token to choose; return the others, with their masks."""
        for at, reason in error.failures.items():
            self._fail(rows[at].sequence.group, reason, report)
        failed = {id(rows[at].sequence.group) for at in error.failures}
        kept = [at for at, row in enumerate(rows) if id(row.sequence.group) not in failed]
        return [rows[at] for at in kept], None if masks is None else masks[kept]

    def _take(self, sequence: Sequence, token: int, logprob: TokenLogprob | None, report: StepReport) -> None:
        """Add a sampled token to its sequence, and end it where it ends."""
        group = sequence.group
        if group.request.request_id not in self._groups:
            return  # another of its outputs has just failed, and the request with it
        if sequence.index in group.ended:
            self._drop(sequence)
            return
        sequence.tokens.append(token)
        sequence.sampler.accept(token)
        stops = token in group.request.sampling.stop_token_ids
        stops |= token in self.eos_token_ids and not group.request.sampling.ignore_eos
        if sequence.grammar is not None and not stops:
            try:
                sequence.grammar.accept(token)
            except TuneserveError as error:
                self._fail(group, error, report)
                return
        reason = None
        if stops or (sequence.grammar is not None and sequence.grammar.finished):
            reason = FinishReason.STOP
        elif sequence.num_output >= self._room(group):
            reason = FinishReason.LENGTH
        output = TokenOutput(
            index=sequence.index,
            token_ids=(token,),
            logprobs=None if logprob is None else (logprob,),
            finish_reason=reason,
            stop_token_id=token if stops else None,
        )
        self._tell(group, output, report)
        if reason is not None:
            self._drop(sequence)

    def _tell(self, group: Group, output: TokenOutput, report: StepReport) -> None:
        if not group.announced:
            group.announced = True
            prompt = None if group.request.sampling.prompt_logprobs is None else tuple(group.prompt_logprobs)
            output = replace(
                output,
                cached_tokens=group.cached_tokens or 0,
                queue_seconds=group.queue_seconds,
                prompt_logprobs=prompt,
            )
        report.outputs.append((group.request.request_id, output))

    def _fail(self, group: Group, error: TuneserveError, report: StepReport) -> None:
        report.errors.append((group.request.request_id, error))
        self.abort(group.request.request_id)

    def _drop(self, sequence: Sequence) -> None:
        """Take out a sequence that has ended, and with its last one the request."""
        self.scheduler.remove(sequence)
        group = sequence.group
        group.sequences.remove(sequence)
        if not group.sequences:
            self._groups.pop(group.request.request_id, None)


@dataclass(frozen=True, slots=True)
class _Row:
    """A sequence that gets a token, and the one whose logits it is sampled from: itself, or the one it forks off."""

    sequence: Sequence
    parent: Sequence


def _refuse_beside_beams(request: GenerationRequest) -> None:
    sampling = request.sampling
    if request.n > sampling.num_beams:
        raise InvalidRequest(f"n is {request.n}, more than the {sampling.num_beams} beams", param="n")
    for name in ("logprobs", "structured"):
        if getattr(sampling, name) is not None:
            raise UnsupportedParameter(f"{name} cannot be combined with beam search", param=name)


def _too_many_beams(scheduler: Scheduler) -> InvalidRequest:
    tokens = scheduler.pool.num_blocks * scheduler.pool.block_size
    return InvalidRequest(
        f"the beams of this request do not fit the cache of {tokens} tokens at once", param="num_beams"
    )


def _wants_prompt(sequence: Sequence) -> bool:
    """Logits of every prompt token are asked for; never again for a sequence that has output already."""
    return sequence.group.request.sampling.prompt_logprobs is not None and not sequence.num_output


def _wants_nothing(sequence: Sequence) -> bool:
    return sequence.group.request.sampling.max_new_tokens == 0 and not sequence.group.embed


def _samples(sequence: Sequence) -> bool:
    group = sequence.group
    return not (group.embed or group.beams is not None or _wants_nothing(sequence))
