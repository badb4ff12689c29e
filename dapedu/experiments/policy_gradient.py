"""PPO and RLOO where the optimum is known: three responses, and the world whose completions can all be listed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dapedu.enumerable import (
    World,
    completion_logps,
    fit_humans,
    make_tokenizer,
    probabilities,
    prompt_texts,
    reward_of_samples,
    rlhf_optima,
)
from dapedu.evaluate import total_variation
from dapedu.experiments.enumerable import SHAPE, Start, by_seed, point_of, rounded, start_of
from dapedu.experiments.units import run_units
from dapedu.models import tiny_gpt2
from dapedu.ppo import PPOSettings, RLOOSettings, train_ppo, train_rloo

# A small last learning rate: what a policy gradient ends at wanders by the noise of its last steps.
PPO_FAST = {"lr": 1e-3, "value_lr": 3e-3, "final_lr": 0.01}
RLOO_FAST = {"lr": 1e-3, "final_lr": 0.01}


def bandit_policy_gradient(
    *,
    rewards: Sequence[float] = (1.0, 0.5, 0.0),
    betas: Sequence[float] = (0.7, 0.4, 0.2),
    batch_size: int = 256,
    steps: int = 100,
    ppo: Mapping[str, Any] = PPO_FAST,
    rloo: Mapping[str, Any] = RLOO_FAST,
    seeds: int = 5,
) -> dict[str, Any]:
    """PPO and RLOO on three responses: how far from π* ∝ π_ref exp(r/β) they end."""
    settings = {
        "rewards": rewards,
        "betas": betas,
        "ppo": {"batch_size": batch_size, "steps": steps, **ppo},
        "rloo": {"batch_size": batch_size, "steps": steps, **rloo},
    }
    units = run_units(bandit_unit, [{"seed": seed, **settings} for seed in range(seeds)])
    results: dict[str, Any] = {}
    for name, columns in by_seed(units).items():
        results[name] = {"total_variation": columns["end"], "total_variation_at_start": columns["start"]}
    return results


def enumerable_policy_gradient(
    *,
    betas: Sequence[float] = (1.0, 0.5, 0.25),
    batch_size: int = 128,
    steps: int = 200,
    every: int = 20,
    ppo: Mapping[str, Any] = PPO_FAST,
    rloo: Mapping[str, Any] = RLOO_FAST,
    sft_steps: int = 300,
    shape: Mapping[str, int] = SHAPE,
    seeds: int = 5,
) -> dict[str, Any]:
    """PPO and RLOO against the exact frontier, and how much of it is reached after how many completions."""
    common = {"batch_size": batch_size, "steps": steps, "evaluate_every": every}
    settings = {"betas": betas, "ppo": common | dict(ppo), "rloo": common | dict(rloo), "sft_steps": sft_steps}
    units = run_units(enumerable_unit, [{"seed": seed, "shape": shape, **settings} for seed in range(seeds)])
    return {
        "completions": [batch_size * step for step in range(every, steps + 1, every)],
        "reference_reward": [rounded(unit["reference_reward"]) for unit in units],
        "methods": {method: by_seed([unit["methods"][method] for unit in units]) for method in units[0]["methods"]},
    }


def bandit_unit(
    *,
    seed: int,
    rewards: Sequence[float],
    betas: Sequence[float],
    ppo: Mapping[str, Any],
    rloo: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """One seed of `bandit_policy_gradient`: a language model of one-token completions, uniform at the start.

    Args:
        seed: of the model and of the samples.
        rewards: r of each response.
        betas: KL weights.
        ppo, rloo: settings of each.

    Returns:
        For each method and β the total variation to the optimum at the start and at the end.
    """
    n = len(rewards)
    world = World(
        prompts=torch.zeros(1, 2, dtype=torch.long),
        completions=torch.arange(n)[:, None],
        human_logps=torch.full((1, n), 1 / n).log(),
        rewards=torch.tensor([rewards]),
        n_symbols=n,
    )
    model = tiny_gpt2("tiny", vocab_size=n, n_positions=world.n_positions, seed=seed)
    fit_humans(model, world, steps=50)
    reference = _policy(model, world)
    found = {}
    for name, settings, beta in _runs(ppo, rloo, betas):
        policy = copy.deepcopy(model)
        _train(policy, world, world.rewards, name, settings, beta=beta, seed=seed)
        optimum = rlhf_optima(world.rewards, beta, reference=reference)
        found[f"{name} {beta:g}"] = {
            "start": total_variation(reference, optimum).item(),
            "end": total_variation(_policy(policy, world), optimum).item(),
        }
    return found


def enumerable_unit(
    *,
    seed: int,
    betas: Sequence[float],
    ppo: Mapping[str, Any],
    rloo: Mapping[str, Any],
    sft_steps: int,
    shape: Mapping[str, int],
) -> dict[str, Any]:
    """One seed of `enumerable_policy_gradient`.

    Args:
        seed: of the world, of the model and of the samples.
        betas: KL weights.
        ppo, rloo: settings of each; the policy is looked at every `evaluate_every` steps.
        sft_steps: of the fit to the human distribution.
        shape: of the world, arguments of `make_world`.

    Returns:
        The reference's reward; by method and β the policy's `point_of` at the end, its `gain`, the share of the gain in
        reward over the reference that the frontier has at the same KL, and the same over training, `gains`.
    """
    start = start_of(seed, shape, sft_steps)
    methods: dict[str, dict[str, Any]] = {"PPO": {}, "RLOO": {}}
    reference_reward = point_of(start, start.reference)["reward"]
    for name, settings, beta in _runs(ppo, rloo, betas):
        policy = copy.deepcopy(start.model)
        optima = rlhf_optima(start.world.rewards, beta, reference=start.reference)
        gains: list[float] = []

        def look(model: Any, gains: list[float] = gains) -> float:
            gains.append(_gain(start, point_of(start, _policy(model, start.world)), reference_reward))
            return gains[-1]

        _train(policy, start.world, start.world.rewards, name, settings, beta=beta, seed=seed, metrics={"gain": look})
        point = point_of(start, _policy(policy, start.world), optima)
        methods[name][f"{beta:g}"] = point | {"gain": gains[-1], "gains": gains}
    return {"reference_reward": reference_reward, "methods": methods}


def _gain(start: Start, point: Mapping[str, float], reference_reward: float) -> float:
    best = point["reward"] - point["above_frontier"]
    return (point["reward"] - reference_reward) / (best - reference_reward)


def _runs(
    ppo: Mapping[str, Any], rloo: Mapping[str, Any], betas: Sequence[float]
) -> list[tuple[str, Mapping[str, Any], float]]:
    return [(name, settings, beta) for name, settings in (("PPO", ppo), ("RLOO", rloo)) for beta in betas]


def _train(
    policy: Any,
    world: World,
    rewards: torch.Tensor,
    method: str,
    settings: Mapping[str, Any],
    *,
    beta: float,
    seed: int,
    **options: Any,
) -> None:
    tokenizer, prompts, reward = make_tokenizer(world), prompt_texts(world), reward_of_samples(world, rewards)
    more: dict[str, Any] = {"max_new_tokens": world.completions.shape[1], "seed": seed}
    if method == "PPO":
        ppo = PPOSettings(**settings, **more)
        train_ppo(policy, tokenizer, prompts, reward, beta=beta, settings=ppo, progress=False, **options)
    else:
        rloo = RLOOSettings(**settings, **more)
        train_rloo(policy, tokenizer, prompts, reward, beta=beta, settings=rloo, progress=False, **options)


def _policy(model: Any, world: World) -> torch.Tensor:
    with torch.no_grad():
        return probabilities(completion_logps(model, world))
