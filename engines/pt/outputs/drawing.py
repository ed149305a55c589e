"""The next token of each output: drawn, added to its sequence, told; and what ends by it."""

from collections.abc import Callable

from torch import Tensor

from engines.errors import TuneserveError
from engines.pt.outputs.requests import Requests, StepReport
from engines.pt.outputs.siblings import Row, Siblings
from engines.pt.sequences.scheduler import Scheduler
from engines.pt.sequences.sequence import Group, Sequence
from engines.sampler.grammar import MaskWorker
from engines.sampler.native import SamplingKernel
from engines.sampler.sampling import SampledBatch, SamplingError, sample
from engines.types import FinishReason, TokenLogprob, TokenOutput


class Drawing:
    def __init__(
        self,
        scheduler: Scheduler,
        requests: Requests,
        siblings: Siblings,
        masks: MaskWorker | None,
        room: Callable[[Group], int],
        kernel: SamplingKernel | None,
        eos_token_ids: tuple[int, ...],
        *,
        tempered: bool,
    ) -> None:
        """`room`: how many tokens a request may generate. `kernel`, `tempered`: see `sample`."""
        self._scheduler = scheduler
        self._requests = requests
        self._siblings = siblings
        self._masks = masks
        self._room = room
        self._kernel = kernel
        self._eos_token_ids = eos_token_ids
        self._tempered = tempered

    def draw(
        self, rows: list[Row], ends: dict[int, int], logits: Tensor, masks: Tensor | None, report: StepReport
    ) -> None:
        """`ends`: the row of the logits after the last token of each sequence, by its id(); those after its guesses
        follow. `masks`: of `rows`, as `sample` wants them."""
        self._siblings.run([row for row in rows if row.sequence is not row.parent])
        sequences = [row.sequence for row in rows]
        places = {id(row.sequence): ends[id(row.parent)] for row in rows}
        while sequences:
            sequences, batch = self._draw(sequences, places, logits, masks, report)
            for sequence, token, logprob in zip(sequences, batch.token_ids, batch.logprobs, strict=True):
                self._take(sequence, token, logprob, report)
            # Where the token was guessed, the row after it is computed, too.
            drawn = zip(sequences, batch.token_ids, strict=True)
            sequences = [sequence for sequence, token in drawn if self._was_guessed(sequence, token)]
            for sequence in sequences:
                places[id(sequence)] += 1
            constrained = self._masks if any(sequence.grammar for sequence in sequences) else None
            masks = constrained and constrained.start([sequence.grammar for sequence in sequences]).result()

    def _was_guessed(self, sequence: Sequence, token: int) -> bool:
        """Whether a sequence goes on within the step, as the token that it just got was guessed."""
        guessed = sequence.draft is not None and sequence.draft.compare(token)
        if not guessed or sequence not in self._scheduler.running:
            return False
        self._scheduler.guessed(sequence)
        return True

    def _draw(
        self,
        sequences: list[Sequence],
        places: dict[int, int],
        logits: Tensor,
        masks: Tensor | None,
        report: StepReport,
    ) -> tuple[list[Sequence], SampledBatch]:
        """Draw a token for each sequence from its place in the logits. The requests of those that have none to choose
        fail; returns the others, with their tokens."""
        while sequences:
            at = [places[id(sequence)] for sequence in sequences]
            own = logits if at == list(range(len(logits))) else logits[at]
            try:
                samplers = [sequence.sampler for sequence in sequences]
                return sequences, sample(own, samplers, masks, tempered=self._tempered, kernel=self._kernel)
            except SamplingError as error:
                sequences, masks = self._without(sequences, masks, error, report)
        return [], SampledBatch([], [])

    def _without(
        self, sequences: list[Sequence], masks: Tensor | None, error: SamplingError, report: StepReport
    ) -> tuple[list[Sequence], Tensor | None]:
        """Fail the requests of the sequences that have no token to choose; return the others, with their masks."""
        for at, reason in error.failures.items():
            self._requests.fail(sequences[at].group, reason, report)
        failed = {id(sequences[at].group) for at in error.failures}
        kept = [at for at, sequence in enumerate(sequences) if id(sequence.group) not in failed]
        return [sequences[at] for at in kept], None if masks is None else masks[kept]

    def _take(self, sequence: Sequence, token: int, logprob: TokenLogprob | None, report: StepReport) -> None:
        """Add a sampled token to its sequence, and end it where it ends."""
        group = sequence.group
        if group.request.request_id not in self._requests:
            return  # another of its outputs has just failed, and the request with it
        if sequence.index in group.ended:
            self._requests.drop(sequence)
            return
        sequence.tokens.append(token)
        sequence.sampler.accept(token)
        stops = token in group.request.sampling.stop_token_ids
        stops |= token in self._eos_token_ids and not group.request.sampling.ignore_eos
        if sequence.grammar is not None and not stops:
            try:
                sequence.grammar.accept(token)
            except TuneserveError as error:
                self._requests.fail(group, error, report)
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
            preemptions=None if reason is None else sequence.preemptions,
        )
        self._requests.tell(group, output, report)
        if reason is not None:
            self._requests.drop(sequence)
