"""The one base class every parameter group shares."""

from pydantic import BaseModel, ConfigDict


class Params(BaseModel):
    """Values as the user gave them: immutable, flat, and closed to unknown names.

    `model_fields_set` tells a value that was given from a default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
