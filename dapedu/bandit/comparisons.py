"""Datasets of comparisons: listed, counted, sampled."""

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Pairs = Sequence[tuple[int, int]]

# §5.4's three datasets over the responses a, b, c = 0, 1, 2. The text's D3 cannot show what its figure
# shows (c is in no pair); "D3 as meant" is our reading: one response never wins, the other two are alike.
DATASETS: dict[str, list[tuple[int, int]]] = {
    "D1": [(0, 1), (1, 2), (0, 2)],
    "D2": [(0, 1), (1, 2), (2, 0)],
    "D3 as printed": [(0, 1), (1, 0)],
    "D3 as meant": [(0, 1), (2, 1)],
}


def count_wins(pairs: Pairs, *, n_responses: int) -> Tensor:
    """How often each response beat each other one.

    Args:
        pairs: (winner, loser) indices; a pair that stands twice counts twice.
        n_responses: how many responses there are.

    Returns:
        Counts, winners in rows and losers in columns, shape (n_responses, n_responses), float64.

    Raises:
        ValueError: an index is out of range.
    """
    return table_of("count_wins", pairs, n_responses)


def order_with_flips(rewards: Tensor, flip: float) -> Tensor:
    """Win probabilities of an annotator who sees the better response and errs with one probability.

    Args:
        rewards: r, shape (..., n_responses); equal rewards win half the time.
        flip: ε, the probability of the wrong label, from 0 to ½.

    Returns:
        p(row beats column), shape (..., n_responses, n_responses), float64.

    Raises:
        ValueError: flip is out of range, or a reward is no number.
    """
    if not 0 <= flip <= 0.5:
        raise ValueError(f"order_with_flips: flip is {flip}, expected from 0 to 0.5")
    rewards = rewards_of("order_with_flips", rewards)
    return 0.5 + (0.5 - flip) * torch.sign(rewards[..., :, None] - rewards[..., None, :])


def sample_wins(
    win_probabilities: Tensor, *, comparisons: int, proposal: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Sampled datasets, one for each table of win probabilities: pairs are drawn, then winners.

    Args:
        win_probabilities: p(row beats column), shape (datasets, n_responses, n_responses).
        comparisons: comparisons in each dataset.
        proposal: μ, from which both responses of a comparison are drawn until they differ, shape (n_responses,)
            or (datasets, n_responses); None is uniform.
        seed: of the draws.

    Returns:
        Counts as of `count_wins`, shape (datasets, n_responses, n_responses), float64.

    Raises:
        ValueError: a shape, a probability or a count is out of range.
    """
    p = torch.as_tensor(win_probabilities, dtype=torch.float64).numpy()
    if p.ndim != 3 or p.shape[1] != p.shape[2] or p.shape[1] < 2:
        raise ValueError(f"sample_wins: win_probabilities has shape {p.shape}, expected (datasets, n, n), n at least 2")
    one_side_wins = np.abs(p + p.swapaxes(1, 2) - 1) < 1e-9
    if not ((p >= 0) & (p <= 1) & (one_side_wins | np.eye(p.shape[1], dtype=bool))).all():
        raise ValueError("sample_wins: win_probabilities has entries outside 0 to 1, or p(i, j) + p(j, i) is not 1")
    whole_number("sample_wins", "comparisons", comparisons)
    datasets, n, _ = p.shape
    mu = np.full(n, 1 / n) if proposal is None else torch.as_tensor(proposal, dtype=torch.float64).numpy()
    if mu.shape not in {(n,), (datasets, n)}:
        raise ValueError(f"sample_wins: proposal has shape {mu.shape}, expected ({n},) or ({datasets}, {n})")
    if not ((mu > 0) & np.isfinite(mu)).all():
        raise ValueError("sample_wins: proposal has entries that are not positive and finite")
    first, second = np.triu_indices(n, k=1)
    weights = mu[..., first] * mu[..., second]
    rng = np.random.default_rng(seed)
    met = rng.multinomial(
        comparisons, weights / weights.sum(axis=-1, keepdims=True), size=datasets
    )  # (datasets, pairs)
    won = rng.binomial(met, p[:, first, second])
    wins = np.zeros(p.shape)
    wins[:, first, second], wins[:, second, first] = won, met - won
    return torch.from_numpy(wins)


def rewards_of(function: str, rewards: Tensor) -> Tensor:
    """The rewards in float64, or the error that says why they are none."""
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    if rewards.ndim == 0 or rewards.isnan().any():
        raise ValueError(f"{function}: rewards is {rewards.tolist()}, expected numbers, shape (..., n_responses)")
    return rewards


def whole_number(function: str, name: str, value: int) -> None:
    """The error if a count is none."""
    try:
        is_count = operator.index(value) >= 1
    except TypeError:
        is_count = False
    if not is_count:
        raise ValueError(f"{function}: {name} is {value}, expected a whole number ≥ 1")


def checked_pairs(function: str, pairs: Pairs, n_responses: int) -> list[tuple[int, int]]:
    """The pairs as whole numbers, or the error that says which one is not a comparison."""
    if not len(pairs):
        raise ValueError(f"{function}: pairs is empty, expected at least one (winner, loser)")
    checked = []
    for number, pair in enumerate(pairs):
        try:
            winner, loser = map(operator.index, pair)
            is_pair = winner != loser and min(winner, loser) >= 0 and max(winner, loser) < n_responses
        except (TypeError, ValueError):  # not two whole numbers
            is_pair = False
        if not is_pair:
            raise ValueError(
                f"{function}: pair {number} is {pair!r}, expected two different indices from 0 to "
                f"{n_responses - 1} (n_responses is {n_responses})"
            )
        checked.append((winner, loser))
    return checked


def table_of(function: str, pairs: Pairs, n_responses: int) -> Tensor:
    """`count_wins`, for a caller who goes by another name in its errors."""
    wins = torch.zeros(n_responses, n_responses, dtype=torch.float64)
    for winner, loser in checked_pairs(function, pairs, n_responses):
        wins[winner, loser] += 1
    return wins


def incidence_of(pairs: Pairs, n_responses: int) -> Tensor:
    """Row k is e_winner − e_loser of pair k, shape (pairs, n_responses)."""
    winners, losers = torch.tensor(pairs).T
    one_hot = torch.eye(n_responses, dtype=torch.float64)
    return one_hot[winners] - one_hot[losers]


def log_reference_of(function: str, reference: Tensor | None, n_responses: int) -> Tensor:
    """log π_ref, uniform for None, or the error that says what is wrong with it."""
    if reference is None:
        return torch.full((n_responses,), -np.log(n_responses), dtype=torch.float64)
    reference = torch.as_tensor(reference, dtype=torch.float64)
    if reference.shape != (n_responses,):
        raise ValueError(f"{function}: reference has shape {tuple(reference.shape)}, expected ({n_responses},)")
    if not (reference > 0).all() or abs(reference.sum().item() - 1) > 1e-6:
        raise ValueError(
            f"{function}: reference is {reference.tolist()}, expected positive probabilities that sum to 1"
        )
    return reference.log()
