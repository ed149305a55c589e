"""The adapters that the engine holds: which it takes, and which have a slot."""

from collections import Counter
from pathlib import Path

from engines.adapters.folder import read_adapter
from engines.adapters.pins import max_pinned, with_pin
from engines.adapters.spec import WEIGHTS
from engines.capabilities import AdapterSupport
from engines.echo.tokenizer import VOCAB_SIZE
from engines.errors import EngineFailure, TuneserveError

HIDDEN_SIZE = 32


def adapter_support(max_loras: int) -> AdapterSupport:
    """The adapters that a Llama of two layers would support."""
    linears = {"lm_head": (HIDDEN_SIZE, VOCAB_SIZE)}
    for layer in ("model.layers.0", "model.layers.1"):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linears[f"{layer}.self_attn.{name}"] = (HIDDEN_SIZE, HIDDEN_SIZE)
        for name in ("gate_proj", "up_proj"):
            linears[f"{layer}.mlp.{name}"] = (HIDDEN_SIZE, 2 * HIDDEN_SIZE)
        linears[f"{layer}.mlp.down_proj"] = (2 * HIDDEN_SIZE, HIDDEN_SIZE)
    return AdapterSupport(
        max_rank=16,
        linears=linears,
        embeddings={"model.embed_tokens": (VOCAB_SIZE, HIDDEN_SIZE)},
        replaceable=frozenset({"lm_head", "model.embed_tokens"}),
        head_inputs=HIDDEN_SIZE,
        max_pinned=max_pinned(max_loras),
    )


class Adapters:
    """They outlive the engine's deaths."""

    def __init__(self, max_loras: int) -> None:
        self._max_loras = max_loras
        self.folders: dict[str, Path] = {}
        self.num_labels: dict[str, int] = {}  # of those with a head
        self.pinned: set[str] = set()
        self.slots: list[str] = []  # least recently used first
        self.loads: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()

    def load(self, version: str, folder: Path, pinned: bool) -> None:
        self.pinned = with_pin(self.pinned, version, pinned, num_slots=self._max_loras)
        self.folders[version] = folder
        self.num_labels[version] = _num_labels(folder)

    def unload(self, version: str) -> None:
        self.folders.pop(version, None)
        self.num_labels.pop(version, None)
        self.pinned.discard(version)
        self.loads.pop(version, None)
        self.evictions.pop(version, None)
        if version in self.slots:
            self.slots.remove(version)

    def check(self, version: str | None) -> None:
        """A request that names a version which is not there has been let down by the registry."""
        if version is not None and version not in self.folders:
            raise EngineFailure(f"The engine does not hold the adapter {version!r}.")

    def use(self, version: str | None) -> None:
        """Give a version a slot, that of the one which has been idle longest where none is free."""
        self.check(version)
        if version is None:
            return
        if version in self.slots:
            self.slots.remove(version)
        else:
            if not (self.folders[version] / WEIGHTS).is_file():
                raise EngineFailure(f"The folder of {version!r} has gone.")
            self.loads[version] += 1
            if len(self.slots) == self._max_loras:
                evicted = next(idle for idle in self.slots if idle not in self.pinned)
                self.slots.remove(evicted)
                self.evictions[evicted] += 1
        self.slots.append(version)


def _num_labels(folder: Path) -> int:
    """Labels of an adapter's head; 0 where it brings none, or cannot be read, which is told when it is used."""
    try:
        head = read_adapter(folder, adapter_support(1)).head
    except TuneserveError:
        return 0
    return 0 if head is None else len(head.labels)
