"""The one base class every parameter group shares, and the shapes that several groups use."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints


class Params(BaseModel):
    """Values as the user gave them: immutable, flat, and closed to unknown names.

    `model_fields_set` tells a value that was given from a default.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    starred: ClassVar[frozenset[str]] = frozenset()
    """Those of the group's own fields that most users meet first; help and documentation mark them."""


def _listed(value: Any) -> Any:
    """Let one value stand for a list of one, as it does on the command line."""
    return value if value is None or isinstance(value, list | tuple | Mapping) else (value,)


Strings = Annotated[tuple[Annotated[str, StringConstraints(min_length=1)], ...], BeforeValidator(_listed)]
"""Zero or more strings that are not empty; a string alone counts as one."""

Integers = Annotated[tuple[int, ...], BeforeValidator(_listed)]
"""Zero or more integers; an integer alone counts as one."""

JsonObject = dict[str, Any]
"""A JSON object. The command line also takes the path of a JSON file that holds one."""
