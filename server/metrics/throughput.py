"""One line of log about throughput every few seconds, while there is any."""

import asyncio
import logging
import time

from engines.engine import Engine
from server.metrics.metrics import Metrics

logger = logging.getLogger(__name__)


async def log_throughput(engine: Engine, metrics: Metrics, interval: float) -> None:
    """Log until cancelled. An idle server says nothing."""
    counted, since = metrics.tokens, time.monotonic()
    while True:
        await asyncio.sleep(interval)
        now, tokens, stats = time.monotonic(), metrics.tokens, engine.stats()
        prompt, generated = ((after - before) / (now - since) for before, after in zip(counted, tokens, strict=True))
        if prompt or generated or stats.running or stats.waiting:
            logger.info(
                "%.1f prompt tokens/s, %.1f generated tokens/s, %d running, %d waiting, KV cache %.1f%% full",
                prompt,
                generated,
                stats.running,
                stats.waiting,
                100 * stats.kv_cache_usage,
            )
        counted, since = tokens, now
