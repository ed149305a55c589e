"""The names of adapters: what each stands for now, who uses it, and when its weights may go. The same for every engine.

A name stands for a version, `name@hash`, which is what the engine knows. A name is published once the engine holds its
version; a request leases the version that its model's name stands for, and keeps that one until it ends, whatever
becomes of the name meanwhile. A version that no name stands for is unloaded when nobody leases it any more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.engine import Engine

AdapterState = Literal["slot", "host", "disk", "draining", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One version of an adapter, as it is now."""

    name: str
    version: str
    """`name@hash`, as `GenerationRequest.adapter` wants it."""
    source: str
    """The last part of the path that it was copied from."""
    rank: int
    num_bytes: int
    state: AdapterState
    """Where its weights are; `draining`: replaced or unloaded, and in use until its last request ends; `failed`: it was
    loaded before the server started, and cannot be served now (`error`)."""
    error: str = ""
    pinned: bool
    created: int
    """Unix time at which this version was loaded."""
    requests: int
    """How many have begun since the server started."""
    in_flight: int
    last_used: int | None
    """Unix time at which its last request began."""


@dataclass(slots=True)
class Lease:
    """What a request's `model` stands for. The version stays loaded until `release`."""

    version: str | None
    """None: the base model."""
    name: str
    """The adapter's own name, whatever alias was asked for; the base model's for that one."""
    _on_release: Callable[[], None] | None = None

    def release(self) -> None:
        """The request has ended. May be called again."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()


class AdapterRegistry:
    def __init__(
        self, engine: Engine, *, base_name: str, model: str, state_dir: Path, adapter_dir: Path | None = None
    ) -> None:
        """`base_name` is the base model's name in the API, `model` what it was loaded from.

        The subfolders of `adapter_dir` are adapters too: one that a request names is loaded then.
        """
        raise NotImplementedError

    async def restore(self) -> None:
        """Load what was loaded when the server ended. Comes once, after `engine.start` and before anything else.

        An adapter that cannot be served any more is kept, as `failed`. Where another server uses `state_dir`, nothing
        is restored, and `load` and `alias` raise Conflict.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Let another server use `state_dir`. Comes last, after `engine.stop`."""
        raise NotImplementedError

    async def load(
        self,
        name: str,
        folder: Path,
        *,
        replace: bool = False,
        pinned: bool | None = None,
        durable: bool = True,
        follow_links: bool = False,
    ) -> Adapter:
        """Copy the PEFT adapter of `folder`, have the engine load it, and publish it as `name`; `folder` may go then.

        Raises Conflict where the name is taken, unless `replace`: then requests from now on get the new version, those
        in flight keep theirs, and the same content again is no new version. `pinned`: never swapped out; None: as what
        it replaces, else not. `durable`: it is back after a restart. `follow_links`: the files in `folder` may be
        symbolic links, as in the hub's cache; else they are refused.

        Raises InvalidAdapter (`param` is the field at fault), NotFound where there is no such folder, Conflict,
        InvalidRequest for a name that cannot be one (`param` "name"), EngineUnavailable, EngineFailure. A load that
        fails leaves everything as it was; one whose caller is cancelled goes on.
        """
        raise NotImplementedError

    async def unload(self, name: str) -> None:
        """Take back an adapter's name, or an alias. The weights go once running requests have ended.

        Raises ModelNotFound (code "adapter_not_found"), or Conflict where aliases stand for it.
        """
        raise NotImplementedError

    async def alias(self, alias: str, target: str) -> None:
        """Have `alias` stand for the adapter `target` from now on; requests in flight keep what they have.

        Raises ModelNotFound (code "adapter_not_found"), InvalidRequest where `target` is an alias itself or `alias`
        cannot be a name, Conflict where it is an adapter's name.
        """
        raise NotImplementedError

    async def lease(self, model: str) -> Lease:
        """What `model` stands for: the base model, an adapter, an alias, `<base>:<adapter>`, or a subfolder of
        `adapter_dir`, which is loaded first, and again where it has changed.

        Raises ModelNotFound; for a subfolder also what `load` raises.
        """
        raise NotImplementedError

    def get(self, name: str) -> Adapter:
        """The adapter that a name or an alias stands for. Raises ModelNotFound (code "adapter_not_found")."""
        raise NotImplementedError

    def adapters(self) -> list[Adapter]:
        """Those that have a name, by name, and then the draining ones."""
        raise NotImplementedError

    def aliases(self) -> dict[str, str]:
        """Alias -> name of the adapter, by alias."""
        raise NotImplementedError
