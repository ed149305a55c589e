"""The names of adapters and who uses what they stand for: the one way to adapters, the same for every engine.

A name stands for a version, `name@hash`, which is what the engine knows. A name is published once the engine holds its
version; a request leases the version that its model's name stands for, and keeps that one until it ends, whatever
becomes of the name meanwhile. A version that no name stands for is unloaded when nobody leases it any more.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engines.adapters.changes import Changes
from engines.adapters.held import HeldVersions
from engines.adapters.loading import AdapterLoader, LoadOrder
from engines.adapters.names import check_name
from engines.adapters.on_demand import OnDemandAdapters
from engines.adapters.published import PublishedNames
from engines.adapters.snapshot import Snapshots
from engines.adapters.table import Table, Version
from engines.adapters.view import Adapter, AdapterView
from engines.adapters.watched import WatchedFolder
from engines.engine import Engine
from engines.errors import InvalidRequest, ModelNotFound
from engines.types import Head

NAMES_IN_MESSAGE = 20


@dataclass(slots=True)
class Lease:
    """A request's hold on the version that its `model` stands for: it stays loaded until `release`."""

    version: str | None
    """None: the base model."""
    name: str
    """The adapter's own name, whatever alias was asked for, unless it is not to be known; or the base model's name."""
    _on_release: Callable[[], None] | None = None
    chat_template: str | None = None
    """The chat template that the adapter brings; None: the one that the base model is served with."""
    head: Head | None = None
    """The head that the adapter brings; None: the base model's."""
    folder: Path | None = None
    """Folder of the adapter's files, which stay there until `release`."""

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
        folder = state_dir / "adapters"
        snapshots = Snapshots(folder)
        self._base_name = base_name
        self._names = PublishedNames(folder, snapshots)
        self._held = HeldVersions(engine, self._names, snapshots)
        self._changes = Changes()
        self._loader = AdapterLoader(self._held, self._names, snapshots, model=model)
        self._view = AdapterView(engine, self._names, self._held)
        self._on_demand: OnDemandAdapters | None = None
        if adapter_dir is not None:
            watched = WatchedFolder(adapter_dir)
            self._on_demand = OnDemandAdapters(watched, self._names, self._loader, self._changes, base_name=base_name)

    # ---- from one run of the server to the next

    async def restore(self) -> None:
        """Load what was loaded when the server ended. Comes once, after `engine.start` and before anything else.

        An adapter that cannot be served any more is kept, as `failed`. Where `state_dir` cannot be used, or another
        server uses it, nothing is restored, and `load` and `alias` raise Conflict. Raises BrokenState.
        """
        saved = await self._names.open()
        # One after another: where the engine dies of one, the others wait until it is back.
        entries = {
            name: await self._loader.restore(name, record, base_name=self._base_name)
            for name, record in saved.adapters.items()
        }
        self._names.table = Table(entries, saved.aliases)

    def check_open(self) -> None:
        """Raise Conflict where nothing that is loaded could be kept."""
        self._names.check_open()

    async def close(self) -> None:
        """Let another server use `state_dir`. Comes last, after `engine.stop`."""
        await self._changes.finish()
        self._names.close()

    # ---- changes

    async def load(
        self,
        name: str,
        folder: Path,
        *,
        replace: bool = False,
        pinned: bool | None = None,
        durable: bool = True,
        follow_links: bool = False,
        source: str | None = None,
    ) -> Adapter:
        """Copy the PEFT adapter of `folder`, have the engine load it, and publish it as `name`; `folder` may go then.

        Raises Conflict where the name is taken, unless `replace`: then requests from now on get the new version, those
        in flight keep theirs, and the same content again is no new version. `pinned`: never swapped out; None: as what
        it replaces, else not. `durable`: it is back after a restart; else neither it nor what it replaces is.
        `follow_links`: the files in `folder` may be symbolic links, as in the hub's cache; else they are refused.
        `source`: what the adapter says it was copied from; None: the last part of `folder`.

        Raises InvalidAdapter (`param` is the field at fault), NotFound where there is no such folder, Conflict,
        InvalidRequest for a name that cannot be one (`param` "name"), EngineUnavailable, EngineFailure. A load that
        fails leaves everything as it was; one whose caller is cancelled goes on.
        """
        check_name(name, base_name=self._base_name)
        order = LoadOrder(
            name=name,
            folder=folder,
            source=source or folder.name,
            replace=replace,
            pinned=pinned,
            durable=durable,
            follow_links=follow_links,
        )

        async def load() -> Adapter:
            await self._loader.load(order)
            return self.get(name)

        return await self._changes.run(name, load())

    async def unload(self, name: str) -> None:
        """Take back an adapter's name, or an alias. The weights go once running requests have ended.

        Raises ModelNotFound (code "adapter_not_found"), or Conflict where aliases stand for it.
        """
        await self._changes.run(name, self._loader.unload(name))

    async def alias(self, alias: str, target: str) -> None:
        """Have `alias` stand for the adapter `target` from now on; requests in flight keep what they have.

        Raises ModelNotFound (code "adapter_not_found"), InvalidRequest where `target` is an alias itself or `alias`
        cannot be a name, Conflict where it is an adapter's name.
        """
        check_name(alias, base_name=self._base_name)
        self._names.check_open()
        if target == self._base_name:
            raise InvalidRequest(f"{target!r} is the base model; an alias stands for an adapter", param="target")
        if self._on_demand is not None:
            await self._on_demand.look(target)
        await self._changes.run(alias, self._names.change(lambda table: table.with_alias(alias, target)))

    # ---- requests

    async def lease(self, model: str, is_known: Callable[[str], bool] = lambda name: True) -> Lease:
        """Lease what `model` stands for: the base model, an adapter, an alias, `<base>:<adapter>`, or a subfolder of
        `adapter_dir`, which is loaded first, and again where it has changed.

        An adapter whose name `is_known` denies is as if it were not there, but under its aliases.

        Raises ModelNotFound; for a subfolder also EngineUnavailable, EngineFailure and Conflict, as `load`.
        """
        if model == self._base_name:
            return Lease(None, model)
        model = model.removeprefix(f"{self._base_name}:")
        name = self._names.table.resolve(model)
        if name == model and not is_known(name):
            raise self._no_such(model, is_known)
        if self._on_demand is not None:
            await self._on_demand.look(name)
        entry = self._names.table.adapters.get(name)
        if entry is None:
            raise self._no_such(model, is_known)
        told = name if is_known(name) else model
        if entry.version is None:
            raise ModelNotFound(f"The adapter {told!r} cannot be served: {entry.error}", param="model")
        version = entry.version
        version.requests += 1
        version.in_flight += 1
        version.last_used = int(time.time())
        spec = version.snapshot.spec
        release = partial(self._release, version)
        return Lease(version.id, told, release, spec.chat_template, spec.head, spec.folder)

    def _release(self, version: Version) -> None:
        version.in_flight -= 1
        if not version.in_flight and not self._names.table.names(version):
            self._changes.begin(version.name, self._held.unload_unused(version))

    def _no_such(self, model: str, is_known: Callable[[str], bool]) -> ModelNotFound:
        """The error for an unknown name, which lists the first of the served ones."""
        entries = sorted(self._names.table.adapters.items())
        adapters = (name for name, entry in entries if entry.version is not None and is_known(name))
        names = [self._base_name, *adapters, *self.aliases()]
        served = ", ".join(map(repr, names[:NAMES_IN_MESSAGE])) + (", ..." if len(names) > NAMES_IN_MESSAGE else "")
        return ModelNotFound(f"The model {model[:100]!r} does not exist. Served: {served}.", param="model")

    # ---- what there is

    def get(self, name: str) -> Adapter:
        """The adapter that a name or an alias stands for. Raises ModelNotFound (code "adapter_not_found")."""
        return self._view.get(name)

    def adapters(self) -> list[Adapter]:
        """All adapters: those that have a name, by name, and then the draining ones."""
        return self._view.adapters()

    def aliases(self) -> dict[str, str]:
        """Alias -> name of the adapter, by alias."""
        return dict(sorted(self._names.table.aliases.items()))
