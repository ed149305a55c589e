"""The one base class every parameter group shares, and the shapes that several groups use."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from engines.params.about import kinds, secrets


class Params(BaseModel):
    """Values as the user gave them: immutable, flat, and closed to unknown names.

    `model_fields_set` tells a value that was given from a default. Secrets are read as attributes only: they are left
    out wherever the values are written.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        defer_build=True,  # until one is validated first: most processes know all commands and run one
    )

    starred: ClassVar[frozenset[str]] = frozenset()
    """Fields of this group that most users need first; help and documentation mark them."""

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """A file's `max_length: yes` is a mistake, though to pydantic true is 1."""
        assert info.field_name is not None
        takes = kinds(cls.model_fields[info.field_name].annotation)
        if bool not in takes and takes & {int, float} and _has_bool(value):
            raise ValueError("true and false are not numbers")
        return value

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        hidden = secrets(type(self))
        return {name: value for name, value in write(self).items() if name not in hidden}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        hidden = secrets(type(self))
        return ((name, value) for name, value in super().__repr_args__() if name not in hidden)


def _has_bool(value: Any) -> bool:
    return any(isinstance(item, bool) for item in (value if isinstance(value, list | tuple) else [value]))


def listed(value: Any) -> Any:
    """Let one value stand for a list of one, as it does on the command line."""
    return value if value is None or isinstance(value, list | tuple | Mapping) else (value,)


Strings = Annotated[tuple[Annotated[str, StringConstraints(min_length=1)], ...], BeforeValidator(listed)]
"""Zero or more strings that are not empty; a string alone counts as one."""

Integers = Annotated[tuple[int, ...], BeforeValidator(listed)]
"""Zero or more integers; an integer alone counts as one."""

JsonObject = dict[str, Any]
"""A JSON object. The command line also takes the path of a JSON file that holds one."""
