"""Record what TRL 1.12's PPOTrainer says of its first steps on answers that are given, in tests/data/ppo_of_trl.json.

Later versions of TRL have no PPO. To record anew, from the root of the repository:

    pip download trl==1.12.0 --no-deps -d /tmp/trl && python -m zipfile -e /tmp/trl/trl-1.12.0-py3-none-any.whl /tmp/trl
    PYTHONPATH=/tmp/trl:. python -m tests.training.ppo.record
"""

import json
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.training.ppo.given import (
    CASES,
    PAD,
    PROMPTS,
    SETTINGS,
    STEPS,
    Case,
    answers_of,
    save_policy,
    save_reward_model,
)

FILE = Path(__file__).parents[2] / "data" / "ppo_of_trl.json"
RECORDED = (
    "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
    "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio",
    "policy/entropy_avg",
)  # fmt: skip


def record(case: Case, folder: Path) -> list[dict[str, float]]:
    """TRL's metrics of each step."""
    policy = save_policy(folder / "policy")
    judge = save_reward_model(policy, folder / "reward")
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    tokenizer.pad_token_id = PAD
    steps = count(1)

    def given(
        model: Any, queries: torch.Tensor, _: int, pad: int, generation: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of `batch_generation`: the given answers, and the logits that they would have been drawn from."""
        answers = answers_of(next(steps), ends=case.ends)
        prompts = [[token for token in row.tolist() if token != pad] for row in queries]
        rows = [answers[PROMPTS.index(prompt)] for prompt in prompts]
        padded = torch.tensor([row + [pad] * (max(map(len, rows)) - len(row)) for row in rows])
        both = torch.cat([queries, padded], 1)
        logits = ppo_trainer.forward(model, both, pad).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / generation.temperature

    ppo_trainer.batch_generation = torch.no_grad()(given)
    np.random.permutation = lambda size: np.arange(size)
    PPOTrainer.is_distributed_loading_by_transformers = False  # which transformers 5 asks for
    trainer = PPOTrainer(
        PPOConfig(
            str(folder / "out"), **{**SETTINGS, **case.settings}, total_episodes=STEPS * len(PROMPTS), stop_token="eos",
            bf16=False, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        ref_model=None,
        reward_model=AutoModelForSequenceClassification.from_pretrained(judge, num_labels=1, dtype=torch.float32),
        value_model=AutoModelForSequenceClassification.from_pretrained(judge, num_labels=1, dtype=torch.float32),
        train_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in PROMPTS]),
        eval_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in PROMPTS]),
    )  # fmt: skip
    trainer.dataloader = DataLoader(trainer.train_dataset, batch_size=len(PROMPTS), collate_fn=trainer.data_collator)
    told: list[dict[str, float]] = []
    trainer.log = lambda metrics, *_: told.append({name: metrics[name] for name in RECORDED})
    trainer.train()
    return told


def main() -> None:
    found = {}
    for name, case in CASES.items():
        with TemporaryDirectory() as folder:
            found[name] = record(case, Path(folder))
    FILE.write_text(json.dumps({"trl": "1.12.0", "script": "tests/training/ppo/record.py", "steps": found}, indent=1))


if __name__ == "__main__":
    main()
