"""SLiC-HF and RRHF on the reviews: tuned as the methods of `rlhf` were, then one thing changed at a time.

A method may have 8,192 completions judged: SLiC-HF the pairs of the annotator, or candidates that the reward model
judges, which was fitted to these pairs; so may RRHF and the imitation of the best.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapedu import reviews
from dapedu.data import Record, encode, load_preferences
from dapedu.evaluate import win_rate
from dapedu.experiments.laboratories import (
    COMPLETIONS,
    draw_settings,
    learned_reward,
    measured,
    objective_of,
    pairs_file,
    prepare,
)
from dapedu.experiments.reviews import SEEDS, by_metric, metrics_of
from dapedu.experiments.rlhf import train_policy, tuned_settings
from dapedu.experiments.units import run_units, scratch
from dapedu.models import load_model
from dapedu.reviews.grammar import split_prompts, write_review
from dapedu.sampling import Samples, sample
from dapedu.train import Settings, train_in_rounds, train_preference, two_by_two
from dapedu.train.rounds import Reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TUNED_ON = 5  # the laboratory of `rlhf.reviews_tuning`
_BETA = 0.5  # of the objective by which settings are chosen, and of the DPO and PPO compared with
_ALIKE = 2  # tokens: completions whose lengths differ by no more are of like length

# λ of RRHF is about larger sums than SLiC-HF's: its ranking term is over all pairs of k candidates, on means a token.
_LR = {"lr": (3e-5, 1e-3)}
_SLIC_HF = _LR | {"steps": [64, 128, 256, 512], "delta": (0.3, 10.0), "sft_weight": (0.03, 10.0)}
SPACES: dict[str, dict[str, Any]] = {
    "SLiC-HF, direct": _SLIC_HF,
    "SLiC-HF, sample and rank": _SLIC_HF,
    "best of n, learned reward": _LR | {"steps": [64, 128, 256, 512], "candidates": [4, 16, 64]},
    "RRHF, learned reward": _LR
    | {"steps": [64, 128, 256, 512], "candidates": [2, 4, 8, 16], "sft_weight": (0.3, 30.0)},
}
_KIND = {"SLiC-HF": "slic-hf", "best of n": "sft", "RRHF": "rrhf"}  # by the name up to the comma

# Of SLiC-HF on the pairs of the annotator; a target is what the likelihood term is on.
SLIC_HF_VARIANTS: dict[str, dict[str, Any]] = {
    "tuned": {},
    "no likelihood term": {"sft_weight": 0.0},
    "likelihood of people's reviews": {"target": "people"},
    "likelihood of the SFT model's": {"target": "SFT"},
    "means a token": {"method": "slic-hf-mean"},
}
DELTAS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
SFT_WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

# Of RRHF with the learned reward.
RRHF_VARIANTS: dict[str, dict[str, Any]] = {
    "tuned": {},
    "as published": {"sft_weight": 1.0},
    "no ranking term": {"method": "sft"},
    "no likelihood term": {"sft_weight": 0.0},
    "sums, weight 1": {"method": "rrhf-sum", "sft_weight": 1.0},
    "sums, weight 100": {"method": "rrhf-sum", "sft_weight": 0.01},
    "candidates at temperature 0.7": {"temperature": 0.7},
    "candidates at temperature 1.3": {"temperature": 1.3},
    "two rounds": {"rounds": 2},
    "four rounds": {"rounds": 4},
}


def reviews_ranking_tuning(*, trials: int = 8, beta: float = _BETA, seed: int = 0) -> dict[str, Any]:
    """Eight random settings a method, judged as those of `reviews_tuning` were."""
    prepare([_TUNED_ON])
    cases = [
        {"seed": _TUNED_ON, "method": method, "settings": settings, "split": "validation"}
        for method in SPACES
        for settings in draw_settings(method, trials, seed=seed, spaces=SPACES)
    ]
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in SPACES}
    for case, result in zip(cases, run_units(brief_unit, cases), strict=True):
        found[str(case["method"])].append({"settings": case["settings"], **result})
    return {
        method: {"trials": rows, "best": max(rows, key=lambda row: row["objective"])["settings"]}
        for method, rows in found.items()
    }


def reviews_slic_hf(
    *,
    seeds: Sequence[int] = SEEDS,
    variants: Sequence[str] = tuple(SLIC_HF_VARIANTS),
    deltas: Sequence[float] = DELTAS,
    sft_weights: Sequence[float] = SFT_WEIGHTS,
) -> dict[str, Any]:
    """SLiC-HF beside what it is compared with, its variants, and sweeps over δ and λ; rewards, lengths, win rates."""
    sft = prepare(seeds)
    tuned = ranking_settings()
    results: dict[str, Any] = {"sft": by_metric(sft), "settings": tuned, "methods": {}, "variants": {}}
    others = tuned_settings()
    compared = {method: tuned[method] for method in ("SLiC-HF, direct", "SLiC-HF, sample and rank")}
    compared |= {"best of n, learned reward": tuned["best of n, learned reward"]}
    compared |= {method: others[method] for method in ("DPO", "PPO, learned reward")}
    everyone: dict[str, dict[str, Any]] = {"SFT": {}} | compared
    for method, settings in everyone.items():
        rows = run_units(
            compared_unit, [{"seed": seed, "method": method, "settings": dict(settings)} for seed in seeds]
        )
        results["methods"][method] = by_metric(rows)
    direct = "SLiC-HF, direct"
    for name in variants:
        results["variants"][name] = _over(seeds, direct, tuned[direct] | SLIC_HF_VARIANTS[name])
    for name, values in (("delta", deltas), ("sft_weight", sft_weights)):
        results[name] = {f"{value:g}": _over(seeds, direct, tuned[direct] | {name: value}) for value in values}
    return results


def reviews_rrhf(
    *,
    seeds: Sequence[int] = SEEDS,
    variants: Sequence[str] = tuple(RRHF_VARIANTS),
    candidates: Sequence[int] = (2, 4, 8, 16),
    prompts: int = 512,
) -> dict[str, Any]:
    """RRHF beside PPO on the same reward model, its variants, and what it learns from k candidates of 512 prompts."""
    sft = prepare(seeds)
    tuned, method = ranking_settings(), "RRHF, learned reward"
    results: dict[str, Any] = {"sft": by_metric(sft), "settings": tuned, "variants": {}, "candidates": {}}
    for name in variants:
        results["variants"][name] = _over(seeds, method, tuned[method] | RRHF_VARIANTS[name])
    for k in candidates:
        cases = [{"seed": seed, "settings": tuned[method] | {"candidates": k}, "prompts": prompts} for seed in seeds]
        results["candidates"][str(k)] = by_metric(run_units(best_of_k_unit, cases))
    results["against PPO"] = by_metric(
        run_units(
            duel_unit,
            [
                {
                    "seed": seed,
                    "methods": [method, "PPO, learned reward"],
                    "settings": [tuned[method], tuned_settings()["PPO, learned reward"]],
                }
                for seed in seeds
            ],
        )
    )
    rounds = [tuned[method] | {"rounds": number} for number in (2, 1)]
    results["two rounds against one"] = by_metric(
        run_units(duel_unit, [{"seed": seed, "methods": [method] * 2, "settings": rounds} for seed in seeds])
    )
    return results


def _over(seeds: Sequence[int], method: str, settings: Mapping[str, Any]) -> dict[str, list[float]]:
    return by_metric(
        run_units(brief_unit, [{"seed": seed, "method": method, "settings": dict(settings)} for seed in seeds])
    )


def ranking_settings() -> dict[str, dict[str, Any]]:
    """The best of each method's random trials.

    Returns:
        From the keys of `SPACES` to settings.

    Raises:
        FileNotFoundError: `reviews_ranking_tuning` was never run here.
    """
    from dapedu.experiments import load

    return {method: found["best"] for method, found in load("reviews_ranking_tuning")["results"].items()}


def brief_unit(*, seed: int, method: str, settings: Mapping[str, Any], split: str = "test") -> dict[str, float]:
    """Train the SFT model of a laboratory by a method of this module, and measure it briefly.

    Args:
        seed: of the laboratory and of the run.
        method: a key of `SPACES`.
        settings: as `train_ranking`.
        split: of the prompts.

    Returns:
        As `laboratories.measured`, and the `objective` at β = .5.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    policy = train_ranking(seed=seed, method=method, settings=settings)
    found = measured(policy, reference, tokenizer, seed=seed, split=split)
    return found | {"objective": round(objective_of(found, _BETA), 4)}


def compared_unit(*, seed: int, method: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """A policy against the SFT model and against people, with the lengths that the win rates may owe to.

    Args:
        seed: of the laboratory and of the run.
        method: a key of `SPACES`, one of `rlhf.METHODS`, or "SFT".
        settings: the method's.

    Returns:
        Metrics of the policy; for `SFT` and `people` as opponents of 1,024 prompts each: win rate, mean lengths, the
        share of prompts where the two completions are of like length, and the win rate among these.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    policy = _trained(seed, method, settings)
    found = metrics_of(policy, tokenizer, reference, seed=seed)
    people = reviews.corpus(1_024, split="test", seed=seed)
    asked = [record["prompt"] for record in people]
    drawn = sample(policy, tokenizer, asked, seed=seed)
    own, length = reviews.gold_rewards(drawn), drawn.sequences.lengths
    others = sample(reference, tokenizer, asked, seed=seed + 1)
    written = [record["completion"] for record in people]
    opponents = {
        "SFT": (reviews.gold_rewards(others), others.sequences.lengths),
        "people": (
            torch.tensor([reviews.gold_reward(*row) for row in zip(asked, written, strict=True)], dtype=torch.float64),
            encode(asked, written, tokenizer).lengths,
        ),
    }
    for name, (rewards, lengths) in opponents.items():
        wins = torch.as_tensor(win_rate(own, rewards))
        alike = (length - lengths).abs() <= _ALIKE
        found |= {
            f"{name}: win rate": round(float(wins.mean()), 4),
            f"{name}: length": round(float(lengths.double().mean()), 4),
            f"{name}: alike": round(float(alike.double().mean()), 4),
            f"{name}: win rate, alike": round(float(wins[alike].mean()), 4),
        }
    return found


def best_of_k_unit(*, seed: int, settings: Mapping[str, Any], prompts: int) -> dict[str, float]:
    """RRHF on the gold reward of k candidates a prompt: the reward after training, and what the candidates had.

    Args:
        seed: of the laboratory and of the run.
        settings: of RRHF.
        prompts: with k candidates each.

    Returns:
        As `brief_unit`; `mean` and `best`, of the candidates' gold reward: over all, and of the largest of each prompt;
        the same on test prompts, of the SFT model.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    seen: list[Tensor] = []

    def reward(samples: Samples) -> Tensor:
        seen.append(reviews.gold_rewards(samples))
        return seen[-1]

    k = settings["candidates"]
    policy = train_ranking(
        seed=seed, method="RRHF, learned reward", settings=settings, reward=reward, completions=k * prompts
    )
    found = measured(policy, reference, tokenizer, seed=seed)
    asked = reviews.draw_prompts(512, split="test", seed=seed)
    fresh = reviews.gold_rewards(sample(reference, tokenizer, [p for p in asked for _ in range(k)], seed=seed + 2))
    for name, rewards in (("trained on", seen[0].view(-1, k)), ("test", fresh.view(-1, k))):
        found |= {
            f"{name}: mean": round(float(rewards.mean()), 4),
            f"{name}: best": round(float(rewards.max(dim=1).values.mean()), 4),
        }
    return found


def duel_unit(*, seed: int, methods: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Two trained policies on the same 2,048 test prompts, judged by the gold reward.

    Args:
        seed: of the laboratory and of both runs.
        methods: of the first and of the second.
        settings: of each.

    Returns:
        Shares of prompts on which the first `wins`, `ties` and `loses`, and gold reward, learned reward and KL of each.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    asked = reviews.draw_prompts(2_048, split="test", seed=seed)
    rewards: list[Tensor] = []
    found: dict[str, Any] = {}
    for name, method, values in zip(("first", "second"), methods, settings, strict=True):
        policy = _trained(seed, method, values)
        drawn = sample(policy, tokenizer, asked, seed=seed + len(rewards))
        rewards.append(reviews.gold_rewards(drawn))
        found[f"{name}: learned reward"] = round(float(learned_reward(seed)(drawn).mean()), 4)
        row = measured(policy, reference, tokenizer, seed=seed)
        found |= {f"{name}: {key}": value for key, value in row.items()}
    first, second = rewards
    return found | {
        "wins": round(float((first > second).double().mean()), 4),
        "ties": round(float((first == second).double().mean()), 4),
        "loses": round(float((first < second).double().mean()), 4),
    }


def _trained(seed: int, method: str, settings: Mapping[str, Any]) -> PreTrainedModel:
    if method == "SFT":
        return load_model(scratch() / f"sft-{seed}")[0]
    if method in SPACES:
        return train_ranking(seed=seed, method=method, settings=settings)
    return train_policy(seed=seed, method=method, beta=_BETA, settings=settings)


def train_ranking(
    *,
    seed: int,
    method: str,
    settings: Mapping[str, Any],
    reward: Reward | None = None,
    completions: int = COMPLETIONS,
    start: PreTrainedModel | None = None,
    after: Callable[..., object] | None = None,
) -> PreTrainedModel:
    """A copy of a laboratory's SFT model, trained by a method of this module.

    Args:
        seed: of the laboratory and of the run.
        method: a key of `SPACES`.
        settings: of the method; beside its own `target`, `method`, `temperature` and `rounds` of the variants.
        reward: of the candidates; by default that of the laboratory's reward model.
        completions: judged, over all rounds.
        start: trained in place, instead of a copy of the SFT model.
        after: as `train_in_rounds`.

    Returns:
        The policy.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    policy = start or reference
    values = dict(settings)
    kind = values.pop("method", _KIND[method.split(",")[0]])
    strengths: dict[str, float] = {name: values.pop(name) for name in ("delta", "sft_weight") if name in values}
    if kind == "sft":
        strengths = {}
    steps = values.pop("steps") // values.get("rounds", 1)  # as many in all
    plan = Settings(steps=steps, lr=values.pop("lr"), warmup=min(20, steps), seed=seed, kl_samples=0)
    if method == "SLiC-HF, direct":
        records: list[Record] = list(load_preferences(pairs_file(seed)))
        records = _with_targets(records, values.get("target"), policy, tokenizer, seed)
        train_preference(policy, tokenizer, records, method=kind, strengths=strengths, settings=plan, progress=False)
        return policy
    k = values.pop("candidates", 8)
    train_in_rounds(
        policy,
        tokenizer,
        reviews.draw_prompts(completions // k, split="train", seed=seed),
        reward or learned_reward(seed),
        method=kind,
        strengths=strengths,
        settings=plan,
        candidates=k,
        rank=two_by_two if method.startswith("SLiC-HF") else None,
        after=after,
        progress=False,
        **values,
    )
    return policy


def _with_targets(
    records: list[Record], target: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[Record]:
    """The texts of the likelihood term: the chosen ones unless said otherwise."""
    if target is None:
        return records
    asked = [record["prompt"] for record in records]
    if target == "people":
        texts = people_texts(asked, seed=seed)
    else:
        texts = sample(model, tokenizer, asked, seed=seed + 3).completions
    return [record | {"target": text} for record, text in zip(records, texts, strict=True) if text]


def people_texts(prompts: Sequence[str], *, seed: int, split: str = "train") -> list[str]:
    """A review by people for each prompt.

    Args:
        prompts: of the split.
        seed: of the reviews.
        split: "train", "validation" or "test".

    Returns:
        A text each.
    """
    rng, known = random.Random(seed), {str(prompt): prompt for prompt in split_prompts(split)}
    return [write_review(known[prompt], rng) for prompt in prompts]
