"""What the details of PPO are worth: each switched off, or turned up, once."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dapedu.experiments.laboratories import measured, objective_of, prepare
from dapedu.experiments.reviews import SEEDS, by_metric
from dapedu.experiments.rlhf import train_policy, tuned_settings
from dapedu.experiments.units import run_units, scratch
from dapedu.models import ScalarHead, load_head, load_model

# Settings that differ from the tuned ones; `beta` and `value_model` are no settings of PPO's.
VARIANTS: dict[str, dict[str, Any]] = {
    "all details": {},
    "no advantage normalisation": {"normalise_advantages": False},
    "no value clipping": {"value_clip_range": None},
    "no ratio clipping": {"clip_range": None},
    "reward normalisation": {"normalise_rewards": True},
    "λ = 0": {"gae_lambda": 0.0},
    "λ = 1": {"gae_lambda": 1.0},
    "no KL term": {"beta": 0.0},
    "KL in the loss": {"kl_in": "loss"},
    "one epoch": {"epochs": 1},
    "eight epochs": {"epochs": 8},
    "no gradient clipping": {"clip": None},
    "no learning-rate decay": {"final_lr": 1.0},
    "random value head": {"value_model": "random head"},
    "value from the reward model": {"value_model": "reward model"},
}


def reviews_ppo_details(
    *,
    seeds: Sequence[int] = SEEDS,
    beta: float = 0.5,
    completions: int = 4_096,
    variants: Sequence[str] = tuple(VARIANTS),
) -> dict[str, Any]:
    """PPO on the gold reward with each detail changed once: reward and KL over training, and the policy at the end."""
    prepare(seeds)
    settings = tuned_settings()["PPO, gold reward"]
    settings = settings | {"steps": completions // settings["batch_size"]}
    cases = [
        {"seed": seed, "beta": beta, "settings": settings, "changed": VARIANTS[name]}
        for name in variants
        for seed in seeds
    ]
    rows = run_units(detail_unit, cases)
    results: dict[str, Any] = {"settings": settings, "variants": {}}
    for number, name in enumerate(variants):
        results["variants"][name] = by_metric(rows[number * len(seeds) : (number + 1) * len(seeds)])
    return results


def detail_unit(*, seed: int, beta: float, settings: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """One run of `reviews_ppo_details`.

    Args:
        seed: of the laboratory and of the run.
        beta: KL weight, by which the objective is judged also where training has none.
        settings: of PPO.
        changed: one of `VARIANTS`; None stands for ∞, which JSON does not have.

    Returns:
        `reward` and `kl` of each step's completions; gold, KL, length and objective of the policy on test prompts.
    """
    values: dict[str, Any] = {name: math.inf if value is None else value for name, value in changed.items()}
    beta_used, start = values.pop("beta", beta), values.pop("value_model", None)
    log: list[dict[str, float]] = []
    policy = train_policy(
        seed=seed,
        method="PPO, gold reward",
        beta=beta_used,
        settings=dict(settings) | values,
        log=log,
        **({"value_model": _value_model(start, seed)} if start else {}),
    )
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    found = measured(policy, reference, tokenizer, seed=seed)
    return {
        "reward over training": [round(row["reward"], 3) for row in log],
        "kl over training": [round(row["kl"], 3) for row in log],
        "explained over training": [round(row["explained"], 3) for row in log],
        "objective": round(objective_of(found, beta), 4),
        **found,
    }


def _value_model(start: str, seed: int) -> ScalarHead:
    if start == "reward model":
        return load_head(scratch() / f"reward-{seed}")[0]
    head = ScalarHead(copy.deepcopy(load_model(scratch() / f"sft-{seed}")[0]))
    nn.init.normal_(head.linear.weight)  # on states of a layer norm: values of about ±8
    return head
