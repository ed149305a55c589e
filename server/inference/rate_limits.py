"""Rate limits of keys: requests at a time, requests and tokens a minute, outputs of one request.

The limits of a minute are token buckets (Turner 1986): a bucket holds a minute's worth, which may be taken at once, and
fills up again evenly. A request needs its prompt's tokens in the bucket. What it generates is taken as it comes, even
where that leaves less than nothing, since nobody knows beforehand how much it is. Over any longer time the limit holds.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic

from engines.errors import InvalidRequest, RateLimited
from server.http.keys.caller import Caller
from server.http.keys.keys import KeyLimits

MINUTE = 60.0
RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{of}-{what}" for what in ("requests", "tokens") for of in ("limit", "remaining", "reset")
)
"""Those of answers, for web pages that may ask."""


class RateLimits:
    """The rate limit of each name of keys."""

    def __init__(self, limits_of: Callable[[str], KeyLimits], defaults: KeyLimits) -> None:
        """`limits_of` gives the limits that the keys of a name have; `defaults` hold for those that it leaves open."""
        self._limits_of = limits_of
        self._defaults = defaults
        self._of: dict[str, RateLimit] = {}

    def of(self, caller: Caller) -> "RateLimit":
        """Keys of one name share one. Where their limits have changed, it begins anew."""
        if caller.name is None:
            return UNLIMITED
        limits = self._limits_of(caller.name).or_else(self._defaults)
        found = self._of.get(caller.name)
        if found is None or found.limits != limits:
            found = self._of[caller.name] = RateLimit(limits)
        return found


class RateLimit:
    """What the keys of one name have taken, and may take."""

    def __init__(self, limits: KeyLimits) -> None:
        self.limits = limits
        self._running = 0
        self._requests = None if limits.requests_per_minute is None else Bucket(limits.requests_per_minute)
        self._tokens = None if limits.tokens_per_minute is None else Bucket(limits.tokens_per_minute)

    def begin(self, held: ExitStack) -> None:
        """Count a request as running until `held` is closed. Raises RateLimited."""
        most = self.limits.max_running_requests
        if most is not None and self._running >= most:
            raise RateLimited(f"This API key may have {most} requests running at a time.", retry_after=1)
        if self._requests is not None:
            self._requests.take(1, "requests")
        self._running += 1
        held.callback(self._end)

    def _end(self) -> None:
        self._running -= 1

    def check_outputs(self, outputs: int, param: str) -> None:
        """Raises InvalidRequest where one request asks for too many."""
        most = self.limits.max_outputs
        if most is not None and outputs > most:
            raise InvalidRequest(
                f"The request asks for {outputs} outputs, and this API key may have {most} of one request.", param=param
            )

    def take_prompt(self, tokens: int) -> None:
        """Take the tokens of a request's prompts, before they are computed. Raises RateLimited."""
        if self._tokens is not None:
            self._tokens.take(tokens, "tokens")

    def take_output(self, tokens: int) -> None:
        """Take tokens that have been generated."""
        if self._tokens is not None:
            self._tokens.level -= tokens

    def headers(self) -> Iterator[tuple[str, str]]:
        """OpenAI's headers that say what is left."""
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                yield f"x-ratelimit-limit-{name}", str(bucket.most)
                yield f"x-ratelimit-remaining-{name}", str(max(0, math.floor(bucket.level)))
                yield f"x-ratelimit-reset-{name}", duration((bucket.most - bucket.level) / bucket.rate)


class Bucket:
    """A token bucket: `most` may be taken at once, and as much comes back each minute."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rate = most / MINUTE
        """What comes back each second."""
        self._level = float(most)
        self._seen = monotonic()

    @property
    def level(self) -> float:
        """What is there now; negative where more was taken than there was."""
        now = monotonic()
        self._level = min(self.most, self._level + (now - self._seen) * self.rate)
        self._seen = now
        return self._level

    @level.setter
    def level(self, level: float) -> None:
        self._level = level

    def take(self, amount: int, what: str) -> None:
        """Raises RateLimited where less than `amount` is there. An amount that the bucket never holds is taken when it
        is full."""
        missing = min(amount, self.most) - self.level
        if missing > 0:
            wait = missing / self.rate
            raise RateLimited(
                f"This API key may use {self.most} {what} a minute: this request needs {amount}, and there are "
                f"{max(0, math.floor(self._level))} left. Try again in {duration(wait)}.",
                retry_after=math.ceil(wait),
            )
        self.level -= amount


def duration(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1s`, `20ms`."""
    milliseconds = math.ceil(max(0.0, seconds) * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(math.ceil(milliseconds / 1000), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


UNLIMITED = RateLimit(KeyLimits())
"""For clients of a server without keys."""
