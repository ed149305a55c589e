"""Trainings that take the norm of their gradients, and scale them, in a way of their own."""

from typing import TYPE_CHECKING, Any

from torch import Tensor


class OwnNorm:
    """Goes before a Trainer among a class's bases: has `_clipped` do so, where it does."""

    if TYPE_CHECKING:
        args: Any

    def _clipped(self, model: Any, most: float) -> Tensor | None:
        """The norm of all gradients, scalar, once they are scaled down to `most`; None: it is the Trainer's to do."""
        return None

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = self._clipped(model, self.args.max_grad_norm)
        return super()._clip_grad_norm(model) if norm is None else norm  # type: ignore[misc]  # the Trainer behind us

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = self._clipped(model, float("inf")) if grad_norm is None else grad_norm
        return super()._get_grad_norm(model, grad_norm=norm)  # type: ignore[misc]  # the Trainer behind us
