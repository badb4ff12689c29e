"""The published results of world 2: a language model at RLHF's optimum, and the frontier that nothing crosses.

Each experiment is a loop over seeds. A seed is a world, a model that is fitted to how its people write (the
reference), and all that is trained from there: `optimum_unit` and `frontier_unit` are one seed each.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dapedu.enumerable import (
    World,
    best_of_n_policies,
    completion_logps,
    expected_loss,
    fit_humans,
    frontier,
    frontier_reward,
    gold_wins,
    ipo_optima,
    make_world,
    minimise,
    pair_weights,
    probabilities,
    rlhf_optima,
    sample_pairs,
    sampled_loss,
    wins_over,
)
from dapedu.evaluate import expected_reward, kl_divergence, total_variation
from dapedu.experiments.units import run_units
from dapedu.losses import dpo_loss, ipo_loss
from dapedu.models import tiny_gpt2

SHAPE = {"n_symbols": 6, "length": 4, "n_prompts": 4}

# From a table of log-probabilities to what is minimised.
Objective = Callable[[Tensor], Tensor]


class Run(NamedTuple):
    """A loss at one strength, bound to its keyword, and where it leads with every pair there is."""

    method: str
    strength: float
    loss: Callable[..., Tensor]
    optima: Tensor  # (prompts, completions)


class Start(NamedTuple):
    """A seed's world and its reference, from which every run starts."""

    world: World
    model: Any  # a GPT2LMHeadModel
    human_kl: float  # KL(human‖reference), mean over the prompts, nats
    logps: Tensor  # log π_ref, (prompts, completions)
    reference: Tensor  # π_ref, float64
    wins: Tensor  # Bradley–Terry's p(row is preferred to column), (prompts, completions, completions)


def enumerable_optimum(
    *,
    betas: Sequence[float] = (0.5, 0.75, 1.0),
    taus: Sequence[float] = (0.125, 0.1875, 0.25),
    steps: int = 600,
    lr: float = 4e-3,
    sft_steps: int = 300,
    shape: Mapping[str, int] = SHAPE,
    seeds: int = 5,
) -> dict[str, Any]:
    """A GPT-2 trained on DPO's and IPO's expected losses, and how far from the exact optimum it ends."""
    settings = {"betas": betas, "taus": taus, "steps": steps, "lr": lr, "sft_steps": sft_steps, "shape": shape}
    units = run_units(optimum_unit, [{"seed": seed, **settings} for seed in range(seeds)])
    results: dict[str, Any] = {"human_kl": [rounded(unit["human_kl"]) for unit in units]}
    for name, columns in by_seed([unit["runs"] for unit in units]).items():
        results[name] = {
            "total_variation_worst": max(columns["worst"]),
            "total_variation_mean": _mean(columns["mean"]),
            "total_variation_at_start_least": min(columns["start"]),
            **{key: _mean(columns[key]) for key in ("reward", "optimum_reward", "kl", "optimum_kl")},
            "worst_by_seed": columns["worst"],
        }
    return results


def optimum_unit(
    *,
    seed: int,
    betas: Sequence[float],
    taus: Sequence[float],
    steps: int,
    lr: float,
    sft_steps: int,
    shape: Mapping[str, int],
) -> dict[str, Any]:
    """One seed of `enumerable_optimum`.

    Args:
        seed: of the world and of the model.
        betas, taus: DPO's and IPO's strengths.
        steps, lr: of each run.
        sft_steps: of the fit to the human distribution.
        shape: of the world, arguments of `make_world`.

    Returns:
        KL(human‖reference), and for each run the distances to its optimum and at the start over the prompts, with
        reward and KL of both, means over the prompts.
    """
    start = start_of(seed, shape, sft_steps)
    weights = pair_weights(start.logps, start.wins)
    runs = {}
    for run in _runs(start, betas, taus):
        objective = partial(_expected, start, weights, run.loss)
        (policy,) = _path(start, objective, records=[steps], lr=lr)
        distance = total_variation(policy, run.optima)
        reached, optimum = _worth(start, policy), _worth(start, run.optima)
        runs[f"{run.method} {run.strength:g}"] = {
            "worst": distance.max().item(),
            "mean": distance.mean().item(),
            "start": total_variation(start.reference, run.optima).min().item(),
            "reward": reached["reward"],
            "optimum_reward": optimum["reward"],
            "kl": reached["kl"],
            "optimum_kl": optimum["kl"],
        }
    return {"human_kl": start.human_kl, "runs": runs}


def enumerable_frontier(
    *,
    betas: Sequence[float] = (2.0, 1.0, 0.5, 0.25),
    sampled_betas: Sequence[float] = (1.0, 0.5, 0.25, 0.1),
    pairs: Sequence[int] = (1_000, 10_000),
    best_of: Sequence[int] = (2, 4, 16, 64, 256),
    curve_betas: Sequence[float] = (16.0, 8.0, 4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.06, 0.03),
    steps: int = 400,
    early: int = 40,
    lr: float = 4e-3,
    sft_steps: int = 300,
    shape: Mapping[str, int] = SHAPE,
    seeds: int = 5,
) -> dict[str, Any]:
    """Reward against KL, both exact: the frontier, DPO and IPO on all pairs and on samples of them, best-of-n.

    IPO's τ is β/4. On sampled pairs, the same in every step, runs are looked at early and at the end.
    """
    settings = {
        "betas": betas,
        "sampled_betas": sampled_betas,
        "pairs": pairs,
        "best_of": best_of,
        "curve_betas": curve_betas,
        "steps": steps,
        "early": early,
        "lr": lr,
        "sft_steps": sft_steps,
        "shape": shape,
    }
    units = run_units(frontier_unit, [{"seed": seed, **settings} for seed in range(seeds)])
    methods = {
        name: by_seed([unit["methods"][name] for unit in units])
        for name in units[0]["methods"]  # every seed has the same
    }
    excesses = [value for points in methods.values() for point in points.values() for value in point["above_frontier"]]
    return {
        "reference_reward": [rounded(unit["reference_reward"]) for unit in units],
        "curve": {key: [rounded(unit["curve"][key]) for unit in units] for key in ("kl", "reward")},
        "methods": methods,
        "above_frontier_most": max(excesses),
    }


def frontier_unit(
    *,
    seed: int,
    betas: Sequence[float],
    sampled_betas: Sequence[float],
    pairs: Sequence[int],
    best_of: Sequence[int],
    curve_betas: Sequence[float],
    steps: int,
    early: int,
    lr: float,
    sft_steps: int,
    shape: Mapping[str, int],
) -> dict[str, Any]:
    """One seed of `enumerable_frontier`.

    Args:
        seed: of the world, of the model and of the sampled pairs.
        betas: DPO's strengths on all pairs; IPO's are a quarter.
        sampled_betas: the same on sampled pairs.
        pairs: how many are sampled.
        best_of: n of best-of-n.
        curve_betas: where the frontier is computed.
        steps, lr: of each run.
        early: the step at which runs on sampled pairs are looked at, besides the end.
        sft_steps: of the fit to the human distribution.
        shape: of the world, arguments of `make_world`.

    Returns:
        The reference's reward, the frontier's points, and by method and strength the policy's; all of them means over
        the prompts.
    """
    start = start_of(seed, shape, sft_steps)
    curve = frontier(start.world.rewards, curve_betas, reference=start.reference)
    methods: dict[str, dict[str, Any]] = {
        "best of n": {
            str(n): point_of(start, best_of_n_policies(start.world.rewards, n, reference=start.reference))
            for n in best_of
        }
    }

    weights = pair_weights(start.logps, start.wins)
    for run in _runs(start, betas, [beta / 4 for beta in betas]):
        (policy,) = _path(start, partial(_expected, start, weights, run.loss), records=[steps], lr=lr)
        methods.setdefault(run.method, {})[f"{run.strength:g}"] = point_of(start, policy, run.optima)
    for n in pairs:
        sample = sample_pairs(start.logps, start.wins, n=n, seed=seed)
        for run in _runs(start, sampled_betas, [beta / 4 for beta in sampled_betas]):
            objective = partial(sampled_loss, reference_logps=start.logps, pairs=sample, loss=run.loss)
            stopped, ended = _path(start, objective, records=[early, steps], lr=lr)
            for name, policy in ((f"{run.method}, {n} pairs, early", stopped), (f"{run.method}, {n} pairs", ended)):
                methods.setdefault(name, {})[f"{run.strength:g}"] = point_of(start, policy, run.optima)
    return {
        "reference_reward": _worth(start, start.reference)["reward"],
        "curve": {"kl": curve.kl.tolist(), "reward": curve.rewards.tolist()},
        "methods": methods,
    }


def start_of(seed: int, shape: Mapping[str, int], sft_steps: int) -> Start:
    world = make_world(**shape, seed=seed)
    model = tiny_gpt2("tiny", vocab_size=world.n_symbols, n_positions=world.n_positions, seed=seed)
    human_kl = fit_humans(model, world, steps=sft_steps)
    with torch.no_grad():
        logps = completion_logps(model, world)
    return Start(world, model, human_kl, logps, probabilities(logps), gold_wins(world.rewards, sharpness=1))


def _runs(start: Start, betas: Sequence[float], taus: Sequence[float]) -> list[Run]:
    rewards, reference = start.world.rewards, start.reference
    dpo = [Run("DPO", b, partial(dpo_loss, beta=b), rlhf_optima(rewards, b, reference=reference)) for b in betas]
    ipo = [Run("IPO", t, partial(ipo_loss, tau=t), ipo_optima(start.wins, t, reference=reference)) for t in taus]
    return dpo + ipo


def _expected(start: Start, weights: Tensor, loss: Callable[..., Tensor], logps: Tensor) -> Tensor:
    return expected_loss(logps, start.logps, weights, loss)


def _path(start: Start, objective: Objective, *, records: Sequence[int], lr: float) -> list[Tensor]:
    """A copy of the reference trained for as many steps as the last of `records`; π after each of those."""
    policy = copy.deepcopy(start.model)
    tables = []

    def recorded(logps: Tensor) -> Tensor:
        tables.append(logps.detach())
        return objective(logps)

    minimise(policy, recorded, start.world, steps=records[-1], lr=lr)
    with torch.no_grad():
        tables.append(completion_logps(policy, start.world))
    return [probabilities(tables[step]) for step in records]


def _worth(start: Start, policy: Tensor) -> dict[str, float]:
    """E[r] and KL(π‖π_ref), means over the prompts."""
    return {
        "reward": expected_reward(policy, start.world.rewards.double()).mean().item(),
        "kl": kl_divergence(policy, start.reference).mean().item(),
    }


def point_of(start: Start, policy: Tensor, optima: Tensor | None = None) -> dict[str, float]:
    """Where a policy stands: its worth, its win rate, its reward less the frontier's, its distance from optima."""
    point = _worth(start, policy)
    point["above_frontier"] = point["reward"] - frontier_reward(
        start.world.rewards, point["kl"], reference=start.reference
    )
    judged = wins_over(start.reference, gold_wins(start.world.rewards))
    point["win_rate"] = expected_reward(policy, judged).mean().item()
    if optima is not None:
        point["total_variation"] = total_variation(policy, optima).mean().item()
    return point


def by_seed(units: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """From one table a seed to one table whose entries are lists over the seeds."""
    return {
        row: {column: [rounded(unit[row][column]) for unit in units] for column in columns}
        for row, columns in units[0].items()
    }


def _mean(values: Sequence[float]) -> float:
    return rounded(sum(values) / len(values))


def rounded(value: Any) -> Any:
    """Five digits of a number, or of each in a list."""
    return [rounded(part) for part in value] if isinstance(value, list) else float(f"{value:.5g}")
