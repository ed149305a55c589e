"""What each key may take: requests at a time and a minute, tokens a minute, outputs a request.

Of what is allowed a minute, a bucket holds as much as may be taken at once; it fills up again evenly (a token bucket,
Turner 1986). A request has to find its prompt's tokens there; what it generates is taken as it comes, if need be from
what the next minutes bring, since nobody knows beforehand how much it is. Over any longer time the limit holds.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic

from engines.errors import InvalidRequest, RateLimited
from server.http.caller import Caller
from server.http.keys import KeyLimits

MINUTE = 60.0


class Allowances:
    """Those of all keys, by name: keys of one name share one."""

    def __init__(self, limits_of: Callable[[str], KeyLimits], defaults: KeyLimits) -> None:
        """`limits_of` tells the limits of a key by its name; where it has none, `defaults` hold."""
        self._limits_of = limits_of
        self._defaults = defaults
        self._of: dict[str, Allowance] = {}

    def of(self, caller: Caller) -> "Allowance":
        """A key whose limits have changed begins anew."""
        if caller.name is None:
            return UNLIMITED
        limits = self._limits_of(caller.name).or_else(self._defaults)
        found = self._of.get(caller.name)
        if found is None or found.limits != limits:
            found = self._of[caller.name] = Allowance(limits)
        return found


class Allowance:
    def __init__(self, limits: KeyLimits) -> None:
        self.limits = limits
        self._running = 0
        self._requests = None if limits.requests_per_minute is None else Bucket(limits.requests_per_minute)
        self._tokens = None if limits.tokens_per_minute is None else Bucket(limits.tokens_per_minute)

    def begin(self, held: ExitStack) -> None:
        """A request begins; it ends when `held` is closed. Raises RateLimited."""
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
        """The prompts of a request are about to be computed. Raises RateLimited."""
        if self._tokens is not None:
            self._tokens.take(tokens, "tokens")

    def take_output(self, tokens: int) -> None:
        """Tokens have been generated."""
        if self._tokens is not None:
            self._tokens.level -= tokens

    def headers(self) -> Iterator[tuple[str, str]]:
        """OpenAI's."""
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                yield f"x-ratelimit-limit-{name}", str(bucket.most)
                yield f"x-ratelimit-remaining-{name}", str(max(0, math.floor(bucket.level)))
                yield f"x-ratelimit-reset-{name}", duration((bucket.most - bucket.level) / bucket.rate)


class Bucket:
    """What may be taken: `most` at once, and as much a minute."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rate = most / MINUTE
        """What comes back each second."""
        self._level = float(most)
        self._seen = monotonic()

    @property
    def level(self) -> float:
        """What is there now: below nothing where more was taken than there was."""
        now = monotonic()
        self._level = min(self.most, self._level + (now - self._seen) * self.rate)
        self._seen = now
        return self._level

    @level.setter
    def level(self, level: float) -> None:
        self._level = level

    def take(self, amount: int, what: str) -> None:
        """Raises RateLimited where there is not as much. More than there can ever be is taken when the bucket is
        full."""
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


UNLIMITED = Allowance(KeyLimits())
"""For who needs no key."""
