"""DPO, PPO, RLOO and rejection sampling on the reviews, each tuned alike, on the laboratories of `reviews`.

A method may have 8,192 completions judged, whoever judges them: DPO as 4,096 pairs, which is also what the reward model
learns from. All of them maximise 4 E[gold reward] − β KL(π‖π_ref), where 4 is the annotator's sharpness: then the β of
DPO and the β of PPO have one optimum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapedu import reviews
from dapedu.data import load_preferences
from dapedu.evaluate import win_rate
from dapedu.experiments.laboratories import (
    COMPLETIONS,
    SHARPNESS,
    draw_settings,
    gold_reward,
    learned_reward,
    measured,
    objective_of,
    pairs_file,
    prepare,
)
from dapedu.experiments.reviews import SEEDS, bounds, by_metric, metrics_of
from dapedu.experiments.units import run_units, scratch
from dapedu.models import ScalarHead, load_model
from dapedu.ppo import PPOSettings, RLOOSettings, train_ppo, train_rloo
from dapedu.sampling import Samples, best_of_n, sample
from dapedu.train import Settings, train_preference, train_sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METHODS = ("DPO", "PPO, gold reward", "PPO, learned reward", "RLOO, gold reward", "rejection sampling")
_TUNED_ON = 5  # a laboratory that no result is reported from

# What a random trial draws: a pair is drawn between, on a logarithmic scale; of a list, one.
_POLICY_GRADIENT = {"lr": (3e-4, 5e-3), "epochs": [1, 2, 4], "minibatches": [1, 2, 4], "batch_size": [64, 128, 256]}
_PPO = _POLICY_GRADIENT | {"value_lr": (3e-4, 1e-2), "gae_lambda": [0.9, 0.95, 1.0]}
SPACES: dict[str, dict[str, Any]] = {
    "DPO": {"lr": (1e-4, 3e-3), "steps": [128, 256, 512, 1024], "warmup": [10, 50]},
    "PPO, gold reward": _PPO,
    "PPO, learned reward": _PPO,
    "RLOO, gold reward": _POLICY_GRADIENT | {"samples_per_prompt": [2, 4, 8]},
    "rejection sampling": {"lr": (1e-4, 3e-3), "steps": [64, 128, 256, 512], "n": [4, 16, 64]},
}


def reviews_tuning(*, trials: int = 8, beta: float = 0.5, seed: int = 0) -> dict[str, Any]:
    """Eight random settings a method, judged by the objective on validation prompts, on a laboratory of its own."""
    prepare([_TUNED_ON])
    cases = [
        {
            "seed": _TUNED_ON,
            "method": method,
            "strength": beta,
            "settings": settings,
            "split": "validation",
            "brief": True,
        }
        for method in METHODS
        for settings in draw_settings(method, trials, seed=seed, spaces=SPACES)
    ]
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for case, result in zip(cases, run_units(policy_unit, cases), strict=True):
        objective = objective_of(result, beta)
        found[str(case["method"])].append({"settings": case["settings"], "objective": round(objective, 4), **result})
    return {
        method: {"trials": rows, "best": max(rows, key=lambda row: row["objective"])["settings"]}
        for method, rows in found.items()
    }


def reviews_dpo_against_ppo(
    *,
    seeds: Sequence[int] = SEEDS,
    betas: Sequence[float] = (2.0, 1.0, 0.5, 0.25),
    best_of: Sequence[int] = (2, 4, 8, 16, 32, 64),
    rejection_n: Sequence[int] = (4, 16, 64),
    temperatures: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
    temperature_beta: float = 0.5,
) -> dict[str, Any]:
    """Reward against KL of the tuned methods, and the reward over sampling temperatures of those with β = .5."""
    sft = prepare(seeds)
    tuned = tuned_settings()
    results: dict[str, Any] = {"sft": by_metric(sft), "settings": tuned, "methods": {}, "temperatures": {}}
    for method in METHODS:
        strengths = rejection_n if method == "rejection sampling" else betas
        by_strength = {}
        for strength in strengths:
            heats = list(temperatures) if strength == temperature_beta else []
            rows = run_units(
                policy_unit,
                [
                    {
                        "seed": seed,
                        "method": method,
                        "strength": strength,
                        "settings": tuned[method] | ({"n": strength} if method == "rejection sampling" else {}),
                        "temperatures": heats,
                    }
                    for seed in seeds
                ],
            )
            for heat in heats:
                by_heat = results["temperatures"].setdefault(method, {})
                by_heat[f"{heat:g}"] = by_metric([row["temperatures"][f"{heat:g}"] for row in rows])
            by_strength[f"{strength:g}"] = by_metric(
                [{name: value for name, value in row.items() if name != "temperatures"} for row in rows]
            )
        results["methods"][method] = by_strength
    rows = run_units(bounds, [{"seed": seed, "betas": list(betas), "best_of": list(best_of)} for seed in seeds])
    return results | {
        kind: {key: by_metric([row[kind][key] for row in rows]) for key in rows[0][kind]} for kind in rows[0]
    }


def reviews_stability(
    *,
    seeds: Sequence[int] = SEEDS,
    methods: Sequence[str] = ("DPO", "PPO, gold reward", "RLOO, gold reward"),
    factors: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
    beta: float = 0.5,
) -> dict[str, Any]:
    """The tuned methods at a tenth to ten times their learning rate: the objective that each run reaches.

    Beside it stand the SFT model's objective and the optimum's, estimated by weighting samples of the SFT model.
    """
    sft, tuned = prepare(seeds), tuned_settings()
    optima = run_units(bounds, [{"seed": seed, "betas": [beta], "best_of": [2]} for seed in seeds])
    results: dict[str, Any] = {
        "sft": [round(SHARPNESS * row["gold"], 4) for row in sft],
        "optimum": [round(objective_of(row["optimum"][f"{beta:g}"], beta), 4) for row in optima],
        "lr": {},
        "methods": {},
    }
    for method in methods:
        rates = [tuned[method]["lr"] * factor for factor in factors]
        results["lr"][method] = [float(f"{lr:.3g}") for lr in rates]
        cases = [
            {"seed": seed, "method": method, "strength": beta, "settings": tuned[method] | {"lr": lr}, "brief": True}
            for lr in rates
            for seed in seeds
        ]
        rows = run_units(policy_unit, cases)
        by_rate = [rows[start : start + len(seeds)] for start in range(0, len(rows), len(seeds))]
        results["methods"][method] = {
            f"{factor:g}": by_metric([row | {"objective": round(objective_of(row, beta), 4)} for row in group])
            for factor, group in zip(factors, by_rate, strict=True)
        }
    return results


def policy_unit(
    *,
    seed: int,
    method: str,
    strength: float,
    settings: Mapping[str, Any],
    split: str = "test",
    temperatures: Sequence[float] = (),
    brief: bool = False,
) -> dict[str, Any]:
    """Train the SFT model of a laboratory by one of `METHODS`, and measure it.

    Args:
        seed: of the laboratory, of its preferences and of all that is drawn in training.
        method: one of `METHODS`.
        strength: β; of rejection sampling nothing, whose n is among its settings.
        settings: the method's; for those that sample, `steps` follows from `batch_size`.
        split: of the prompts that it is measured on.
        temperatures: at which gold reward and win rate are measured besides.
        brief: `measured` alone.

    Returns:
        Metrics of the policy, and `seconds` of training.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    start = time.perf_counter()
    policy = train_policy(seed=seed, method=method, beta=strength, settings=settings)
    seconds = round(time.perf_counter() - start, 1)
    found: dict[str, Any] = {"seconds": seconds}
    if brief:
        found |= measured(policy, reference, tokenizer, seed=seed, split=split)
    else:
        found |= metrics_of(policy, tokenizer, reference, seed=seed, split=split)
    if temperatures:
        found["temperatures"] = _by_temperature(policy, reference, tokenizer, temperatures, seed=seed)
    return found


def train_policy(
    *,
    seed: int,
    method: str,
    beta: float,
    settings: Mapping[str, Any],
    reward: Callable[[Samples], Tensor] | None = None,
    value_model: ScalarHead | None = None,
    log: list[dict[str, float]] | None = None,
) -> PreTrainedModel:
    """A copy of a laboratory's SFT model, trained.

    Args:
        seed: of the laboratory and of the run.
        method: one of `METHODS`.
        beta: KL weight.
        settings: as `policy_unit`.
        reward: another one than the method's name says.
        value_model: of PPO.
        log: gets what PPO or RLOO log.

    Returns:
        The policy.
    """
    policy, tokenizer = load_model(scratch() / f"sft-{seed}")
    values = dict(settings)
    if method == "DPO":
        plan = Settings(**values, seed=seed, kl_samples=0)
        train_preference(
            policy,
            tokenizer,
            load_preferences(pairs_file(seed)),
            method="dpo",
            strengths={"beta": beta},
            settings=plan,
            progress=False,
        )
        return policy
    if method == "rejection sampling":
        n = values.pop("n")
        asked = reviews.draw_prompts(COMPLETIONS // n, split="train", seed=seed)
        best = best_of_n(policy, tokenizer, asked, reviews.gold_rewards, n=n, seed=seed)
        texts = zip(best.prompts, best.completions, strict=True)
        records = [{"prompt": prompt, "completion": completion} for prompt, completion in texts if completion]
        train_sft(policy, tokenizer, records, settings=Settings(**values, seed=seed), progress=False)
        return policy
    if reward is None:
        reward = learned_reward(seed) if "learned" in method else gold_reward
    prompts = reviews.draw_prompts(COMPLETIONS, split="train", seed=seed)
    values = {"steps": COMPLETIONS // values["batch_size"], "seed": seed} | values
    if method.startswith("PPO"):
        rows = train_ppo(
            policy,
            tokenizer,
            prompts,
            reward,
            beta=beta,
            value_model=value_model,
            settings=PPOSettings(**values),
            progress=False,
        )
    else:
        rows = train_rloo(
            policy, tokenizer, prompts, reward, beta=beta, settings=RLOOSettings(**values), progress=False
        )
    if log is not None:
        log.extend(rows)
    return policy


def tuned_settings() -> dict[str, dict[str, Any]]:
    """The best of each method's random trials.

    Returns:
        From `METHODS` to settings.

    Raises:
        FileNotFoundError: `reviews_tuning` was never run here.
    """
    from dapedu.experiments import load

    return {method: found["best"] for method, found in load("reviews_tuning")["results"].items()}


def _by_temperature(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    temperatures: Sequence[float],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Gold reward, and win rate against the SFT model at temperature 1, on the same test prompts."""
    prompts = reviews.draw_prompts(1024, split="test", seed=seed)
    opponent = reviews.gold_rewards(sample(reference, tokenizer, prompts, seed=seed + 1))
    found = {}
    for temperature in temperatures:
        gold = reviews.gold_rewards(sample(policy, tokenizer, prompts, temperature=temperature, seed=seed))
        wins = torch.as_tensor(win_rate(gold, opponent))
        found[f"{temperature:g}"] = {"gold": round(gold.mean().item(), 4), "win rate": round(wins.mean().item(), 4)}
    return found
