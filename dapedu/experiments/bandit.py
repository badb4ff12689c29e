"""The published results of world 1, the bandit: the figures of the DPO and IPO chapters, and the benchmark."""

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from dapedu.bandit import (
    DATASETS,
    bradley_terry_rewards,
    draw_batches,
    fit_bradley_terry,
    ipo_optimum,
    rlhf_optimum,
    sample_wins,
    train_bandit,
    win_graph,
    win_groups,
)
from dapedu.evaluate import expected_reward, kl_divergence, mean_interval, total_variation
from dapedu.losses import dpo_loss, ipo_loss


def bandit_figures(
    *,
    taus: Sequence[float] = (0.1, 0.5, 1.0),
    betas: Sequence[float] = (0.1, 0.5, 1.0, 0.4, 2.0, 4.0),  # the same numbers as τ, then matched: 4τ
    seeds: int = 10,
    steps: int = 18_000,
) -> dict[str, Any]:
    """§5.4 of the IPO paper, its datasets and ours, DPO and IPO: where π ends, and where it should."""
    datasets = {
        **DATASETS,
        "two actions": [(0, 1)],
        "contested": [(0, 1), (0, 1), (1, 2), (2, 0)],
    }
    results: dict[str, Any] = {}
    for name, pairs in datasets.items():
        n_responses = 2 if name == "two actions" else 3
        limit = bradley_terry_rewards(pairs, n_responses=n_responses)
        entry: dict[str, Any] = {"has_finite_dpo_optimum": win_graph(pairs, n_responses=n_responses)[0]}
        for method, loss, strengths in (("DPO", dpo_loss, betas), ("IPO", ipo_loss, taus)):
            run = train_bandit(pairs, loss, strengths, n_responses=n_responses, seeds=seeds, steps=steps)
            mean, half_width = mean_interval(run.probabilities[:, :, -1], dim=1)
            for row, strength in enumerate(strengths):
                optimum = (
                    rlhf_optimum(limit, strength)
                    if method == "DPO"
                    else ipo_optimum(pairs, strength, n_responses=n_responses)
                )
                entry[f"{method} {strength:g}"] = {
                    "mean": _rounded(mean[row]),
                    "half_width_95": _rounded(half_width[row]),
                    "closed_form": _rounded(optimum),
                }
        results[name] = entry
    return results


def closed_forms(*, problems: int = 200, n_responses: int = 5, seed: int = 0) -> dict[str, Any]:
    """Every closed form of the two chapters against a numerical optimiser, on random problems."""
    rng = np.random.default_rng(seed)
    errors = [_closed_form_errors(rng, n_responses) for _ in range(problems)]
    return {f"{name}_worst": float(f"{max(error[name] for error in errors):.2g}") for name in errors[0]}


def _closed_form_errors(rng: np.random.Generator, n: int) -> dict[str, float]:
    rewards = torch.from_numpy(rng.normal(size=n))
    reference = torch.from_numpy(rng.dirichlet(np.full(n, 2.0)))
    strength = float(rng.uniform(0.3, 3))
    optimum = rlhf_optimum(rewards, strength, reference=reference)

    def kl_term(policy: Tensor) -> Tensor:
        return strength * kl_divergence(policy, reference)

    # RLHF's objective, climbed without knowing the answer.
    climbed = _maximise(lambda policy: expected_reward(policy, rewards) - kl_term(policy), reference)
    # Z(x) cancels: the margins of β log π*/π_ref are the margins of r.
    implicit = strength * (optimum / reference).log()
    margin_gap = (implicit[:, None] - implicit) - (rewards[:, None] - rewards)
    # DPO's loss over every pair, each labelled as often as Bradley–Terry says.
    wins = torch.sigmoid(rewards[:, None] - rewards)
    dpo = _maximise(lambda policy: -_population_loss(policy, reference, wins, dpo_loss, beta=strength), reference)
    # ΨPO with Ψ = identity, for preferences that no reward explains, against IPO's loss over every pair.
    upper = torch.from_numpy(rng.uniform(size=(n, n))).triu(1)
    any_wins = upper + (1 - upper.T).tril(-1) + 0.5 * torch.eye(n)
    psi = _maximise(lambda policy: expected_reward(policy, any_wins.mean(dim=1)) - kl_term(policy), reference)
    ipo = _maximise(lambda policy: -_population_loss(policy, reference, any_wins, ipo_loss, tau=strength), reference)
    # The weight of a pair in DPO's gradient, by autograd and as the probability of the wrong order.
    margins = torch.from_numpy(rng.normal(scale=5, size=n)).requires_grad_()
    zero = torch.zeros_like(margins)
    losses = dpo_loss(
        policy_chosen_logps=margins,
        policy_rejected_logps=zero,
        reference_chosen_logps=zero,
        reference_rejected_logps=zero,
        beta=strength,
    )
    (slopes,) = torch.autograd.grad(losses.sum(), margins)
    weights = strength / (1 + (strength * margins).exp())
    return {
        "dpo_weight": (slopes + weights).abs().max().item(),
        "gibbs": total_variation(climbed, optimum).item(),
        "reward_margin": margin_gap.abs().max().item(),
        "dpo_population": total_variation(dpo, optimum).item(),
        "psi_identity": total_variation(psi, ipo).item(),
    }


def finite_data(
    *,
    counts: Sequence[int] = (10, 30, 100, 1_000, 10_000),
    datasets: int = 2_000,
    rewards: Sequence[float] = (1.0, 0.5, 0.0, -0.5, -1.0),
    beta: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """How far where DPO leads on n sampled comparisons is from RLHF's optimum on the true reward.

    Computed as RLHF's optimum for the fitted rewards, which is where DPO's loss has its minimum. A dataset that
    leaves the level between undefeated groups open is counted: there it is the convention of
    `bradley_terry_rewards`, not a limit of training.
    """
    true_rewards = torch.tensor(rewards, dtype=torch.float64)
    target = rlhf_optimum(true_rewards, beta)
    win_probabilities = torch.sigmoid(true_rewards[:, None] - true_rewards).expand(datasets, -1, -1)
    results = {}
    for count in counts:
        wins = sample_wins(win_probabilities, comparisons=count, seed=seed)
        same, undefeated = win_groups(wins)
        both_lead = undefeated[:, :, None] & undefeated[:, None, :] & ~same
        optimum = rlhf_optimum(fit_bradley_terry(wins), beta)
        mean, half_width = mean_interval(total_variation(optimum, target))
        results[str(count)] = {
            "total_variation_mean": round(mean.item(), 4),
            "half_width_95": round(half_width.item(), 4),
            "share_with_finite_optimum": round(undefeated.all(dim=1).double().mean().item(), 4),
            "share_undecided": round(both_lead.any(dim=(1, 2)).double().mean().item(), 4),
        }
    return results


def displacement(*, beta: float = 0.1, tau: float = 0.2, lr: float = 0.1, steps: int = 200) -> dict[str, Any]:
    """The log-probability of the chosen response, where responses share parameters and where not.

    Three responses; the logits are linear in shared features in one model and free in the other. One pair only:
    response 0 beats response 1, response 2 is never compared.
    """
    free, shared = torch.eye(3, dtype=torch.float64), torch.tensor(SHARED_FEATURES, dtype=torch.float64)
    results = {}
    for name, features, loss in (
        ("DPO free", free, partial(dpo_loss, beta=beta)),
        ("DPO shared", shared, partial(dpo_loss, beta=beta)),
        ("IPO shared", shared, partial(ipo_loss, tau=tau)),
    ):
        logps = train_linear(features, loss, lr=lr, steps=steps)
        change = logps[-1] - logps[0]
        results[name] = {
            "chosen_change": round(change[0].item(), 4),
            "rejected_change": round(change[1].item(), 4),
            "margin_change": round((change[0] - change[1]).item(), 4),
            "other_probability": round(logps[-1, 2].exp().item(), 4),
        }
    return results


# Chosen and rejected are alike in the first feature; along what tells them apart, the response that nobody
# compared is further out still.
SHARED_FEATURES = [[1.0, 1.0], [1.0, 0.0], [0.0, 3.0]]


def train_linear(features: Tensor, loss: Callable[..., Tensor], *, lr: float, steps: int) -> Tensor:
    """Gradient descent on the one pair 0 ≻ 1 in the model π ∝ exp(features θ), from the uniform reference.

    Args:
        features: one row a response, shape (n_responses, parameters).
        loss: a function of the four keyword log-probabilities, its strength bound: `partial(dpo_loss, beta=0.1)`.
        lr: step size.
        steps: number of steps.

    Returns:
        log π before each step and at the end, shape (steps + 1, n_responses).

    Raises:
        ValueError: as the loss.
    """
    parameters = torch.zeros(features.shape[1], dtype=features.dtype, requires_grad=True)
    reference = torch.log_softmax(features @ parameters, dim=0).detach()
    records = []
    for _ in range(steps):
        logps = torch.log_softmax(features @ parameters, dim=0)
        records.append(logps.detach())
        value = loss(
            policy_chosen_logps=logps[0],
            policy_rejected_logps=logps[1],
            reference_chosen_logps=reference[0],
            reference_rejected_logps=reference[1],
        )
        (gradient,) = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            parameters -= lr * gradient
    records.append(torch.log_softmax(features @ parameters, dim=0).detach())
    return torch.stack(records)


def kl_at_the_edge(
    *, reference: Sequence[float] = (0.5, 0.3, 0.2), shares: Sequence[float] = (1e-1, 1e-3, 1e-6, 1e-12, 0.0)
) -> dict[str, Any]:
    """Both KLs as the last response's probability goes to 0 and the rest keeps the ratio .6 : .4."""
    target = torch.tensor(reference, dtype=torch.float64)
    policies = torch.tensor([[0.6 * (1 - e), 0.4 * (1 - e), e] for e in shares], dtype=torch.float64)
    reverse, forward = kl_divergence(policies, target), kl_divergence(target, policies)
    return {
        "rejected_probability": list(shares),
        "reverse": _rounded(reverse),
        "forward": [value if np.isfinite(value) else None for value in _rounded(forward)],  # None is ∞
        "bound": round(-target.min().log().item(), 4),
    }


def bandit_benchmark(
    *,
    strengths: Sequence[float] = (0.1, 0.5, 1.0),
    seeds: int = 10,
    steps: int = 18_000,
    repeats: int = 3,
    plain_runs: int = 4,
) -> dict[str, Any]:
    """Seconds on one core for 2 methods × 4 datasets × 3 strengths × 10 seeds, and for a plain loop over runs."""
    methods: dict[str, Callable[..., Tensor]] = {"DPO": dpo_loss, "IPO": ipo_loss}
    settings = list(itertools.product(methods, DATASETS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together, plain, differences = [], [], []
        for _ in range(repeats):
            start = time.perf_counter()
            ends = {
                (method, name): train_bandit(
                    DATASETS[name], methods[method], strengths, n_responses=3, seeds=seeds, steps=steps
                ).probabilities[:, :, -1]
                for method, name in settings
            }
            together.append(time.perf_counter() - start)
        for number in range(plain_runs):  # walks through methods, datasets, strengths and seeds at once
            method, name = settings[(5 * number) % len(settings)]
            row, column = number % len(strengths), number % seeds
            start = time.perf_counter()
            end = _plain_run(DATASETS[name], methods[method], strengths[row], steps=steps, seed=column)
            plain.append(time.perf_counter() - start)
            differences.append((end - ends[method, name][row, column]).abs().max().item())
    finally:
        torch.set_num_threads(threads)
    runs = len(settings) * len(strengths) * seeds
    plain_total = runs * float(np.median(plain))
    return {
        "runs": runs,
        "seconds_together": [round(seconds, 2) for seconds in together],
        "plain_seconds_a_run": [round(seconds, 2) for seconds in plain],
        "plain_seconds_extrapolated": round(plain_total),
        "ratio_of_medians": round(plain_total / float(np.median(together))),
        "largest_difference_of_end_points": float(f"{max(differences):.1g}"),
    }


def _plain_run(
    pairs: Sequence[tuple[int, int]], loss: Callable[..., Tensor], strength: float, *, steps: int, seed: int
) -> Tensor:
    """One run as one would write it first: autograd, torch.optim.Adam, a Python loop."""
    shares = draw_batches(len(pairs), seeds=1, steps=steps, seed=seed)[:, 0]
    winners, losers = (list(side) for side in zip(*pairs, strict=True))
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    reference = torch.full((3,), 1 / 3, dtype=torch.float64).log()
    optimizer = torch.optim.Adam([logits], lr=0.01)
    name = "beta" if loss is dpo_loss else "tau"
    for step in range(steps):
        logps = torch.log_softmax(logits, dim=0)
        losses = loss(
            policy_chosen_logps=logps[winners],
            policy_rejected_logps=logps[losers],
            reference_chosen_logps=reference[winners],
            reference_rejected_logps=reference[losers],
            **{name: strength},
        )
        optimizer.zero_grad()
        (losses * shares[step]).sum().backward()
        optimizer.step()
    return torch.softmax(logits.detach(), dim=0)


def _population_loss(
    policy: Tensor, reference: Tensor, wins: Tensor, loss: Callable[..., Tensor], **strength: float
) -> Tensor:
    """Σ_ij p(i ≻ j) loss(i chosen, j rejected) over all ordered pairs: an expectation, nothing sampled."""
    n = len(policy)
    winners, losers = (~torch.eye(n, dtype=torch.bool)).nonzero(as_tuple=True)
    policy_logps, reference_logps = policy.log(), reference.log()
    losses = loss(
        policy_chosen_logps=policy_logps[winners],
        policy_rejected_logps=policy_logps[losers],
        reference_chosen_logps=reference_logps[winners],
        reference_rejected_logps=reference_logps[losers],
        **strength,
    )
    return (wins[winners, losers] * losses).sum() / (n * (n - 1))


def _maximise(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The policy on the simplex that maximises a smooth objective, by BFGS on its logits."""

    def negative(logits: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(logits, requires_grad=True)
        value = -objective(torch.softmax(leaf, dim=0))
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    found = minimize(negative, start.log().numpy(), jac=True, method="BFGS", options={"gtol": 1e-10})
    return torch.softmax(torch.from_numpy(found.x), dim=0)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 7) for value in values.tolist()]
