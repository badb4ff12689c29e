"""The Noise chapter's published results: DPO and IPO on thousands of datasets with wrong labels."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dapedu.bandit import fit_bradley_terry, fit_ipo, order_with_flips, sample_wins, win_groups
from dapedu.evaluate import expected_reward, mean_interval, total_variation
from dapedu.losses import dpo_loss, ipo_loss

# π_ref ∝ exp(prior · reward + blur · normal noise): knows nothing; knows the order roughly; knows it exactly.
REFERENCES = {"uniform": (0.0, 0.0), "rough": (4.0, 1.0), "informative": (4.0, 0.0)}

# Without a ridge the likelihood leaves the level between undefeated groups open. So small a one settles it,
# in the direction in which a long gradient descent would.
_VANISHING = 1e-9


class NoisyData(NamedTuple):
    """What `noisy_data` draws, one row a dataset."""

    rewards: Tensor  # true rewards, (datasets, n_responses)
    log_reference: Tensor  # log π_ref, (datasets, n_responses)
    wins: Tensor  # counted labels, (datasets, n_responses, n_responses)


def noisy_data(
    *,
    n_responses: int,
    comparisons: int,
    flip: float | None,
    prior: float,
    blur: float,
    datasets: int,
    seed: int,
) -> NoisyData:
    """Datasets with true rewards uniform on [0, 1], a reference that may know something of them, and noisy labels.

    Both responses of a comparison are drawn from the reference, as in practice from the SFT model.

    Args:
        n_responses: responses in each dataset.
        comparisons: comparisons in each dataset.
        flip: probability of a wrong label; None for an annotator who errs on close calls, p = σ(4 Δr).
        prior, blur: π_ref ∝ exp(prior · reward + blur · standard normal noise), see `REFERENCES`.
        datasets: how many to draw.
        seed: of all draws.

    Returns:
        `NoisyData`.

    Raises:
        ValueError: as `order_with_flips` and `sample_wins`.
    """
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(datasets, n_responses, generator=generator, dtype=torch.float64)
    impressions = torch.randn(datasets, n_responses, generator=generator, dtype=torch.float64)
    log_reference = torch.log_softmax(prior * rewards + blur * impressions, dim=-1)
    close_calls = torch.sigmoid(4 * (rewards[:, :, None] - rewards[:, None, :]))
    p = close_calls if flip is None else order_with_flips(rewards, flip)
    return NoisyData(
        rewards, log_reference, sample_wins(p, comparisons=comparisons, proposal=log_reference.exp(), seed=seed)
    )


def fitted_policies(data: NoisyData, *, ridges: Sequence[float], betas: Sequence[float]) -> dict[str, Tensor]:
    """Where DPO and IPO end on every dataset, at every ridge and strength; IPO's τ is β/4, its ridge matched too.

    The ridge weighs ½ Σ (β d)² beside DPO's mean loss. Eight times it beside IPO's at τ = 1 is as much for small
    margins, where IPO's loss has eight times the curvature. Ridge 0 is training to the end: for DPO the limit, with
    probability 0 for what is beaten and never beats back.

    Args:
        data: of `noisy_data`.
        ridges: weights of the ridge, 0 or from 1e-9 on.
        betas: strengths β.

    Returns:
        π by method, shape (ridges, betas, datasets, n_responses).

    Raises:
        ValueError: a ridge is out of range.
    """
    beta = torch.tensor(betas, dtype=torch.float64)[:, None, None]
    dpo = torch.stack([_dpo_rewards(data.wins, ridge) for ridge in ridges])[:, None]
    ipo = torch.stack([fit_ipo(data.wins, ridge=8 * ridge) for ridge in ridges])[:, None]
    return {
        "DPO": torch.softmax(data.log_reference + dpo / beta, dim=-1),
        "IPO": torch.softmax(data.log_reference + ipo / (beta / 4), dim=-1),
    }


def _dpo_rewards(wins: Tensor, ridge: float) -> Tensor:
    if ridge:
        return fit_bradley_terry(wins, ridge=ridge)
    return torch.where(win_groups(wins).undefeated, fit_bradley_terry(wins, ridge=_VANISHING), -torch.inf)


def counted_policies(data: NoisyData, *, weights: Sequence[float]) -> Tensor:
    """No loss at all: the reference, times exp(weight · (wins − losses)).

    Args:
        data: of `noisy_data`.
        weights: nats for a win.

    Returns:
        π, shape (weights, datasets, n_responses).
    """
    net_wins = (data.wins - data.wins.mT).sum(dim=-1)
    return torch.softmax(data.log_reference + torch.tensor(weights)[:, None, None] * net_wins, dim=-1)


def noise_map(
    *,
    n_responses: Sequence[int] = (3, 5, 10),
    comparisons_per_response: Sequence[int] = (1, 2, 4, 8, 16),
    flips: Sequence[float | None] = (0.0, 0.1, 0.2, 0.3, None),
    betas: Sequence[float] = (1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0, 16.0),
    ridges: Sequence[float] = (0.0, 1e-3, 1e-2, 1e-1, 1.0),
    weights: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0, 16.0),
    untuned: float = 0.5,
    references: Mapping[str, tuple[float, float]] = REFERENCES,
    datasets: int = 4_000,
    validation_datasets: int = 4_000,
    seed: int = 0,
) -> dict[str, Any]:
    """DPO against IPO on noisy labels: true reward, the chance to end below the reference, good responses kept.

    A flip of None is the annotator who errs on close calls. Tuned settings are chosen on the mean true reward of
    the validation datasets, from equally many trials for each method, and reported on the others. "Counting" uses
    no loss: it is `counted_policies` at its best weight.
    """
    results: dict[str, Any] = {}
    place, same_place = betas.index(untuned), betas.index(4 * untuned)
    for n, reference, flip, per_response in itertools.product(n_responses, references, flips, comparisons_per_response):
        prior, blur = references[reference]
        draw = partial(noisy_data, n_responses=n, comparisons=n * per_response, flip=flip, prior=prior, blur=blur)
        data, trial = draw(datasets=datasets, seed=seed), draw(datasets=validation_datasets, seed=seed + 1)
        policies = fitted_policies(data, ridges=ridges, betas=betas)
        validation = {
            method: expected_reward(policy, trial.rewards).mean(dim=-1)  # (ridges, betas)
            for method, policy in fitted_policies(trial, ridges=ridges, betas=betas).items()
        }
        best = {method: divmod(int(means.argmax()), len(betas)) for method, means in validation.items()}
        settings = {  # (ridge, β) by strategy and method
            "same number": {"DPO": (0, place), "IPO": (0, same_place)},
            "matched": {"DPO": (0, place), "IPO": (0, place)},
            "tuned": {method: (0, int(means[0].argmax())) for method, means in validation.items()},
            "tuned with ridge": best,
        }
        ours = results.setdefault(str(n), {}).setdefault(reference, {})
        for strategy, chosen in settings.items():
            ended = {method: policies[method][where] for method, where in chosen.items()}
            entry = _comparison(data, ended)
            for method, (ridge, strength) in chosen.items():
                entry |= {f"ridge {method}": ridges[ridge], f"beta {method}": betas[strength]}
            _append(ours.setdefault(strategy, {}), str(flip), entry)
        counted = counted_policies(trial, weights=weights)
        weight = int(expected_reward(counted, trial.rewards).mean(dim=-1).argmax())
        reward = expected_reward(counted_policies(data, weights=weights)[weight], data.rewards).mean().item()
        _append(ours.setdefault("counting", {}), str(flip), {"reward": reward, "weight": weights[weight]})
        kept = {"DPO": (0, place), "IPO same number": (0, same_place), "IPO matched": (0, place)}
        lost = _never_won(data, {name: policies[name.split()[0]][where] for name, where in kept.items()})
        _append(ours.setdefault("good but never won", {}), str(flip), lost)
    return results


def noise_stopping(
    *,
    n_responses: int = 10,
    comparisons: int = 20,
    flip: float = 0.2,
    betas: Sequence[float] = (0.5, 2.0),
    steps: Sequence[int] = (1, 3, 10, 30, 100, 300, 1_000, 3_000),
    ridges: Sequence[float] = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 0.0),
    adam_lr: float = 0.01,
    descent_lr: float = 0.4,
    references: Mapping[str, tuple[float, float]] = REFERENCES,
    datasets: int = 1_000,
    seed: int = 0,
) -> dict[str, Any]:
    """What early stopping and a ridge do: true reward by steps of Adam and of gradient descent, and by ridge.

    Each step sees the whole dataset. IPO's τ is β/4.
    """
    optimisers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "Adam": partial(torch.optim.Adam, lr=adam_lr),
        "gradient descent": partial(torch.optim.SGD, lr=descent_lr),
    }
    strength = torch.tensor(betas, dtype=torch.float64)[:, None, None, None]
    losses = {"DPO": partial(dpo_loss, beta=strength), "IPO": partial(ipo_loss, tau=strength / 4)}
    results: dict[str, Any] = {}
    for reference, (prior, blur) in references.items():
        data = noisy_data(
            n_responses=n_responses,
            comparisons=comparisons,
            flip=flip,
            prior=prior,
            blur=blur,
            datasets=datasets,
            seed=seed,
        )
        by_ridge = fitted_policies(data, ridges=ridges, betas=betas)
        start = expected_reward(data.log_reference.exp(), data.rewards)
        entry: dict[str, Any] = {"reference": round(start.mean().item(), 4)}
        for method, loss in losses.items():
            paths = {name: _train(data, loss, make, len(betas), steps=steps) for name, make in optimisers.items()}
            for name, policies in (paths | {"ridge": by_ridge[method]}).items():
                mean, half_width = mean_interval(expected_reward(policies, data.rewards), dim=2)
                for row, beta in enumerate(betas):
                    entry[f"{method} {beta:g} by {name}"] = {
                        "reward": _rounded(mean[:, row]),
                        "half_width_95": _rounded(half_width[:, row]),
                    }
        results[reference] = entry
    return results


def _train(
    data: NoisyData,
    loss: Callable[..., Tensor],
    make_optimiser: Callable[..., torch.optim.Optimizer],
    strengths: int,
    *,
    steps: Sequence[int],
) -> Tensor:
    """All datasets and strengths at once, from the reference on; π after each of `steps`.

    Returns:
        Shape (steps, strengths, datasets, n_responses).
    """
    shares = data.wins / data.wins.sum(dim=(-2, -1), keepdim=True)
    log_ratios = torch.zeros(strengths, *data.log_reference.shape, dtype=torch.float64, requires_grad=True)
    optimiser = make_optimiser([log_ratios])
    zero = torch.zeros(strengths, *shares.shape, dtype=torch.float64)
    records = []
    for step in range(1, max(steps) + 1):
        # The softmax's normaliser is the same for both completions of a pair and cancels in the margin.
        losses = loss(
            policy_chosen_logps=log_ratios[..., :, None].expand_as(zero),
            policy_rejected_logps=log_ratios[..., None, :].expand_as(zero),
            reference_chosen_logps=zero,
            reference_rejected_logps=zero,
        )
        optimiser.zero_grad()
        (losses * shares).sum().backward()  # a sum over datasets and strengths: each has its own gradient
        optimiser.step()
        if step in steps:
            records.append(torch.softmax(data.log_reference + log_ratios.detach(), dim=-1))
    return torch.stack(records)


def _comparison(data: NoisyData, policies: dict[str, Tensor]) -> dict[str, float]:
    """Both methods' rewards and risks, and their differences with intervals, paired by dataset."""
    start = expected_reward(data.log_reference.exp(), data.rewards)
    rewards = {method: expected_reward(policy, data.rewards) for method, policy in policies.items()}
    # Ties are not worse: rounding must not decide where a policy stayed at its reference.
    worse = {method: (reward < start - 1e-9).double() for method, reward in rewards.items()}
    distance = total_variation(policies["DPO"], policies["IPO"]).mean()
    entry = {"reference": start.mean().item(), "total variation": distance.item()}
    for name, values in (("reward", rewards), ("worse", worse)):
        difference, half_width = mean_interval(values["DPO"] - values["IPO"])
        entry |= {f"{name} {method}": value.mean().item() for method, value in values.items()}
        entry |= {f"{name} difference": difference.item(), f"{name} half_width_95": half_width.item()}
    return entry


def _never_won(data: NoisyData, policies: dict[str, Tensor]) -> dict[str, float | None]:
    """How often a response better than the reference's mean was compared and never won, and what is left of it."""
    reference = data.log_reference.exp()
    good = data.rewards > expected_reward(reference, data.rewards)[:, None]
    unlucky = good & (data.wins.sum(dim=-1) == 0) & (data.wins.sum(dim=-2) > 0)
    share, half_width = mean_interval(unlucky.any(dim=-1).double())
    entry: dict[str, float | None] = {
        "share": share.item(),
        "share half_width_95": half_width.item(),
    }
    for name, policy in policies.items():
        entry[f"kept by {name}"] = (policy / reference)[unlucky].mean().item() if unlucky.any() else None
    return entry


def _append(columns: dict[str, dict[str, list[float | None]]], row: str, entry: dict[str, Any]) -> None:
    for name, value in entry.items():
        columns.setdefault(name, {}).setdefault(row, []).append(None if value is None else float(f"{value:.4g}"))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
