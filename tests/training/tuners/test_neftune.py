"""NEFTune: noise on the embeddings while a model learns, whatever is trained of it, and on nothing else."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.neftune import activate_neftune

from tests.training.jobs import losses
from tests.training.optimizers.steps import tiny_model
from tests.training.optimizers.training import Training
from tests.training.tuners.kinds import KINDS, Kind
from training.params.sft import SftParams
from training.tuners import TUNERS

ROWS = [
    {"query": f"number {i}", "response": word, "rejected_response": "no"}
    for i, word in enumerate(("red", "blue", "one"))
]
OF_A_TYPE = [kind for kind in KINDS if [*kind.choice] == ["train_type"]]


@pytest.mark.parametrize("kind", OF_A_TYPE, ids=lambda kind: kind.name)
def test_noise_reaches_the_model_while_it_learns(kind: Kind) -> None:
    params = SftParams.model_validate({**kind.choice, **kind.settings, "gradient_checkpointing": False})
    model = TUNERS[params.train_type].attach(tiny_model(), params).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def said(*, learns: bool) -> torch.Tensor:
        logits: torch.Tensor = model.train(learns)(input_ids=torch.arange(2, 12)[None]).logits
        return logits.detach()

    learning, judging = said(learns=True), said(learns=False)
    activate_neftune(model, 5.0)
    assert (said(learns=True) - learning).abs().max() > 1e-2
    assert torch.equal(said(learns=False), judging)


def test_of_preferences_the_reference_hears_no_noise(tmp_path: Path, tiny: Path) -> None:
    """It is what training began with: without noise the first margin is 0, and the loss log 2."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    train = Training(tmp_path, tiny, data)
    given: dict[str, Any] = {"task": "rlhf", "rlhf_type": "dpo", "rpo_alpha": 0, "max_steps": 1, "train_type": "lora"}
    given |= {"lora_dropout": 0, "learning_rate": None}
    plain, noisy = train("plain", **given), train("noisy", **given, neftune_noise_alpha=5)
    assert losses(plain)[1] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(losses(noisy)[1] - math.log(2)) > 1e-3
