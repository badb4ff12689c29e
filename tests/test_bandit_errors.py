"""What the bandit says when it is called wrongly."""

import inspect
import math

import pytest
import torch

from dapedu.bandit import bradley_terry_rewards, ipo_optimum, rlhf_optimum, win_graph
from dapedu.losses import dpo_loss, slic_hf_loss
from tests.test_bandit import dpo_through_autograd, train

TAKES_PAIRS = {
    "train_bandit": lambda pairs: train(pairs, dpo_loss, steps=1),
    "ipo_optimum": lambda pairs: ipo_optimum(pairs, 0.5, n_responses=3),
    "bradley_terry_rewards": lambda pairs: bradley_terry_rewards(pairs, n_responses=3),
    "win_graph": lambda pairs: win_graph(pairs, n_responses=3),
}


@pytest.mark.parametrize("name", TAKES_PAIRS)
@pytest.mark.parametrize("pair", [(0, 3), (-1, 0), (1, 1), (0, 1, 2)])
def test_a_pair_that_is_none_is_named(name, pair):
    """Oracle: function, place, pair and range stand in the message."""
    with pytest.raises(ValueError, match="pair 1") as error:
        TAKES_PAIRS[name]([(0, 1), pair])
    assert str(error.value) == (
        f"{name}: pair 1 is {pair}, expected two different indices from 0 to 2 (n_responses is 3)"
    )


@pytest.mark.parametrize("name", TAKES_PAIRS)
def test_no_pairs_at_all(name):
    """Oracle: the function's name and what it wants."""
    with pytest.raises(ValueError, match=rf"^{name}: pairs is empty, expected at least one"):
        TAKES_PAIRS[name]([])


TAKES_A_REFERENCE = {
    "train_bandit": lambda reference: train([(0, 1)], dpo_loss, steps=1, reference=reference),
    "ipo_optimum": lambda reference: ipo_optimum([(0, 1)], 0.5, n_responses=3, reference=reference),
    "rlhf_optimum": lambda reference: rlhf_optimum(torch.zeros(3), 0.5, reference=reference),
}


@pytest.mark.parametrize("name", TAKES_A_REFERENCE)
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([0.5, 0.5], r"reference has shape \(2,\), expected \(3,\)"),
        ([0.5, 0.5, 0.0], r"reference is \[0.5, 0.5, 0.0\], expected positive probabilities"),
        ([0.5, 0.7, -0.2], "expected positive probabilities"),
        ([0.5, 0.5, 0.5], "expected positive probabilities that sum to 1"),
        ([0.5, 0.5, math.nan], "expected positive probabilities"),
    ],
)
def test_a_reference_that_is_none_is_named(name, reference, message):
    """Oracle: function, argument and what is wrong with it."""
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        TAKES_A_REFERENCE[name](torch.tensor(reference))


@pytest.mark.parametrize("value", [0, -1.0, math.nan])
@pytest.mark.parametrize(
    ("name", "argument", "call"),
    [
        ("ipo_optimum", "tau", lambda value: ipo_optimum([(0, 1)], value, n_responses=2)),
        ("rlhf_optimum", "beta", lambda value: rlhf_optimum(torch.zeros(2), value)),
    ],
    ids=["ipo_optimum", "rlhf_optimum"],
)
def test_a_strength_of_a_closed_form_must_be_positive(name, argument, call, value):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match=argument) as error:
        call(value)
    assert str(error.value) == f"{name}: {argument} is {value}, expected > 0"


@pytest.mark.parametrize("strengths", [[], [0.5, 0.0], [-1.0], [0.5, math.nan], [math.inf], 0.5])
@pytest.mark.parametrize("loss", [dpo_loss, dpo_through_autograd])
def test_strengths_of_a_run_must_be_positive(loss, strengths):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match="strengths") as error:
        train([(0, 1)], loss, strengths, steps=1)
    assert str(error.value) == f"train_bandit: strengths is {strengths}, expected one or more finite numbers > 0"


@pytest.mark.parametrize("name", ["seeds", "steps", "record_every"])
@pytest.mark.parametrize("value", [0, -2, 2.5])
def test_counts_must_be_positive(name, value):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match=name) as error:
        train([(0, 1)], dpo_loss, **{name: value})
    assert str(error.value) == f"train_bandit: {name} is {value}, expected a whole number ≥ 1"


def test_a_batch_must_not_be_empty():
    """Oracle: argument, value and range stand in the message; None is the whole dataset."""
    with pytest.raises(ValueError, match="batch_size is 0, expected a whole number ≥ 1, or None"):
        train([(0, 1)], dpo_loss, steps=1, batch_size=0)


@pytest.mark.parametrize("lr", [0, -0.1, math.nan, math.inf])
def test_the_learning_rate_must_be_positive(lr):
    """Oracle: a negative one trains the loser up."""
    with pytest.raises(ValueError, match=r"lr is .*, expected a finite number > 0"):
        train([(0, 1)], dpo_loss, lr=lr, steps=1)


def test_a_loss_that_averages_is_refused():
    """Oracle: its scalar would mix all strengths and ignore the batches, without a word."""

    def averaged(**logps):
        return dpo_through_autograd(**logps).mean()

    averaged.__signature__ = inspect.signature(dpo_through_autograd)
    with pytest.raises(ValueError, match=r"loss returned shape .* one value per pair, not averaged"):
        train([(0, 1)], averaged, steps=1)


def test_a_loss_of_another_signature_is_refused():
    """Oracle: SLiC-HF has a target text and two strengths; the message says what it takes and what it should."""
    with pytest.raises(ValueError, match=r"^train_bandit: loss takes .*delta, sft_weight, expected .* one strength"):
        train([(0, 1)], slic_hf_loss, steps=1)
