"""The folders that the API may load adapters from. A path out of them is refused without telling what is there."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from fastapi import Depends

from engines.errors import InvalidRequest, NotFound
from server.deps import part


class AdapterRoots:
    """The real folders behind `adapter_roots`."""

    def __init__(self, roots: Iterable[str]) -> None:
        self._roots = tuple(Path(root).expanduser().resolve() for root in roots)

    def find(self, path: str, *, param: str) -> Path:
        """The real folder that `path` names; a relative path is relative to a root. `param` is the field it came in.

        Raises NotFound where nothing is there, and InvalidRequest, in the same words whatever is there, where `path`
        leads out of the roots: by itself, by `..` or by a symbolic link. (Links in the folder are not followed later
        on.)
        """
        if not self._roots:
            message = f"{param!r}: this server was started without adapter_roots, so its API loads no adapters."
            raise InvalidRequest(message, param=param)
        outside = InvalidRequest(f"{param!r} must lie under a folder of adapter_roots.", param=param)
        try:
            candidates = [folder for root in self._roots if self._holds(folder := (root / path).resolve())]
            if not candidates:
                raise outside
            folders = [folder for folder in candidates if folder.is_dir()]
        except (OSError, ValueError, RuntimeError):  # no path at all, one too long, a circle of links, a locked folder
            raise outside from None
        if not folders:
            raise NotFound(f"{param!r}: there is no such folder.", param=param)
        return folders[0]

    def _holds(self, real: Path) -> bool:
        return any(real.is_relative_to(root) for root in self._roots)


RootsDep = Annotated[AdapterRoots, Depends(part(AdapterRoots))]
