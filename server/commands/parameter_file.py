"""Read a YAML or JSON file of parameters, taking no key twice and no number for text."""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


def read_parameters(path: Path) -> dict[str, Any]:
    """Return the parameters in `path` by name. Raises ValueError, saying what is wrong with the file."""
    if path.suffix not in {".yaml", ".yml", ".json"}:
        raise ValueError(f"{path}: a file of parameters ends in .yaml, .yml or .json")
    try:
        text = path.read_text(encoding="utf-8")
        loaded = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else yaml.load(text, _Loader)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None
    match loaded:
        case dict():
            return _once([(str(name).replace("-", "_"), value) for name, value in loaded.items()])
        case _:
            raise ValueError(f"{path}: must hold parameters by name, as in `port: 9000`")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    return values


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which would else let the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        _once([(key, None) for key in keys if key != "<<"])
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-6, which everybody writes, as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
