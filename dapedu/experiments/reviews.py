"""What is published of the reviews: the frontier, over-optimisation, IPO's gap, label noise, on five laboratories each.

A laboratory is a corpus, an SFT model and preferences drawn from it, all of one seed. Every number is a mean over
completions of prompts that nobody trained on; the spread is over laboratories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapedu import reviews
from dapedu.data import Record, encode
from dapedu.evaluate import bootstrap_interval, distinct_n, measure_policy, perplexity
from dapedu.experiments.units import run_units, scratch
from dapedu.models import load_model, save_model
from dapedu.sampling import Samples, sample
from dapedu.train import SFT_SETTINGS, Settings, train_preference, train_sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEEDS = (0, 1, 2, 3, 4)
_HUMAN = 1_000  # held-out reviews by people, for the perplexity
_HELD_OUT = 512  # held-out pairs


def evaluate_reviewer(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reference: PreTrainedModel | None = None,
    split: str = "test",
    n: int = 1024,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> dict[str, float | tuple[float, float, float]]:
    """A model of the reviews measured on n completions: rewards, win rate, KL, faults, diversity, perplexity.

    Args:
        policy, tokenizer: what is measured.
        reference: the SFT model, for `kl` and `win rate` (of the gold reward, on the same prompts).
        split: of the prompts, and of the human reviews whose perplexity is taken.
        n: completions.
        temperature, top_k: of the sampling, the reference's too.
        seed: of prompts and samples.

    Returns:
        Means over completions as (mean, low, high) with a 95 % bootstrap interval over prompts; `distinct 4` and
        `perplexity` are one number.

    Raises:
        ValueError: as `measure_policy`.
    """
    prompts = reviews.draw_prompts(n, split=split, seed=seed)
    baseline = None
    if reference is not None:  # with another seed: models that are nearly the same would draw the same texts
        baseline = sample(reference, tokenizer, prompts, temperature=temperature, top_k=top_k, seed=seed + 1)
    samples, values = measure_policy(
        policy,
        tokenizer,
        prompts,
        rewards=_REWARDS,
        reference=reference,
        baseline=baseline,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    results: dict[str, float | tuple[float, float, float]] = {
        name: bootstrap_interval(value, groups=prompts) for name, value in values.items()
    }
    return results | _of_all(policy, tokenizer, samples, split=split, seed=seed)


def reviews_frontier(
    *,
    seeds: Sequence[int] = SEEDS,
    pairs: int = 4_096,
    steps: int = 400,
    batch_size: int = 32,
    lr: float = 3e-4,
    betas: Sequence[float] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
    taus: Sequence[float] = (0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
    mean_taus: Sequence[float] = (0.5, 1.0, 2.5, 10.0),
    best_of: Sequence[int] = (2, 4, 8, 16, 32, 64),
) -> dict[str, Any]:
    """Reward against KL on reviews: the SFT model, DPO and IPO over strengths, best-of-n, the optimum by weighting."""
    results: dict[str, Any] = {"sft": by_metric(run_units(laboratory, [{"seed": seed} for seed in seeds]))}
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr}
    for method, grid in {"dpo": betas, "ipo": taus, "ipo-mean": mean_taus}.items():
        common = {"method": method, "strengths": list(grid), "pairs": pairs, "settings": settings}
        rows = run_units(policies, [{"seed": seed, **common} for seed in seeds])
        results[method] = {key: by_metric([row[key] for row in rows]) for key in rows[0]}
    rows = run_units(bounds, [{"seed": seed, "betas": list(betas), "best_of": list(best_of)} for seed in seeds])
    return results | {
        kind: {key: by_metric([row[kind][key] for row in rows]) for key in rows[0][kind]} for kind in rows[0]
    }


def reviews_overoptimisation(
    *,
    seeds: Sequence[int] = SEEDS,
    counts: Sequence[int] = (1_024, 4_096, 16_384),
    beta: float = 0.25,
    steps: int = 1_200,
    every: int = 100,
    batch_size: int = 32,
    lr: float = 3e-4,
) -> dict[str, Any]:
    """DPO at a small β on few and on many pairs: gold reward, KL and held-out loss as training goes on."""
    run_units(laboratory, [{"seed": seed} for seed in seeds])
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr, "evaluate_every": every}
    results: dict[str, Any] = {"steps": list(range(every, steps + 1, every))}
    for count in counts:
        common = {"method": "dpo", "strengths": {"beta": beta}, "pairs": count, "settings": settings}
        results[str(count)] = by_metric(run_units(course, [{"seed": seed, **common} for seed in seeds]))
    return results


def reviews_gap(
    *,
    seeds: Sequence[int] = SEEDS,
    pairs: int = 64,
    steps: int = 800,
    every: int = 100,
    batch_size: int = 32,
    lr: float = 3e-4,
    beta: float = 0.1,
    tau: float = 0.1,
) -> dict[str, Any]:
    """DPO and IPO on 64 pairs that are always labelled right: the margin on these pairs, and the KL."""
    run_units(laboratory, [{"seed": seed} for seed in seeds])
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr, "evaluate_every": every}
    results: dict[str, Any] = {"steps": list(range(every, steps + 1, every))}
    for method, strength in {"dpo": {"beta": beta}, "ipo": {"tau": tau}}.items():
        common = {"method": method, "strengths": strength, "pairs": pairs, "settings": settings}
        rows = run_units(
            course, [{"seed": seed, "sharpness": _NEVER_WRONG, "on_the_data": True, **common} for seed in seeds]
        )
        results[method] = by_metric(rows)
    return results


def reviews_noise(
    *,
    seeds: Sequence[int] = SEEDS,
    flips: Sequence[float] = (0.2, 0.4),
    pairs: int = 4_096,
    steps: int = 400,
    batch_size: int = 32,
    lr: float = 3e-4,
    betas: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    taus: Sequence[float] = (0.025, 0.05, 0.1, 0.25),
) -> dict[str, Any]:
    """DPO and IPO with turned labels, four strengths each, chosen by the gold reward on validation prompts."""
    run_units(laboratory, [{"seed": seed} for seed in seeds])
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr}
    results: dict[str, Any] = {}
    for method, grid in {"dpo": betas, "ipo": taus}.items():
        for flip in flips:
            common = {"method": method, "strengths": list(grid), "pairs": pairs, "settings": settings, "flip": flip}
            rows = run_units(policies, [{"seed": seed, **common} for seed in seeds])
            chosen = [max(row, key=partial(_validation_gold, row)) for row in rows]
            results[f"{method}, {flip:g}"] = {
                "strengths": {key: by_metric([row[key] for row in rows]) for key in rows[0]},
                "chosen": chosen,
                "tuned": by_metric([row[key] for row, key in zip(rows, chosen, strict=True)]),
            }
    return results


def laboratory(*, seed: int) -> dict[str, float]:
    """Train the SFT model of a seed on 8,000 reviews of that seed, keep it, and measure it and people.

    Args:
        seed: of the corpus, of the model's weights, of the order of training and of the samples.

    Returns:
        Metrics of the SFT model; `human gold` and `human faults`, of people's reviews.
    """
    tokenizer = reviews.make_tokenizer()
    model = reviews.make_model(tokenizer, seed=seed)
    settings = replace(SFT_SETTINGS, seed=seed)
    train_sft(model, tokenizer, reviews.corpus(8_000, seed=seed), settings=settings, progress=False)
    save_model(model, tokenizer, scratch() / f"sft-{seed}", card=f"The SFT model of laboratory {seed}.\n")
    people = [reviews.judge(r["prompt"], r["completion"]) for r in reviews.corpus(_HUMAN, split="test", seed=seed)]
    return metrics_of(model, tokenizer, None, seed=seed) | {
        "human gold": _mean([judgement.reward for judgement in people]),
        "human faults": _mean([float(any(judgement.faults.values())) for judgement in people]),
    }


def policies(
    *, seed: int, method: str, strengths: Sequence[float], pairs: int, settings: dict[str, Any], flip: float = 0.0
) -> dict[str, dict[str, float]]:
    """Train the SFT model of a laboratory at several strengths on the same preferences.

    Args:
        seed: of the laboratory, its preferences and the order of training.
        method: "dpo", "ipo" or "ipo-mean".
        strengths: values of its KL weight.
        pairs: drawn from the SFT model.
        settings: of `Settings`.
        flip: label noise; the held-out pairs have none.

    Returns:
        For each strength the policy's metrics, `validation gold`, and the held-out pairs' log-ratios.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    records = reviews.preferences(reference, tokenizer, pairs, flip=flip, seed=seed)
    held_out = reviews.preferences(reference, tokenizer, _HELD_OUT, split="validation", seed=seed)
    results = {}
    for strength in strengths:
        policy, _ = load_model(scratch() / f"sft-{seed}")
        log = train_preference(
            policy,
            tokenizer,
            records,
            method=method,
            strengths={_STRENGTH[method]: strength},
            settings=Settings(**settings, seed=seed, evaluate_every=settings["steps"], kl_samples=0),
            held_out=held_out,
            progress=False,
        )
        results[f"{strength:g}"] = (
            metrics_of(policy, tokenizer, reference, seed=seed)
            | {"validation gold": _gold(policy, tokenizer=tokenizer, split="validation", seed=seed)}
            | {name: round(log[-1][f"held_out_{name}"], 4) for name in ("chosen", "rejected", "accuracy")}
        )
    return results


def course(
    *,
    seed: int,
    method: str,
    strengths: dict[str, float],
    pairs: int,
    settings: dict[str, Any],
    sharpness: float = 4.0,
    on_the_data: bool = False,
) -> dict[str, list[float]]:
    """Train the SFT model of a laboratory and measure it as training goes on.

    Args:
        seed: of the laboratory, its preferences and the order of training.
        method: a key of `dapedu.train.METHODS`.
        strengths: its hyperparameters.
        pairs: drawn from the SFT model.
        settings: of `Settings`; it is measured every `evaluate_every` steps.
        sharpness: of the annotator.
        on_the_data: take `margin`, `loss` and `accuracy` on the training pairs themselves instead of held-out ones.

    Returns:
        A list for each of gold, kl, loss, margin, accuracy, chosen and rejected.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    policy, _ = load_model(scratch() / f"sft-{seed}")
    records = reviews.preferences(reference, tokenizer, pairs, sharpness=sharpness, seed=seed)
    watched = (
        records
        if on_the_data
        else reviews.preferences(reference, tokenizer, _HELD_OUT, split="validation", sharpness=sharpness, seed=seed)
    )
    log = train_preference(
        policy,
        tokenizer,
        records,
        method=method,
        strengths=strengths,
        settings=Settings(**settings, seed=seed, kl_samples=512),
        held_out=watched,
        metrics={"gold": partial(_gold, tokenizer=tokenizer, split="test", seed=seed)},
        progress=False,
    )
    rows = [row for row in log if "gold" in row]
    kinds = {"gold": "gold", "kl": "kl"} | {
        name: f"held_out_{name}" for name in ("loss", "margin", "accuracy", "chosen", "rejected")
    }
    return {name: [round(row[key], 4) for row in rows] for name, key in kinds.items()}


def bounds(*, seed: int, betas: Sequence[float], best_of: Sequence[int]) -> dict[str, dict[str, dict[str, float]]]:
    """What can be had from the SFT model of a laboratory without training it, from 128 samples of each of 128 prompts.

    Args:
        seed: of the laboratory and the samples.
        betas: KL weights of the optimum π* ∝ π_ref exp(4 r/β), 4 being the annotator's sharpness.
        best_of: numbers n.

    Returns:
        `best of`: for each n the expected largest reward of n samples, without bias, and the bound log n − (n − 1)/n of
        its KL; `optimum`: for each β reward and KL of π* by weighting the samples, and the share of them that count.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    prompts = reviews.draw_prompts(128, split="test", seed=seed)
    samples = sample(reference, tokenizer, [prompt for prompt in prompts for _ in range(128)], seed=seed)
    rewards = reviews.gold_rewards(samples).view(128, 128)
    found: dict[str, dict[str, dict[str, float]]] = {"best of": {}, "optimum": {}}
    ranked = rewards.sort(dim=1).values
    for n in best_of:
        # The i-th smallest of m is the largest of n with probability C(i − 1, n − 1) / C(m, n).
        odds = torch.tensor([math.comb(place, n - 1) / math.comb(128, n) for place in range(128)], dtype=torch.float64)
        found["best of"][str(n)] = {
            "gold": round(float((ranked @ odds).mean()), 4),
            "kl": round(math.log(n) - (n - 1) / n, 4),
        }
    for beta in betas:
        weights = torch.softmax(4 * rewards / beta, dim=1)
        found["optimum"][f"{beta:g}"] = {
            "gold": round(float((weights * rewards).sum(dim=1).mean()), 4),
            "kl": round(float((weights * (128 * weights).log()).nan_to_num().sum(dim=1).mean()), 4),
            "share": round(float((1 / (128 * weights.square().sum(dim=1))).mean()), 4),
        }
    return found


_STRENGTH = {"dpo": "beta", "ipo": "tau", "ipo-mean": "tau"}
_NEVER_WRONG = 300.0  # sharpness of an annotator who errs on ties only


def _faults(name: str, samples: Samples) -> list[float]:
    rows = zip(samples.prompts, samples.completions, samples.finished, strict=True)
    return [float(reviews.judge(*row).faults[name] > 0) for row in rows]


_REWARDS: dict[str, Callable[[Samples], Tensor | Sequence[float]]] = {
    "gold": reviews.gold_rewards,
    "mild proxy": partial(reviews.proxy_rewards, strength="mild"),
    "strong proxy": partial(reviews.proxy_rewards, strength="strong"),
    **{name: partial(_faults, name) for name in reviews.FAULTS if name != "unfinished"},
    "rude": lambda samples: [float(reviews.is_rude(text)) for text in samples.completions],
    "repetitive": lambda samples: [float(reviews.is_repetitive(text)) for text in samples.completions],
}


def metrics_of(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel | None,
    *,
    seed: int,
    split: str = "test",
) -> dict[str, float]:
    """`evaluate_reviewer` without its intervals: the spread is over laboratories."""
    results = evaluate_reviewer(policy, tokenizer, reference=reference, split=split, seed=seed)
    means = {name: value[0] if isinstance(value, tuple) else value for name, value in results.items()}
    return {name: round(value, 4) for name, value in means.items()}


def _of_all(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Samples, *, split: str, seed: int
) -> dict[str, float]:
    """What is one number of all completions."""
    people: list[Record] = reviews.corpus(_HUMAN, split=split, seed=seed)
    human = encode([r["prompt"] for r in people], [r["completion"] for r in people], tokenizer)
    return {"distinct 4": distinct_n(samples.completions), "perplexity": perplexity(policy, human)}


def _gold(policy: PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase, split: str, seed: int) -> float:
    samples = sample(policy, tokenizer, reviews.draw_prompts(512, split=split, seed=seed), seed=seed)
    return round(float(reviews.gold_rewards(samples).mean()), 4)


def _validation_gold(row: dict[str, dict[str, float]], key: str) -> float:
    return row[key]["validation gold"]


def by_metric(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """One list a metric, of one value a laboratory."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
