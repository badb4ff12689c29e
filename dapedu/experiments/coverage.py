"""Why offline DPO falls behind at larger KLs: it is given more pairs, other labels, better pairs, or fresh ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dapedu import reviews
from dapedu.data import Record
from dapedu.experiments.laboratories import COMPLETIONS, learned_reward, measured, objective_of, prepare
from dapedu.experiments.reviews import SEEDS, by_metric
from dapedu.experiments.rlhf import train_policy, tuned_settings
from dapedu.experiments.units import run_units, scratch
from dapedu.models import load_model
from dapedu.sampling import sample
from dapedu.train import Settings, train_preference

_PAIRS = COMPLETIONS // 2
_MORE = 4  # times as many
_ROUNDS = 4
_BETTER = 0.5  # β of the policy that writes better pairs
KINDS = ("as collected", "four times as many", "labelled by the reward model", "of a better policy", "in four rounds")


def reviews_coverage(
    *, seeds: Sequence[int] = SEEDS, betas: Sequence[float] = (0.5, 0.25), kinds: Sequence[str] = KINDS
) -> dict[str, Any]:
    """DPO on the same number of pairs that others wrote, on more of them, and in rounds: reward and KL."""
    prepare(seeds)
    tuned = tuned_settings()
    results: dict[str, Any] = {}
    for kind in kinds:
        cases = [{"seed": seed, "kind": kind, "betas": list(betas), "settings": tuned} for seed in seeds]
        rows = run_units(coverage_unit, cases)
        results[kind] = {key: by_metric([row[key] for row in rows]) for key in rows[0]}
    return results


def coverage_unit(
    *, seed: int, kind: str, betas: Sequence[float], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """DPO at several strengths on pairs of one of `KINDS`.

    Args:
        seed: of the laboratory and of the pairs.
        kind: where the pairs are from.
        betas: KL weights.
        settings: tuned, by method.

    Returns:
        For each β metrics of the policy and its objective.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    records: list[Record] = []
    if kind != "in four rounds":
        records = _pairs(kind, seed, settings)
    found = {}
    for beta in betas:
        if kind == "in four rounds":
            policy = _in_rounds(seed, beta, settings["DPO"])
        else:
            policy = _dpo(seed, records, beta, settings["DPO"])
        metrics = measured(policy, reference, tokenizer, seed=seed)
        found[f"{beta:g}"] = metrics | {"objective": round(objective_of(metrics, beta), 4)}
    return found


def _pairs(kind: str, seed: int, settings: Mapping[str, Mapping[str, Any]]) -> list[Record]:
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    if kind == "of a better policy":
        method = "PPO, gold reward"
        better = train_policy(seed=seed, method=method, beta=_BETTER, settings=settings[method])
        return reviews.preferences(better, tokenizer, _PAIRS, seed=seed)
    n = _PAIRS if kind == "as collected" else _MORE * _PAIRS
    if kind == "labelled by the reward model":
        return _labelled_by_model(seed, n)
    return reviews.preferences(reference, tokenizer, n, seed=seed)


def _labelled_by_model(seed: int, n: int) -> list[Record]:
    """Pairs as `reviews.preferences` draws them, with σ of the learnt rewards' difference for the annotator."""
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    prompts = reviews.draw_prompts(n, split="train", seed=seed)
    samples = sample(reference, tokenizer, prompts * 2, seed=seed)
    first, second = learned_reward(seed)(samples).view(2, n)
    draws = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    first_wins = (draws < torch.sigmoid(first - second)).tolist()
    records = []
    for row, (prompt, wins) in enumerate(zip(prompts, first_wins, strict=True)):
        texts = [samples.completions[row], samples.completions[n + row]]
        if all(texts) and texts[0] != texts[1] and samples.finished[row] and samples.finished[n + row]:
            chosen, rejected = texts if wins else texts[::-1]
            records.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return records


def _in_rounds(seed: int, beta: float, settings: Mapping[str, Any]) -> Any:
    """A quarter of the pairs a round, written by the policy of the round before; each round starts from the SFT model,
    which stays the reference, and learns from all pairs so far."""
    policy, tokenizer = load_model(scratch() / f"sft-{seed}")
    records: list[Record] = []
    for number in range(_ROUNDS):
        records += reviews.preferences(policy, tokenizer, _PAIRS // _ROUNDS, seed=seed + 1_000 * number)
        policy = _dpo(seed, records, beta, settings)
    return policy


def _dpo(seed: int, records: Sequence[Record], beta: float, settings: Mapping[str, Any]) -> Any:
    """The tuned settings' number of epochs, on however many pairs."""
    policy, tokenizer = load_model(scratch() / f"sft-{seed}")
    steps = max(1, round(settings["steps"] * len(records) / _PAIRS))
    values = dict(settings) | {"steps": steps, "warmup": min(settings["warmup"], steps)}
    plan = Settings(**values, seed=seed, kl_samples=0)
    train_preference(policy, tokenizer, records, method="dpo", strengths={"beta": beta}, settings=plan, progress=False)
    return policy
