"""Speculative decoding: a step computes guesses at a sequence's next tokens beside the one that is certain.

Their rows give the logits that the sequence would have had one step after another. Tokens are then drawn one by one as
they are without guesses, each with the sequence's own parameters, constraint and random number for its position, and
as long as what was drawn is what was guessed, the next row is drawn from, too. So outputs are those without guesses. It
is the rejection sampling of Leviathan et al. 2023 (arXiv:2211.17192) for a draft that puts all its mass on one token.

Guesses take what a step has left over: no block and no token of its budget that anybody else needs. Whether one is
worth its row depends on how likely it is, and on the step: one that reads all weights for a single row computes a few
more at little cost, one of many rows takes longer with each.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch

from engines.pt.config import PromptLookup
from engines.pt.outputs.requests import StepReport
from engines.pt.sequences.drafter import Drafter, Prediction, Source
from engines.pt.sequences.prompt_lookup import NO_TOKEN, Lookup
from engines.pt.sequences.scheduler import Chunk, Scheduler
from engines.pt.sequences.sequence import Group, Sequence

ROWS_PER_READ = {"bfloat16": 11, "float32": 5}
ROWS_PER_READ_ON_GPU = 128
"""How many rows a step multiplies in the time in which it reads the weights, on a CPU by dtype: measured for a model of
135M parameters on two cores with AVX512-BF16 (`python -m benchmarks.steps`). Not measured on a GPU."""

LIKELIEST = 0.9
"""Where a guess must be likelier than this one to be worth its row, none is looked for: that takes time, too."""

MOST_PREDICTED = 32
"""The most guesses at a time that come of a request's own prediction."""

PREDICTED_RUN = (2, 8)
"""How many of an output's last tokens must stand in the prediction to be followed there, and how many are compared."""

FIRST_LIKELIHOOD = 0.6
FIRST_LIKELIHOOD_OF_PREDICTION = 0.8


class Speculation:
    """The guesses of each step, and how many of all were right."""

    def __init__(
        self,
        scheduler: Scheduler,
        lookup: PromptLookup | None,
        room: Callable[[Group], int],
        *,
        device: torch.device,
        dtype: torch.dtype,
        vocab_size: int,
    ) -> None:
        """`lookup`: None: outputs are looked up in what their clients predict alone. `room`: how many tokens
        each output of a request may have."""
        self._scheduler = scheduler
        self._lookup = lookup
        self._room = room
        on_cpu = ROWS_PER_READ.get(str(dtype).removeprefix("torch."), ROWS_PER_READ["float32"])
        self._rows_per_read = on_cpu if device.type == "cpu" else ROWS_PER_READ_ON_GPU
        self._vocab_size = vocab_size
        self._guessed: list[Sequence] = []
        self.drafts = 0
        self.draft_tokens = 0
        self.accepted: Counter[int] = Counter()
        """Guesses that were right, by their place in the draft."""

    def extend(self, chunks: list[Chunk]) -> list[Chunk]:
        """Add guesses to the decodes of a step."""
        self._guessed = []
        rows = sum(chunk.length for chunk in chunks)
        left = self._scheduler.max_num_batched_tokens - rows
        least = self._least(rows)
        extended = []
        for chunk in chunks:
            chunk.sequence.draft = None
            if least <= LIKELIEST and _decodes(chunk):
                guess = self._guess(chunk.sequence, least, left)
                left -= len(guess)
                chunk = replace(chunk, guess=guess)
            extended.append(chunk)
        return extended

    def _least(self, rows: int) -> float:
        """The likelihood from which a guess is worth its row: what one row more costs a step that has many, beside what
        each row costs that it has. A step of n rows takes the longer of reading and multiplying, sqrt(1 + (n / r)^2)
        times the reading where that is as long as multiplying r rows."""
        return rows / math.hypot(rows, self._rows_per_read)

    def _guess(self, sequence: Sequence, least: float, left: int) -> list[int]:
        if sequence.drafter is None:
            sequence.drafter = self._drafter(sequence)
        # After the guesses, all of them right, there comes one token more.
        most = min(left, self._room(sequence.group) - sequence.num_output - 1)
        draft = sequence.drafter.propose(sequence.tokens, least=least, most=most)
        if draft is None:
            return []
        draft.rows = self._scheduler.make_room_for_guess(sequence, draft.rows)
        sequence.draft = draft
        self._guessed.append(sequence)
        return draft.token_ids[: draft.rows]

    def _drafter(self, sequence: Sequence) -> Drafter:
        sources, group = [], sequence.group
        if (predicted := group.request.prediction_ids) is not None:
            known = [token if 0 <= token < self._vocab_size else NO_TOKEN for token in predicted]
            shortest, longest = PREDICTED_RUN
            # An output that has not begun stands where the prediction begins: both have the same mark there.
            lookup = Lookup([NO_TOKEN], shortest=shortest, longest=longest, corpus=[NO_TOKEN, *known])
            begins = group.num_prompt - 1
            sources.append(Source(lookup, begins, MOST_PREDICTED, FIRST_LIKELIHOOD_OF_PREDICTION, Prediction()))
        if (config := self._lookup) is not None:
            lookup = Lookup([], shortest=config.prompt_lookup_min, longest=config.prompt_lookup_max)
            sources.append(Source(lookup, 0, config.num_speculative_tokens, FIRST_LIKELIHOOD))
        return Drafter(sources)

    def end(self, report: StepReport) -> None:
        """Note what has come of the guesses of the step, and give back what they had."""
        for sequence in self._guessed:
            draft = sequence.draft
            assert draft is not None, "it was guessed at"
            self.drafts += draft.rows > 0
            self.draft_tokens += draft.rows
            self.accepted.update(range(draft.accepted))
            if draft.source.prediction is not None:
                report.note_prediction(sequence, *draft.source.prediction.add(draft))
            self._scheduler.give_back_room(sequence)


def _decodes(chunk: Chunk) -> bool:
    sequence = chunk.sequence
    return chunk.completes and chunk.length == 1 and sequence.num_output > 0 and sequence.group.beams is None
