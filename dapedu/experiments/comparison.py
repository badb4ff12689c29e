"""Every method of the book on the same reviews: one budget, tuned alike, and measured on the same prompts.

The budget: 256 updates of 64 completions, and 8,192 completions that are judged. Whoever learns from pairs has the
4,096 that the annotator labelled; whoever samples has as many completions judged by the reward model that was fitted to
these pairs. Imitation and SPIN have people's reviews instead, those that the SFT model was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapedu import reviews
from dapedu.data import Record, load_preferences
from dapedu.evaluate import distinct_n, win_rate
from dapedu.experiments.laboratories import (
    draw_settings,
    learned_reward,
    measured,
    objective_of,
    pairs_file,
    prepare,
    reward_model,
)
from dapedu.experiments.ranking import people_texts
from dapedu.experiments.reviews import SEEDS, by_metric, metrics_of
from dapedu.experiments.spin import self_play
from dapedu.experiments.units import run_units, scratch
from dapedu.models import load_model
from dapedu.ppo import PPOSettings, RLOOSettings, train_ppo, train_rloo
from dapedu.sampling import Samples, sample
from dapedu.train import Settings, by_likelihood, train_in_rounds, train_preference, train_sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UPDATES = 256
_AT_ONCE = 64  # completions an update
_JUDGED = 32  # completions an update that may be judged
_ITERATIONS = 4  # of SPIN
_CORPUS = 8_000  # people's reviews that a laboratory has
_TUNED_ON = 5  # a laboratory that no result is reported from
_BETA = 0.5  # of the objective by which settings are chosen

_LR = {"lr": (3e-5, 2e-3)}
_KL = _LR | {"beta": (0.1, 2.0)}
SPACES: dict[str, dict[str, Any]] = {
    "more SFT": _LR,
    "best of n": _LR | {"candidates": [4, 8, 16, 64]},
    "SLiC-HF": _LR | {"delta": (0.3, 10.0), "sft_weight": (0.03, 10.0)},
    "DPO": _KL,
    "IPO": _LR | {"tau": (0.02, 0.5)},
    "RRHF": _LR | {"candidates": [4, 8, 16], "sft_weight": (0.3, 30.0)},
    "CLICK": _LR | {"candidates": [4, 8, 16], "delta": (0.3, 20.0), "contrast_weight": (0.003, 3.0)},
    "SPIN": _LR | {"beta": (0.1, 5.0)},
    "RLOO": _KL | {"batch_size": [64, 128, 256], "samples_per_prompt": [2, 4, 8]},
    "PPO": _KL | {"batch_size": [64, 128, 256], "value_lr": (3e-4, 1e-2), "gae_lambda": [0.9, 0.95, 1.0]},
    "KTO": _KL | {"undesirable_weight": (0.5, 2.0)},
    "ORPO": _LR | {"contrast_weight": (0.1, 10.0)},
    "SimPO": _LR | {"beta": (1.0, 30.0), "gamma": (0.1, 3.0)},
    "robust DPO": _KL | {"flip": [0.05, 0.1, 0.2]},
    "online DPO": _KL | {"rounds": [4, 8, 16]},
}
PAIRS = {  # what learns from the annotator's pairs, by its name in `dapedu.train.METHODS`
    "SLiC-HF": "slic-hf",
    "DPO": "dpo",
    "IPO": "ipo",
    "KTO": "kto",
    "ORPO": "orpo",
    "SimPO": "simpo",
    "robust DPO": "robust-dpo",
}
_ROUNDS = {"best of n": "sft", "RRHF": "rrhf", "CLICK": "click", "online DPO": "dpo"}
JUDGED = (*_ROUNDS, "RLOO", "PPO")  # what samples, and asks the reward model


def reviews_comparison(
    *,
    seeds: Sequence[int] = SEEDS,
    trials: int = 8,
    methods: Sequence[str] = tuple(SPACES),
    flip: float = 0.2,
) -> dict[str, Any]:
    """All methods with one budget, the best of eight random trials each: metrics, win rates, and with turned labels.

    Trials are chosen by 4 gold − .5 KL on validation prompts of a laboratory of their own; all else is of test prompts.
    """
    sft = prepare([*seeds, _TUNED_ON])[: len(seeds)]
    run_units(reward_model, [{"seed": seed, "flip": flip} for seed in seeds])
    tuning = {method: _tried(method, trials) for method in methods}
    best = {method: max(rows, key=lambda row: row["objective"])["settings"] for method, rows in tuning.items()}
    entered: dict[str, dict[str, Any]] = {"people": {}, "SFT": {}} | best
    found = {
        method: run_units(entry_unit, [{"method": method, "settings": settings, "laboratory": seed} for seed in seeds])
        for method, settings in entered.items()
    }
    noisy = {
        method: run_units(
            noisy_unit,
            [{"method": method, "settings": best[method], "laboratory": seed, "flip": flip} for seed in seeds],
        )
        for method in methods
        if method in PAIRS or method in JUDGED
    }
    return {
        "sft": by_metric(sft),
        "tuning": tuning,
        "settings": best,
        "methods": {method: by_metric([row["metrics"] for row in rows]) for method, rows in found.items()},
        "texts": {method: rows[0]["texts"] for method, rows in found.items()},
        "win rates": {one: {other: _duels(found[one], found[other]) for other in found} for one in found},
        "noise": {method: by_metric(rows) for method, rows in noisy.items()},
    }


def reviews_comparison_seconds(
    *, laboratories: Sequence[int] = (0, 1, 2), methods: Sequence[str] = tuple(SPACES), updates: int = 64
) -> dict[str, Any]:
    """Seconds of a quarter of the budget, sampling and judging included; run it with one job on an idle machine."""
    prepare(laboratories)
    best = compared_settings()
    cases = [
        {"laboratory": number, "method": method, "settings": best[method], "updates": updates}
        for number in laboratories
        for method in methods
    ]
    found: dict[str, list[float]] = {}
    for case, row in zip(cases, run_units(seconds_of_training, cases), strict=True):
        found.setdefault(str(case["method"]), []).append(row["seconds"])
    return found


def compared_settings() -> dict[str, dict[str, Any]]:
    """The best of each method's random trials.

    Returns:
        From the keys of `SPACES` to settings.

    Raises:
        FileNotFoundError: `reviews_comparison` was never run here.
    """
    from dapedu.experiments import load

    return load("reviews_comparison")["results"]["settings"]


def trial_unit(*, method: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """One random setting, on the laboratory for tuning.

    Args:
        method: a key of `SPACES`.
        settings: drawn from there.

    Returns:
        As `laboratories.measured`, on validation prompts, and the `objective` at β = .5.
    """
    return _measured_after(method, settings, _TUNED_ON, split="validation")


def noisy_unit(*, method: str, settings: Mapping[str, Any], laboratory: int, flip: float) -> dict[str, float]:
    """The tuned method on labels of which a share is turned; the reward model has seen the same labels.

    Args:
        method: a key of `SPACES` that learns from labels.
        settings: as tuned on labels that nobody turned; robust DPO is told the share.
        laboratory: whose SFT model and prompts.
        flip: the share.

    Returns:
        As `trial_unit`, on test prompts.
    """
    told = {"flip": flip} if method == "robust DPO" else {}
    return _measured_after(method, {**settings, **told}, laboratory, flip=flip)


def entry_unit(*, method: str, settings: Mapping[str, Any], laboratory: int) -> dict[str, Any]:
    """An entry of the comparison, measured in full.

    Args:
        method: a key of `SPACES`, "SFT" or "people".
        settings: the method's.
        laboratory: whose SFT model, pairs and reward model; also the seed of the run.

    Returns:
        `metrics`; `gold`, the reward of one completion for each of 1,024 test prompts, the same for every method of the
        laboratory; `texts`, of three prompts.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{laboratory}")
    asked = reviews.draw_prompts(1_024, split="test", seed=laboratory)
    shown = reviews.prompts("test")[:3]
    if method == "people":
        written = people_texts([*asked, *shown], seed=laboratory, split="test")
        gold = [reviews.gold_reward(*row) for row in zip(asked, written, strict=False)]
        return {"metrics": _of_texts(gold, written[: len(asked)]), "gold": gold, "texts": written[len(asked) :]}
    policy = train_compared(method, settings, laboratory=laboratory, seed=laboratory)
    # Each with a seed of its own: policies that are nearly the same would draw the same texts, and tie.
    place = (*SPACES, "SFT").index(method)
    samples = sample(policy, tokenizer, asked, seed=laboratory + 100_000 * (place + 1))
    return {
        "metrics": metrics_of(policy, tokenizer, reference, seed=laboratory),
        "gold": [round(value, 4) for value in reviews.gold_rewards(samples).tolist()],
        "texts": list(sample(policy, tokenizer, shown, seed=laboratory).completions),
    }


def seconds_of_training(*, laboratory: int, method: str, settings: Mapping[str, Any], updates: int) -> dict[str, float]:
    """How long a method trains.

    Args:
        laboratory: whose models and pairs, which are there already.
        method, settings: as `entry_unit`.
        updates: with 32 completions each that are judged.

    Returns:
        `seconds`, of wall time.
    """
    start = time.perf_counter()
    train_compared(method, settings, laboratory=laboratory, seed=laboratory, updates=updates)
    return {"seconds": round(time.perf_counter() - start, 2)}


def train_compared(
    method: str,
    settings: Mapping[str, Any],
    *,
    laboratory: int,
    seed: int,
    flip: float = 0.0,
    updates: int = UPDATES,
) -> PreTrainedModel:
    """A copy of a laboratory's SFT model, trained with the budget that everyone has.

    Args:
        method: a key of `SPACES`, or "SFT", which is not trained.
        settings: drawn from there.
        laboratory: whose SFT model, pairs and reward model.
        seed: of the prompts, of the samples and of the data's order.
        flip: the share of turned labels in the pairs, which the reward model has seen as well.
        updates: of 64 completions each.

    Returns:
        The policy.
    """
    policy, tokenizer = load_model(scratch() / f"sft-{laboratory}")
    values = dict(settings)
    if method == "SFT":
        return policy
    if method in ("RLOO", "PPO"):
        return _by_policy_gradient(method, values, laboratory, seed, flip, updates)
    plan = Settings(steps=updates, batch_size=_AT_ONCE // 2, lr=values.pop("lr"), seed=seed, kl_samples=0)
    if method in PAIRS:
        train_preference(
            policy,
            tokenizer,
            load_preferences(pairs_file(laboratory, flip)),
            method=PAIRS[method],
            strengths=values,
            settings=plan,
            progress=False,
        )
    elif method == "more SFT":
        plan = replace(plan, batch_size=_AT_ONCE)
        train_sft(policy, tokenizer, reviews.corpus(_CORPUS, seed=laboratory), settings=plan, progress=False)
    elif method == "SPIN":
        plan, people = replace(plan, steps=updates // _ITERATIONS), reviews.corpus(_CORPUS, seed=laboratory)
        self_play(policy, tokenizer, people, settings=plan, iterations=_ITERATIONS, **values)
    else:
        _in_rounds(policy, method, values, plan, laboratory, flip)
    return policy


def _in_rounds(
    policy: PreTrainedModel, method: str, values: dict[str, Any], plan: Settings, laboratory: int, flip: float
) -> None:
    reference, tokenizer = load_model(scratch() / f"sft-{laboratory}")
    candidates, rounds = values.pop("candidates", 2), values.pop("rounds", 1)
    rank = None
    if method == "CLICK":
        rank = partial(_good_and_bad, reference, plan.seed)
    batch_size = {"best of n": _AT_ONCE, "RRHF": _AT_ONCE // candidates}.get(method, plan.batch_size)
    train_in_rounds(
        policy,
        tokenizer,
        reviews.draw_prompts(_JUDGED * plan.steps // candidates, split="train", seed=plan.seed),
        learned_reward(laboratory, flip),
        method=_ROUNDS[method],
        strengths=values,
        settings=replace(plan, steps=plan.steps // rounds, batch_size=batch_size, warmup=min(20, plan.steps // rounds)),
        rounds=rounds,
        candidates=candidates,
        rank=rank,
        reference=reference,
        progress=False,
    )


def _by_policy_gradient(
    method: str, values: dict[str, Any], laboratory: int, seed: int, flip: float, updates: int
) -> PreTrainedModel:
    """Every completion is learned from twice, 64 an update: then as many updates as all others have."""
    policy, tokenizer = load_model(scratch() / f"sft-{laboratory}")
    beta, size = values.pop("beta"), values["batch_size"]
    values |= {"steps": _JUDGED * updates // size, "epochs": 2, "minibatches": size // _AT_ONCE, "seed": seed}
    prompts = reviews.draw_prompts(_JUDGED * updates, split="train", seed=seed)
    reward = learned_reward(laboratory, flip)
    if method == "PPO":
        train_ppo(policy, tokenizer, prompts, reward, beta=beta, settings=PPOSettings(**values), progress=False)
    else:
        train_rloo(policy, tokenizer, prompts, reward, beta=beta, settings=RLOOSettings(**values), progress=False)
    return policy


def _good_and_bad(reference: PreTrainedModel, seed: int, samples: Samples, rewards: Tensor) -> list[Record]:
    """CLICK's pairs: a candidate is good above the mean of its prompt's; the likelihood term is on people's reviews."""
    good = (rewards > rewards.mean(dim=1, keepdim=True)).double()
    records = by_likelihood(reference, seed=seed)(samples, good)
    texts = people_texts([record["prompt"] for record in records], seed=seed)
    return [record | {"target": text} for record, text in zip(records, texts, strict=True)]


def _tried(method: str, trials: int) -> list[dict[str, Any]]:
    drawn = draw_settings(method, trials, seed=0, spaces=SPACES)
    rows = run_units(trial_unit, [{"method": method, "settings": settings} for settings in drawn])
    return [{"settings": settings, **row} for settings, row in zip(drawn, rows, strict=True)]


def _measured_after(
    method: str, settings: Mapping[str, Any], laboratory: int, *, flip: float = 0.0, split: str = "test"
) -> dict[str, float]:
    reference, tokenizer = load_model(scratch() / f"sft-{laboratory}")
    policy = train_compared(method, settings, laboratory=laboratory, seed=laboratory, flip=flip)
    found = measured(policy, reference, tokenizer, seed=laboratory, split=split)
    return found | {"objective": round(objective_of(found, _BETA), 4)}


def _duels(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[float]:
    """Win rate of one method against another in each laboratory, ties half."""
    golds = [[torch.tensor(row["gold"], dtype=torch.float64) for row in pair] for pair in zip(one, other, strict=True)]
    return [round(float(win_rate(*pair).mean()), 4) for pair in golds]


def _of_texts(gold: Sequence[float], texts: Sequence[str]) -> dict[str, float]:
    return {"gold": round(sum(gold) / len(gold), 4), "distinct 4": round(distinct_n(texts), 4)}
