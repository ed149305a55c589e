"""`"auto"`: small data is taught enough to be learned, large data not so hard that the model is wrecked."""

import math
from typing import Any

import pytest

from training.auto import BASE_LEARNING_RATE, Hyperparameters, choose
from training.methods import METHODS
from training.methods.base import Method

DEMO = 134_515_008
"""Weights of SmolLM2-135M."""
SUPERVISED, DPO = METHODS["sft"], METHODS["dpo"]


def rate(chosen: Hyperparameters) -> float:
    return chosen.learning_rate_multiplier * BASE_LEARNING_RATE


def test_sixty_lines_in_three_epochs_are_trained_as_was_measured_to_teach_them() -> None:
    chosen = choose(Hyperparameters(n_epochs=3), method=SUPERVISED, rows=60, model_parameters=DEMO)
    assert chosen == Hyperparameters(n_epochs=3, batch_size=4, learning_rate_multiplier=10.0)


def test_ten_thousand_lines_are_trained_at_a_third_of_the_rate() -> None:
    chosen = choose(Hyperparameters(), method=SUPERVISED, rows=10_000, model_parameters=DEMO)
    assert (chosen.n_epochs, chosen.batch_size) == (3, 16)
    assert 1e-4 <= rate(chosen) <= 4e-4


def test_ten_lines_are_seen_more_often_than_a_million() -> None:
    few, many = (choose(Hyperparameters(), method=SUPERVISED, rows=rows, model_parameters=DEMO) for rows in (10, 10**6))
    assert (few.n_epochs, many.n_epochs) == (18, 1)


def test_a_larger_model_learns_at_a_lower_rate() -> None:
    rates = [
        rate(choose(Hyperparameters(), method=SUPERVISED, rows=60, model_parameters=weights))
        for weights in (10**5, DEMO, 10**9, 7 * 10**9, 70 * 10**9)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= 2e-3
    assert rates[-1] >= 1e-4


def test_dpo_learns_at_a_lower_rate_and_with_a_beta() -> None:
    supervised, dpo = (
        choose(Hyperparameters(), method=method, rows=60, model_parameters=DEMO) for method in (SUPERVISED, DPO)
    )
    assert rate(dpo) < rate(supervised) / 4
    assert (supervised.beta, dpo.beta) == (None, 0.1)


def test_kto_has_two_answers_in_a_batch_at_least() -> None:
    chosen = choose(Hyperparameters(n_epochs=1), method=METHODS["kto"], rows=20, model_parameters=DEMO)
    assert (chosen.batch_size, chosen.beta, chosen.desirable_weight, chosen.undesirable_weight) == (2, 0.1, 1.0, 1.0)


def test_what_is_given_stays_and_the_rest_is_chosen_to_fit_it() -> None:
    given = Hyperparameters(n_epochs=1, batch_size=7, learning_rate_multiplier=0.3)
    assert choose(given, method=SUPERVISED, rows=60, model_parameters=DEMO) == given
    one_epoch = choose(Hyperparameters(n_epochs=1), method=SUPERVISED, rows=60, model_parameters=DEMO)
    assert one_epoch.batch_size == 1  # else there would be too few steps


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("weights", [None, 1, 10**12])
@pytest.mark.parametrize("rows", [0, 1, 2, 59, 61, 1000, 10**8])
def test_every_choice_is_one_that_a_client_could_have_made(method: Method[Any], weights: int | None, rows: int) -> None:
    chosen = choose(Hyperparameters(), method=method, rows=rows, model_parameters=weights)
    assert 1 <= chosen.n_epochs <= 50
    assert 1 <= chosen.batch_size <= 256
    assert 0 < rate(chosen) < 1
    assert math.isfinite(rate(chosen))
