"""The reward model: how it over-fits as epochs go on, and what becomes of policies that are trained on it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dapedu import reviews
from dapedu.data import encode
from dapedu.enumerable import completion_rewards, minimise, rlhf_optima, sample_pairs
from dapedu.evaluate import calibration
from dapedu.experiments.enumerable import SHAPE, by_seed, point_of, rounded, start_of
from dapedu.experiments.laboratories import (
    COMPLETIONS,
    SHARPNESS,
    gold_reward,
    learned_reward,
    measured,
    new_head,
    objective_of,
    prepare,
)
from dapedu.experiments.reviews import SEEDS, by_metric, laboratory
from dapedu.experiments.rlhf import train_policy, tuned_settings
from dapedu.experiments.units import run_units, scratch
from dapedu.losses import bradley_terry_loss
from dapedu.models import ScalarHead, head_rewards, load_head, load_model, save_model
from dapedu.sampling import Samples, sample
from dapedu.train import REWARD_SETTINGS, train_reward

_PAIRS = COMPLETIONS // 2
_TESTED = 2_048  # held-out pairs on which a reward model is judged


def reviews_reward_model(
    *,
    seeds: Sequence[int] = SEEDS,
    epochs: Sequence[float] = (0.5, 1, 2, 4, 16),
    beta: float = 0.5,
) -> dict[str, Any]:
    """Reward models stopped after more and more epochs: accuracy, calibration, and PPO on each of them."""
    run_units(laboratory, [{"seed": seed} for seed in seeds])
    trained = run_units(epochs_unit, [{"seed": seed, "epochs": list(epochs)} for seed in seeds])
    settings = tuned_settings()["PPO, learned reward"]
    results: dict[str, Any] = {
        "reward models": {key: by_metric([row[key] for row in trained]) for key in trained[0]},
        "policies": {},
    }
    for passes in epochs:
        cases = [{"seed": seed, "epochs": passes, "beta": beta, "settings": settings} for seed in seeds]
        results["policies"][f"{passes:g}"] = by_metric(run_units(on_epochs_unit, cases))
    return results


def reviews_goodhart(*, seeds: Sequence[int] = SEEDS, steps: int = 160, batch_size: int = 128) -> dict[str, Any]:
    """PPO on the learned reward without a KL term: what the reward model thinks, what is true, and the texts."""
    prepare(seeds)
    settings = tuned_settings()["PPO, learned reward"] | {"steps": steps, "batch_size": batch_size}
    return by_metric(run_units(goodhart_unit, [{"seed": seed, "settings": settings} for seed in seeds]))


def enumerable_reward_model(
    *,
    pairs: Sequence[int] = (1_000, 10_000),
    steps: Sequence[int] = (10, 40, 160),
    betas: Sequence[float] = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.06, 0.03),
    lr: float = 4e-3,
    sft_steps: int = 300,
    shape: Mapping[str, int] = SHAPE,
    seeds: int = 5,
) -> dict[str, Any]:
    """A reward model stopped earlier and later on sampled pairs, and the exact optimum of what it learnt."""
    settings = {"pairs": pairs, "steps": steps, "betas": betas, "lr": lr, "sft_steps": sft_steps, "shape": shape}
    units = run_units(enumerable_reward_unit, [{"seed": seed, **settings} for seed in range(seeds)])
    return {
        "reference_reward": [rounded(unit["reference_reward"]) for unit in units],
        "reward models": {
            key: by_seed([unit["reward models"][key] for unit in units]) for key in units[0]["reward models"]
        },
        "optima": {
            key: {step: by_seed([unit["optima"][key][step] for unit in units]) for step in rows}
            for key, rows in units[0]["optima"].items()
        },
    }


def epochs_unit(*, seed: int, epochs: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Train a laboratory's reward model for one number of epochs after another, a run each, keep and judge them.

    Args:
        seed: of the laboratory.
        epochs: passes over the pairs.

    Returns:
        A table for each of them, with loss and accuracy on training and on held-out pairs, the calibration error of
        both, the spread of its rewards on samples of the SFT model, and their correlation with the gold reward.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    records = reviews.preferences(reference, tokenizer, _PAIRS, seed=seed)
    held_out = reviews.preferences(reference, tokenizer, _TESTED, split="validation", seed=seed)
    samples = sample(reference, tokenizer, reviews.draw_prompts(1_024, split="validation", seed=seed), seed=seed)
    each = -(-len(records) // REWARD_SETTINGS.batch_size)
    found = {}
    for passes in epochs:
        head = new_head(seed)
        settings = replace(REWARD_SETTINGS, steps=round(passes * each), seed=seed)
        train_reward(head, tokenizer, records, settings=settings, progress=False)
        save_model(head, tokenizer, scratch() / f"reward-{seed}-{passes:g}", card="A reward model.\n")
        found[f"{passes:g}"] = (
            _judged(head, tokenizer, records[:_TESTED], "training")
            | _judged(head, tokenizer, held_out, "held-out")
            | _beside_gold(head, samples)
        )
    return found


def on_epochs_unit(*, seed: int, epochs: float, beta: float, settings: Mapping[str, Any]) -> dict[str, float]:
    """PPO on a reward model that `epochs_unit` kept.

    Args:
        seed: of the laboratory.
        epochs: of the reward model.
        beta: KL weight.
        settings: of PPO.

    Returns:
        Metrics of the policy, its objective by the gold reward, and what the reward model gives it.
    """
    head, _ = load_head(scratch() / f"reward-{seed}-{epochs:g}")
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")

    def reward(samples: Samples) -> torch.Tensor:
        return head_rewards(head, samples.sequences)

    policy = train_policy(seed=seed, method="PPO, learned reward", beta=beta, settings=settings, reward=reward)
    found = measured(policy, reference, tokenizer, seed=seed)
    return found | {"objective": round(objective_of(found, beta), 4)}


def goodhart_unit(*, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """PPO on a laboratory's reward model with β = 0.

    Args:
        seed: of the laboratory.
        settings: of PPO.

    Returns:
        Over the steps, `learned` and `gold` reward of the completions on the annotator's scale, `kl`; and three
        completions at the end.
    """
    learned, gold = learned_reward(seed), []

    def reward(samples: Samples) -> torch.Tensor:
        gold.append(round(gold_reward(samples).mean().item(), 3))
        return learned(samples)

    log: list[dict[str, float]] = []
    policy = train_policy(seed=seed, method="PPO, learned reward", beta=0.0, settings=settings, reward=reward, log=log)
    tokenizer = load_model(scratch() / f"sft-{seed}")[1]
    texts = sample(policy, tokenizer, reviews.draw_prompts(3, split="test", seed=seed), seed=seed)
    return {
        "learned": [round(row["reward"], 3) for row in log],
        "gold": gold[1:],  # the first was a trial before the run
        "kl": [round(row["kl"], 2) for row in log],
        "texts": [" ".join(pair) for pair in zip(texts.prompts, texts.completions, strict=True)],
    }


def enumerable_reward_unit(
    *,
    seed: int,
    pairs: Sequence[int],
    steps: Sequence[int],
    betas: Sequence[float],
    lr: float,
    sft_steps: int,
    shape: Mapping[str, int],
) -> dict[str, Any]:
    """One seed of `enumerable_reward_model`.

    Args:
        seed: of the world, of the model and of the pairs.
        pairs: how many are drawn.
        steps: after which the reward model is stopped, each a run of its own.
        betas: KL weights of the optima.
        lr: of the reward model.
        sft_steps: of the fit to the human distribution.
        shape: of the world, arguments of `make_world`.

    Returns:
        The reference's reward; by pairs and steps the loss on the pairs and on 20,000 new ones; and for each β where
        the exact optimum of the learnt reward stands by the gold reward.
    """
    start = start_of(seed, shape, sft_steps)
    found: dict[str, Any] = {"reference_reward": point_of(start, start.reference)["reward"]}
    models: dict[str, Any] = {}
    optima: dict[str, Any] = {}
    for n in pairs:
        drawn = sample_pairs(start.logps, start.wins, n=n, seed=seed)
        fresh = sample_pairs(start.logps, start.wins, n=20_000, seed=seed + 1_000)
        models[str(n)], optima[str(n)] = {}, {}
        for count in steps:
            head = ScalarHead(copy.deepcopy(start.model))
            minimise(head, partial(_pair_loss, drawn), start.world, steps=count, lr=lr, table=completion_rewards)
            with torch.no_grad():
                rewards = completion_rewards(head, start.world)
            models[str(n)][str(count)] = {
                "loss": _pair_loss(drawn, rewards).item(),
                "fresh loss": _pair_loss(fresh, rewards).item(),
            }
            optima[str(n)][str(count)] = {
                f"{beta:g}": point_of(start, rlhf_optima(rewards, beta, reference=start.reference)) for beta in betas
            }
    return found | {"reward models": models, "optima": optima}


def _pair_loss(pairs: Any, rewards: torch.Tensor) -> torch.Tensor:
    return bradley_terry_loss(
        chosen_rewards=rewards[pairs.prompts, pairs.chosen], rejected_rewards=rewards[pairs.prompts, pairs.rejected]
    ).mean()


def _judged(head: ScalarHead, tokenizer: Any, records: Sequence[Mapping[str, str]], name: str) -> dict[str, Any]:
    prompts = [record["prompt"] for record in records]
    chosen, rejected = (
        head_rewards(head, encode(prompts, [record[key] for record in records], tokenizer))
        for key in ("chosen", "rejected")
    )
    margins = (chosen - rejected).double()
    found = calibration(margins)
    return {
        f"{name} loss": round(torch.nn.functional.softplus(-margins).mean().item(), 4),
        f"{name} accuracy": round((margins > 0).double().mean().item(), 4),
        f"{name} calibration error": round(found.error, 4),
        f"{name} confidence": [round(value, 4) for value in found.confidence.tolist()],
        f"{name} right": [round(value, 4) for value in found.accuracy.tolist()],
        f"{name} count": found.counts.tolist(),
    }


def _beside_gold(head: ScalarHead, samples: Samples) -> dict[str, float]:
    learned, gold = head_rewards(head, samples.sequences).double(), SHARPNESS * reviews.gold_rewards(samples)
    return {
        "spread": round(learned.std().item(), 4),
        "gold spread": round(gold.std().item(), 4),
        "correlation": round(torch.corrcoef(torch.stack([learned, gold]))[0, 1].item(), 4),
    }
