"""CLICK on two attributes of the reviews: how rare rude and repetitive texts become, and at what perplexity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dapedu import reviews
from dapedu.data import Record, encode
from dapedu.evaluate import measure_policy, perplexity
from dapedu.experiments.laboratories import prepare
from dapedu.experiments.ranking import people_texts
from dapedu.experiments.reviews import SEEDS, by_metric
from dapedu.experiments.units import run_units, scratch
from dapedu.models import load_model, score
from dapedu.sampling import Samples
from dapedu.train import Settings, by_likelihood, train_in_rounds

ATTRIBUTES: dict[str, Callable[[str], bool]] = {"rude": reviews.is_rude, "repetitive": reviews.is_repetitive}
PAIRINGS = ("below", "above", "random")
MARGINS = (0.0, 1.0, 5.0, 15.0)
WEIGHTS = (0.003, 0.03, 0.3, 3.0)


def reviews_click(
    *,
    seeds: Sequence[int] = SEEDS,
    attributes: Sequence[str] = tuple(ATTRIBUTES),
    pairings: Sequence[str] = PAIRINGS,
    margins: Sequence[float] = MARGINS,
    weights: Sequence[float] = WEIGHTS,
    prompts: int = 128,
    candidates: int = 32,  # so many that a prompt often has several bad ones, and a rule something to choose
    delta: float = 15.0,
    contrast_weight: float = 0.3,
    steps: int = 128,
    lr: float = 3e-4,
) -> dict[str, Any]:
    """Attribute rates and perplexities after CLICK: pairings, margins, weights; beside it the cross-entropy alone."""
    sft = prepare(seeds)
    common = {"prompts": prompts, "candidates": candidates, "steps": steps, "lr": lr}
    usual = {"pairing": "below", "delta": delta, "contrast_weight": contrast_weight}
    results: dict[str, Any] = {"sft": by_metric(sft), "attributes": {}}
    for attribute in attributes:
        changed: dict[str, dict[str, dict[str, Any]]] = {
            "pairing": {name: {"pairing": name} for name in pairings},
            "delta": {f"{value:g}": {"delta": value} for value in margins},
            "contrast_weight": {f"{value:g}": {"contrast_weight": value} for value in weights},
            "alone": {"SFT model": {"method": "none"}, "cross-entropy": {"contrast_weight": 0.0}},
        }
        results["attributes"][attribute] = {
            kind: {
                name: by_metric(
                    run_units(
                        click_unit,
                        [{"seed": seed, "attribute": attribute, "settings": common | usual | values} for seed in seeds],
                    )
                )
                for name, values in cases.items()
            }
            for kind, cases in changed.items()
        }
    return results


def click_unit(*, seed: int, attribute: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """Train the SFT model of a laboratory by CLICK, and measure it on test prompts.

    Args:
        seed: of the laboratory and of the run.
        attribute: a key of `ATTRIBUTES`, which a text should not have.
        settings: of pairing, loss and training; a `method` of "none" measures the SFT model.

    Returns:
        Rates of both attributes, gold reward, KL, length; `perplexity` of people's reviews under the policy and `own
        perplexity`, of its samples under the SFT model; the number of `pairs`, and their mean distance `gap` in
        log-probability before training, chosen less rejected.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    policy, _ = load_model(scratch() / f"sft-{seed}")
    found: dict[str, float] = {}
    if settings.get("method") != "none":
        paired = by_likelihood(reference, neighbour=settings["pairing"], seed=seed)

        def rank(samples: Samples, rewards: Tensor) -> list[Record]:
            records = paired(samples, rewards)
            texts = people_texts([record["prompt"] for record in records], seed=seed)
            return [record | {"target": text} for record, text in zip(records, texts, strict=True)]

        def harmless(samples: Samples) -> Tensor:
            return ~_has(attribute, samples)

        (done,) = train_in_rounds(
            policy,
            tokenizer,
            reviews.draw_prompts(settings["prompts"], split="train", seed=seed),
            harmless,
            method="click",
            strengths={name: settings[name] for name in ("delta", "contrast_weight")},
            settings=Settings(steps=settings["steps"], lr=settings["lr"], seed=seed, kl_samples=0),
            candidates=settings["candidates"],
            rank=rank,
            progress=False,
        )
        chosen, rejected = (
            score(reference, encode([r["prompt"] for r in done.records], [r[kind] for r in done.records], tokenizer))
            for kind in ("chosen", "rejected")
        )
        found = {"pairs": len(done.records), "gap": round(float((chosen - rejected).mean()), 4)}
    samples, values = measure_policy(
        policy,
        tokenizer,
        reviews.draw_prompts(2_048, split="test", seed=seed),
        rewards={"gold": reviews.gold_rewards} | {name: partial(_has, name) for name in ATTRIBUTES},
        reference=reference,
        seed=seed,
    )
    people = reviews.corpus(1_000, split="test", seed=seed)
    human = encode([r["prompt"] for r in people], [r["completion"] for r in people], tokenizer)
    found |= {name: round(float(value.mean()), 4) for name, value in values.items()}
    return found | {
        "perplexity": round(perplexity(policy, human), 4),
        "own perplexity": round(perplexity(reference, samples.sequences), 4),
    }


def _has(attribute: str, samples: Samples) -> Tensor:
    return torch.tensor([ATTRIBUTES[attribute](text) for text in samples.completions])
