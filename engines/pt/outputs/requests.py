"""The requests that the engine has taken in and that have not ended, and the report of a step's results."""

from dataclasses import dataclass, field

from msgspec.structs import replace

from engines.errors import TuneserveError
from engines.pt.lora.store import Arrival
from engines.pt.sequences.scheduler import Scheduler
from engines.pt.sequences.sequence import Group, Sequence
from engines.types import TokenOutput


@dataclass(frozen=True, slots=True)
class StepReport:
    """The results of a step, by request id, and the adapters whose reads have ended."""

    outputs: list[tuple[str, TokenOutput]] = field(default_factory=list)
    pooled: list[tuple[str, list[float]]] = field(default_factory=list)
    errors: list[tuple[str, TuneserveError]] = field(default_factory=list)
    adapters: list[Arrival] = field(default_factory=list)
    _places: dict[tuple[str, int], int] = field(default_factory=dict)
    """Where in `outputs` each output of a request is."""

    def add(self, request_id: str, output: TokenOutput) -> None:
        """Add to an output; where the step has added to it before, the two come as one."""
        place = self._places.setdefault((request_id, output.index), len(self.outputs))
        if place < len(self.outputs):
            self.outputs[place] = (request_id, joined(self.outputs[place][1], output))
        else:
            self.outputs.append((request_id, output))

    def note_prediction(self, sequence: Sequence, accepted: int, rejected: int) -> None:
        """Tell with an output what has come of its request's prediction in this step."""
        request_id = sequence.group.request.request_id
        if (place := self._places.get((request_id, sequence.index))) is not None:
            _, output = self.outputs[place]
            told = replace(output, accepted_prediction_tokens=accepted, rejected_prediction_tokens=rejected)
            self.outputs[place] = (request_id, told)


def joined(output: TokenOutput, more: TokenOutput) -> TokenOutput:
    return replace(
        output,
        token_ids=output.token_ids + more.token_ids,
        logprobs=None if output.logprobs is None else output.logprobs + (more.logprobs or ()),
        finish_reason=more.finish_reason,
        stop_token_id=more.stop_token_id,
        preemptions=more.preemptions,
    )


class Requests:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._groups: dict[str, Group] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._groups

    def add(self, group: Group, first: Sequence) -> None:
        """Queue a request, which begins with one sequence: its prompt."""
        group.sequences.append(first)
        self._groups[group.request.request_id] = group
        self._scheduler.add(first)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks; nothing happens where it has ended."""
        group = self._groups.pop(request_id, None)
        for sequence in group.sequences if group else ():
            self._scheduler.remove(sequence)

    def abort_all(self) -> None:
        for request_id in list(self._groups):
            self.abort(request_id)

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
            self.drop(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Take out a sequence that has ended, and with its last one the request."""
        self._scheduler.remove(sequence)
        group = sequence.group
        group.sequences.remove(sequence)
        if not group.sequences:
            self.forget(group)

    def forget(self, group: Group) -> None:
        """The request has ended: none of its sequences is left."""
        self._groups.pop(group.request.request_id, None)

    def tell(self, group: Group, output: TokenOutput, report: StepReport) -> None:
        """Report an output, the first one of a request with the facts about its prompt."""
        if not group.announced:
            group.announced = True
            prompt = None if group.request.sampling.prompt_logprobs is None else tuple(group.prompt_logprobs)
            output = replace(
                output,
                cached_tokens=group.cached_tokens or 0,
                queue_seconds=group.queue_seconds,
                prompt_logprobs=prompt,
            )
        report.add(group.request.request_id, output)

    def fail(self, group: Group, error: TuneserveError, report: StepReport) -> None:
        """End a request with an error."""
        report.errors.append((group.request.request_id, error))
        self.abort(group.request.request_id)

    def fail_users(self, version: str, error: TuneserveError, report: StepReport) -> None:
        """End the requests of an adapter with an error."""
        for group in [g for g in self._groups.values() if g.request.adapter == version]:
            self.fail(group, error, report)
