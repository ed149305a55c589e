"""README.md of an exported model: the card that the hub shows, and what a person reads who finds the folder."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Relation = Literal["adapter", "merge", "quantized", "finetune"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    name: str
    base: str
    """The model that it was made of: a hub id, or a folder, of which the name is told alone."""
    relation: Relation
    """The hub's word for what it is to its base model."""
    library: str
    made: Sequence[str]
    """What was done, a line each."""
    use: str
    """How to serve it: lines of a shell."""

    def write(self, folder: Path) -> None:
        (folder / "README.md").write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        on_hub = HUB_ID.fullmatch(self.base) is not None and not Path(self.base).exists()
        base = self.base if on_hub else Path(self.base).name
        said = {"base_model": base, "base_model_relation": self.relation} if on_hub else {}
        said |= {"library_name": self.library}
        front = "".join(f"{name}: {json.dumps(value)}\n" for name, value in said.items())
        lines = "".join(f"- {line}\n" for line in self.made)
        return (
            f"---\n{front}tags:\n- tuneserve\n---\n\n# {self.name}\n\nMade of {base}:\n\n{lines}\n"
            f"## Use\n\n```\n{self.use}\n```\n"
        )
