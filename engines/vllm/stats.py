"""vLLM's numbers, as its scheduler tells them step by step."""

from collections import Counter
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from engines.types import StepSizes


class Gauges(StatLoggerBase):  # type: ignore[misc]  # vLLM is Any to mypy, as it need not be there
    """Keeps the last step's gauges and sums up the counters."""

    def __init__(self) -> None:
        self.running = 0
        self.kv_cache_usage = 0.0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.preemptions = 0
        self.steps = 0
        self.sizes = StepSizes()
        self.drafts = 0
        self.draft_tokens = 0
        self.accepted: Counter[int] = Counter()
        """Guesses that were right, by their place in the draft."""

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        self.steps += 1
        if scheduler_stats is not None:
            self.running = scheduler_stats.num_running_reqs
            self.kv_cache_usage = scheduler_stats.kv_cache_usage
            self.prefix_cache_queries += scheduler_stats.prefix_cache_stats.queries
            self.prefix_cache_hits += scheduler_stats.prefix_cache_stats.hits
            if (drafted := scheduler_stats.spec_decoding_stats) is not None:
                self.drafts += drafted.num_drafts
                self.draft_tokens += drafted.num_draft_tokens
                self.accepted.update(dict(enumerate(drafted.num_accepted_tokens_per_pos)))
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs
            self.sizes.add(iteration_stats.prompt_token_stats.computed + iteration_stats.num_generation_tokens)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
