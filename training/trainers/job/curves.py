"""TensorBoard's files without the texts of all settings, which name folders of the machine."""

from typing import Any

from transformers.integrations import TensorBoardCallback


class Curves(TensorBoardCallback):  # type: ignore[misc]  # transformers is untyped here
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and self.tb_writer is None:
            self._init_summary_writer(args)
