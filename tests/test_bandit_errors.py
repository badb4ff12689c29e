"""What the bandit says when it is called wrongly."""

import inspect
import math

import pytest
import torch

from dapedu.bandit import (
    best_of_n,
    bradley_terry_rewards,
    count_wins,
    fit_bradley_terry,
    fit_ipo,
    ipo_optimum,
    order_with_flips,
    rlhf_optimum,
    sample_wins,
    win_graph,
    win_groups,
)
from dapedu.losses import dpo_loss, slic_hf_loss
from tests.test_bandit import dpo_through_autograd, train

TAKES_PAIRS = {
    "train_bandit": lambda pairs: train(pairs, dpo_loss, steps=1),
    "ipo_optimum": lambda pairs: ipo_optimum(pairs, 0.5, n_responses=3),
    "bradley_terry_rewards": lambda pairs: bradley_terry_rewards(pairs, n_responses=3),
    "win_graph": lambda pairs: win_graph(pairs, n_responses=3),
    "count_wins": lambda pairs: count_wins(pairs, n_responses=3),
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
    "best_of_n": lambda reference: best_of_n(torch.zeros(3), 2, reference=reference),
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


TAKES_WINS = {"fit_ipo": fit_ipo, "fit_bradley_terry": fit_bradley_terry, "win_groups": win_groups}


@pytest.mark.parametrize("name", TAKES_WINS)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 3, 2)])
def test_a_table_of_wins_is_square(name, shape):
    """Oracle: function, argument and both shapes stand in the message."""
    with pytest.raises(ValueError, match="wins") as error:
        TAKES_WINS[name](torch.zeros(shape))
    assert str(error.value) == f"{name}: wins has shape {shape}, expected (..., n_responses, n_responses)"


@pytest.mark.parametrize("name", TAKES_WINS)
@pytest.mark.parametrize(
    ("place", "entry"), [((0, 1), -1.0), ((0, 1), math.nan), ((0, 1), math.inf), ((1, 1), 1.0)], ids=str
)
def test_a_table_of_wins_counts(name, place, entry):
    """Oracle: function, argument and range stand in the message; one bad table in a batch is enough."""
    wins = torch.zeros(2, 3, 3)
    wins[1][place] = entry
    with pytest.raises(ValueError, match="wins") as error:
        TAKES_WINS[name](wins)
    where = ", ".join(map(str, (1, *place)))
    assert str(error.value) == (f"{name}: wins[{where}] is {entry}, expected finite numbers ≥ 0, and 0 on the diagonal")


@pytest.mark.parametrize("ridge", [-0.1, 1e-12, math.nan, math.inf])
@pytest.mark.parametrize("fit", [fit_ipo, fit_bradley_terry])
def test_a_ridge_is_none_or_one_that_float64_sees(fit, ridge):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match="ridge") as error:
        fit(torch.zeros(2, 2), ridge=ridge)
    assert str(error.value) == f"{fit.__name__}: ridge is {ridge}, expected 0 or a finite number from 1e-9 on"


@pytest.mark.parametrize("n", [0, -1, 2.0])
def test_best_of_n_wants_a_sample(n):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match="n is") as error:
        best_of_n(torch.zeros(3), n)
    assert str(error.value) == f"best_of_n: n is {n}, expected a whole number ≥ 1"


@pytest.mark.parametrize("flip", [-0.1, 0.6, math.nan])
def test_a_flip_is_at_most_a_coins(flip):
    """Oracle: function, argument, value and range stand in the message; above ½ the worse would win."""
    with pytest.raises(ValueError, match="flip") as error:
        order_with_flips(torch.zeros(3), flip)
    assert str(error.value) == f"order_with_flips: flip is {flip}, expected from 0 to 0.5"


@pytest.mark.parametrize("rewards", [torch.tensor([0.0, math.nan]), torch.tensor(1.0)], ids=["nan", "no axis"])
@pytest.mark.parametrize(
    "function",
    [lambda r: rlhf_optimum(r, 1.0), lambda r: best_of_n(r, 2), lambda r: order_with_flips(r, 0.1)],
    ids=["rlhf_optimum", "best_of_n", "order_with_flips"],
)
def test_rewards_are_numbers(function, rewards):
    """Oracle: function, argument and value stand in the message."""
    with pytest.raises(
        ValueError, match=r"^(rlhf_optimum|best_of_n|order_with_flips): rewards is .*, expected numbers"
    ):
        function(rewards)


EVEN = torch.full((2, 3, 3), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"win_probabilities": EVEN[0]}, r"win_probabilities has shape \(3, 3\), expected \(datasets, n, n\)"),
        ({"win_probabilities": EVEN[:, :2]}, r"win_probabilities has shape \(2, 2, 3\), expected"),
        ({"win_probabilities": EVEN[:, :1, :1]}, r"win_probabilities has shape \(2, 1, 1\), .* n at least 2"),
        ({"win_probabilities": EVEN + 0.6}, "win_probabilities has entries outside 0 to 1"),
        ({"win_probabilities": EVEN - 0.6}, "win_probabilities has entries outside 0 to 1"),
        ({"win_probabilities": EVEN * math.nan}, "win_probabilities has entries outside 0 to 1"),
        ({"comparisons": 0}, "comparisons is 0, expected a whole number ≥ 1"),
        ({"comparisons": 2.5}, "comparisons is 2.5, expected a whole number ≥ 1"),
        ({"proposal": torch.ones(2)}, r"proposal has shape \(2,\), expected \(3,\) or \(2, 3\)"),
        ({"proposal": torch.ones(3, 3)}, r"proposal has shape \(3, 3\), expected \(3,\) or \(2, 3\)"),
        ({"proposal": torch.tensor([0.5, 0.5, 0.0])}, "proposal has entries that are not positive"),
        ({"proposal": torch.tensor([0.5, 0.5, math.nan])}, "proposal has entries that are not positive"),
    ],
)
def test_sample_wins_names_what_it_cannot_sample(arguments, message):
    """Oracle: function, argument and range stand in the message."""
    with pytest.raises(ValueError, match=f"^sample_wins: {message}"):
        sample_wins(**{"win_probabilities": EVEN, "comparisons": 5} | arguments)


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
