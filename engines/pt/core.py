"""The engine, one step after another: schedule, compute, sample, tell. No sockets, no threads but the masks'.

`add` and `requests` are for between two steps only; `engines/pt/process.py` sees to that.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from engines.adapters.slots import AdapterSlots
from engines.errors import EngineFailure, InvalidRequest, TuneserveError, UnsupportedParameter
from engines.pt.config import PtConfig
from engines.pt.lora.store import AdapterStore
from engines.pt.outputs.beams import Beams, check_beams, new_search, too_many_beams
from engines.pt.outputs.drawing import Drawing
from engines.pt.outputs.requests import Requests, StepReport
from engines.pt.outputs.siblings import Siblings
from engines.pt.outputs.speculation import Speculation
from engines.pt.runner import ModelRunner, Segment, StepResult
from engines.pt.sequences.kv_cache import BlockPool
from engines.pt.sequences.pace import NO_WORK, Pace, work_of
from engines.pt.sequences.scheduler import Chunk, Scheduler, check_fits
from engines.pt.sequences.sequence import Group, Sequence
from engines.sampler.grammar import GrammarCompiler, GrammarState, MaskWorker
from engines.sampler.sampling import token_logprobs
from engines.text.request_check import check_prompt
from engines.types import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    PoolingRequest,
    Sampling,
    StepSizes,
    TokenOutput,
)

log = logging.getLogger(__name__)


class EngineCore:
    def __init__(
        self,
        runner: ModelRunner,
        config: PtConfig,
        eos_token_ids: tuple[int, ...],
        grammars: GrammarCompiler | None,
        token_bytes: Callable[[int], bytes],
    ) -> None:
        """`grammars` None: no request will bring a constraint. `token_bytes`: what a token adds to a text, by which
        reasoning is followed."""
        self.runner = runner
        self.eos_token_ids = eos_token_ids
        self._masks = None if grammars is None else MaskWorker(grammars)
        cache = self.runner.cache
        pool = BlockPool(cache.num_blocks, cache.block_size, prefix_caching=config.enable_prefix_caching)
        budget = config.max_num_batched_tokens or (2048 if self.runner.device.type == "cuda" else 256)
        slots = AdapterSlots(runner.lora.num_slots)
        self._pace = None if config.max_itl_slowdown is None else Pace(config.max_itl_slowdown)
        self.scheduler = Scheduler(
            pool,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=budget,
            adapters=slots,
            pace=self._pace,
        )
        max_in_host = config.max_cpu_loras or 4 * runner.lora.num_slots
        self.adapters = AdapterStore(runner.lora, slots, dtype=runner.dtype, max_in_host=max_in_host)
        self._report = StepReport()  # of the step that runs; kept here so that a step which fails loses nothing
        self.requests = Requests(self.scheduler)
        self._siblings = Siblings(self.scheduler, runner, eos_token_ids, token_bytes)
        self._beams = Beams(self.scheduler, self.requests, self._siblings)
        self._speculation = Speculation(
            self.scheduler,
            config.prompt_lookup,
            self._room,
            device=self.runner.device,
            dtype=self.runner.dtype,
            vocab_size=self.runner.vocab_size,
        )
        self._drawing = Drawing(
            self.scheduler,
            self.requests,
            self._siblings,
            self._masks,
            self._room,
            runner.sampling,
            eos_token_ids,
            tempered=config.tempered_logprobs,
        )
        self._arrivals = 0
        self._steps = 0
        self._sizes = StepSizes()
        self._seeds = None if config.seed is None else random.Random(config.seed)

    # ---- requests in and out

    def add(self, request: GenerationRequest | PoolingRequest, grammar: GrammarState | None = None) -> None:
        """Queue a request; `grammar` is its compiled constraint. Raises InvalidRequest where it can never run."""
        pooling = request.task if isinstance(request, PoolingRequest) else None
        if isinstance(request, PoolingRequest):
            nothing = Sampling(max_new_tokens=0)
            request = GenerationRequest(
                request_id=request.request_id,
                prompt_ids=request.prompt_ids,
                sampling=nothing,
                adapter=request.adapter,
                priority=request.priority,
                cache_salt=request.cache_salt,
                share=request.share,
                weight=request.weight,
            )
        if request.sampling.seed is None and self._seeds is not None:
            seed = self._seeds.getrandbits(63)
            request = replace(request, sampling=replace(request.sampling, seed=seed))
        group = Group(request, self._arrivals, len(request.prompt_ids), pooling)
        self._refuse(group)
        self._arrivals += 1
        sampling = request.sampling
        if sampling.num_beams > 1 and sampling.max_new_tokens:
            ends = () if sampling.ignore_eos else self.eos_token_ids + sampling.stop_token_ids
            group.beams = new_search(request, end_token_ids=ends, max_new_tokens=self._room(group))
        self.requests.add(group, self._siblings.first(group, grammar))

    def _refuse(self, group: Group) -> None:
        request = group.request
        if request.adapter is not None and request.adapter not in self.adapters:
            raise EngineFailure(f"the engine does not hold the adapter {request.adapter!r}")
        if request.request_id in self.requests:
            raise InvalidRequest(f"request id {request.request_id!r} is in use")
        self._refuse_other_heads(group)
        check_prompt(
            request.prompt_ids,
            vocab_size=self.runner.vocab_size,
            max_model_len=self.runner.max_model_len,
            more=min(request.sampling.max_new_tokens, 1),
        )
        if request.sampling.num_beams > 1:
            check_beams(request)
        check_fits(group, self.scheduler.pool, self.scheduler.max_num_seqs)

    def _refuse_other_heads(self, group: Group) -> None:
        """Raises UnsupportedParameter. An adapter that is still being read says later what it has."""
        adapter = group.request.adapter
        own = False if adapter is None else self.adapters.has_head(adapter)
        has_head = self.runner.head is not None or own
        name = "the model" if adapter is None else f"the adapter {adapter!r}"
        if group.pooling == "classify" and has_head is False:
            raise UnsupportedParameter(f"{name} has no head to classify with", param="model")
        if group.pooling is None and has_head:
            raise UnsupportedParameter(f"{name} has a head that classifies, and generates no text", param="model")

    def _room(self, group: Group) -> int:
        """Number of tokens that the request may generate."""
        return min(group.request.sampling.max_new_tokens, self.runner.max_model_len - group.num_prompt)

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    @property
    def stalled(self) -> bool:
        """Whether every waiting request waits for an adapter that is being read."""
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
            waiting_for=scheduler.waiting_for,
            step_sizes=self._sizes.counts,
            step_tokens=self._sizes.tokens,
            adapter_slots=scheduler.adapters.resident,
            adapter_host=self.adapters.in_host,
            adapter_loads=dict(scheduler.adapters.loads),
            adapter_evictions=dict(scheduler.adapters.evictions),
            spec_drafts=self._speculation.drafts,
            spec_draft_tokens=self._speculation.draft_tokens,
            spec_accepted=dict(self._speculation.accepted),
            steps=self._steps,
        )

    # ---- adapters

    def unload_adapter(self, version: str, report: StepReport) -> None:
        """Forget an adapter; requests that name it still end with an error."""
        self.requests.fail_users(version, EngineFailure(f"the adapter {version!r} was unloaded"), report)
        self.adapters.unload(version)

    def _read_adapters(self, report: StepReport) -> None:
        """Read the adapters of the first in line; requests whose adapter has gone from the disk end with an error."""
        adapters = (sequence.group.request.adapter for sequence in self.scheduler.waiting)
        self.adapters.want(adapter for adapter in adapters if adapter is not None)
        for arrival in self.adapters.arrivals():
            report.adapters.append(arrival)
            if arrival.error is not None:
                self.requests.fail_users(arrival.version, EngineFailure(arrival.error.message), report)

    def _fill_slots(self, chunks: list[Chunk], report: StepReport) -> list[Chunk]:
        """Copy adapters to their slots; return the chunks without those of adapters for which that failed."""
        failed = self.adapters.fill_slots()
        for arrival in failed:
            assert arrival.error is not None, "it failed"
            self.requests.fail_users(arrival.version, arrival.error, report)
            self.adapters.vacate(arrival.version)
        return [chunk for chunk in chunks if chunk.sequence in self.scheduler.running] if failed else chunks

    # ---- other weights, and memory given up for a while; nothing runs or waits meanwhile

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with other weights from now on: see `ModelRunner.write`."""
        self.forget_prefixes()
        self.runner.write(weights)

    def forget_prefixes(self) -> None:
        """Compute every prompt anew."""
        self.scheduler.pool.forget()

    def sleep(self) -> None:
        """Give up the memory of the cache."""
        self.forget_prefixes()
        self.runner.cache.free()

    def wake(self, num_blocks: int) -> None:
        """Have a cache again, which may be of another size; but no more than has room."""
        cache = self.runner.cache
        cache.num_blocks = max(1, min(num_blocks, cache.room()))
        pool = self.scheduler.pool
        self.scheduler.pool = BlockPool(cache.num_blocks, cache.block_size, prefix_caching=pool.prefix_caching)
        cache.make()

    # ---- one step

    def step(self) -> StepReport:
        """Compute the next tokens of everything that is scheduled.

        What fails in it, fails alone: its request gets an error. An exception that leaves here concerns all requests
        of the step, which `fail_running` then ends.
        """
        began = time.perf_counter()
        self._report = report = StepReport()
        self._read_adapters(report)
        chunks = self._fill_slots(self.scheduler.schedule(), report)
        if self.scheduler.stuck is not None:
            self.requests.fail(self.scheduler.stuck.group, too_many_beams(self.scheduler.pool), report)
        if not chunks:
            return report
        chunks = self._speculation.extend(chunks)
        # 1. Whose logits are sampled from, new outputs of a shared prompt included; their masks are filled meanwhile.
        complete = [chunk.sequence for chunk in chunks if chunk.completes]
        rows = [row for sequence in complete if _samples(sequence) for row in self._siblings.outputs(sequence)]
        masks = self._masks and self._masks.start([row.sequence.grammar for row in rows])
        # 2. Forward.
        work = sum((work_of(c.sequence.computed, c.length + len(c.guess)) for c in chunks), NO_WORK)
        result = self.runner.step([self._segment(chunk) for chunk in chunks])
        self._steps += 1
        self._sizes.add(sum(chunk.length + len(chunk.guess) for chunk in chunks))
        ends = self._read_prompts(chunks, result)
        for chunk in chunks:
            self.scheduler.computed(chunk)
        # 3. What comes of it.
        self._pool([s for s in complete if s.group.pooling], ends, result, report)
        self._end_without_output([s for s in complete if _wants_nothing(s)], report)
        if beams := [s for s in complete if s.group.beams is not None]:
            self._beams.search(beams, result.logits[[ends[id(s)] for s in beams]], report)
        self._drawing.draw(rows, ends, result.logits, masks and masks.result(), report)
        self._speculation.end(report)
        if self._pace is not None:
            self._pace.note(work, time.perf_counter() - began, self.scheduler.kind)
        return report

    def fail_running(self, error: TuneserveError) -> StepReport:
        """End all requests that take part in steps with an error; what the failed step did get done is told too."""
        report, self._report = self._report, StepReport()
        for group in {id(s.group): s.group for s in self.scheduler.running}.values():
            self.requests.fail(group, error, report)
        return report

    def running_http_request_ids(self) -> list[str]:
        """The HTTP request ids of the requests that take part in steps, for logs."""
        return sorted({str(sequence.group.request.http_request_id) for sequence in self.scheduler.running})

    def _segment(self, chunk: Chunk) -> Segment:
        sequence = chunk.sequence
        tokens = sequence.tokens[sequence.computed : sequence.computed + chunk.length] + chunk.guess
        wants = chunk.length if _wants_prompt(sequence) else int(chunk.completes) + len(chunk.guess)
        return Segment(tokens, sequence.computed, sequence.blocks, wants, sequence.slot)

    def _read_prompts(self, chunks: list[Chunk], result: StepResult) -> dict[int, int]:
        """Note prompt logprobs; return the row of the logits after the last token of each sequence that is complete, by
        its id(). Those after its guesses follow."""
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
            row += len(chunk.guess)
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
            group.prompt_logprobs += token_logprobs(logits[: len(told)], ids, count, kernel=self.runner.sampling)

    # ---- what comes of the logits

    def _pool(self, sequences: list[Sequence], ends: dict[int, int], result: StepResult, report: StepReport) -> None:
        for sequence in sequences:
            at = ends[id(sequence)]
            if sequence.group.pooling == "embed":
                hidden = result.hidden[at].float()
                pooled = hidden / hidden.norm()
            elif (head := self.runner.lora.heads.get(sequence.slot)) is not None:
                pooled = head @ result.hidden[at].float()
            elif self.runner.head is not None:
                pooled = result.logits[at].float()
            else:
                missing = UnsupportedParameter("the adapter has no head to classify with", param="model")
                self.requests.fail(sequence.group, missing, report)
                continue
            if not pooled.isfinite().all():
                error = EngineFailure("the model's numbers for this prompt are not finite")
                self.requests.fail(sequence.group, error, report)
                continue
            report.pooled.append((sequence.group.request.request_id, pooled.tolist()))
            self.requests.drop(sequence)

    def _end_without_output(self, sequences: list[Sequence], report: StepReport) -> None:
        """End requests of no tokens: they asked for the prompt's logprobs only."""
        for sequence in sequences:
            for index in range(sequence.group.request.n):
                self.requests.tell(sequence.group, TokenOutput(index=index, finish_reason=FinishReason.LENGTH), report)
            self.requests.drop(sequence)


def _wants_prompt(sequence: Sequence) -> bool:
    """Logits of every prompt token are asked for; never again for a sequence that has output already."""
    return sequence.group.request.sampling.prompt_logprobs is not None and not sequence.num_output


def _wants_nothing(sequence: Sequence) -> bool:
    return sequence.group.request.sampling.max_new_tokens == 0 and sequence.group.pooling is None


def _samples(sequence: Sequence) -> bool:
    group = sequence.group
    return not (group.pooling or group.beams is not None or _wants_nothing(sequence))
