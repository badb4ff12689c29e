"""What is claimed of PPO's details."""

import statistics
from collections.abc import Mapping
from typing import Any

from dapedu.claims.entry import Claim

_LOST_AT_MOST = 0.05  # of what PPO gains, if a detail is to be called unnecessary


def _lost(results: Mapping[str, Any], variant: str) -> float:
    """What PPO's objective loses without a detail, mean of the laboratories."""
    variants = results["reviews_ppo_details"]["variants"]
    return statistics.mean(variants["all details"]["objective"]) - statistics.mean(variants[variant]["objective"])


def _gain(results: Mapping[str, Any]) -> float:
    """What all of PPO gains over the SFT model, whose KL is 0 and which writes the first step's completions."""
    row = results["reviews_ppo_details"]["variants"]["all details"]
    return statistics.mean(row["objective"]) - statistics.mean(course[0] for course in row["reward over training"])


CLAIMS = (
    Claim(
        id="rloo-1",
        claimed_by="arXiv:2402.14740, abstract and §3",
        statement=(
            "Many components of PPO are unnecessary for RLHF: the clipping of ratios, and estimates of advantages that "
            "trust a value model."
        ),
        remark=(
            "One detail at a time, the others kept, and the value model kept as a baseline. Other choices do matter: a "
            "value model must not be trusted for everything (λ = 0), must not start from random values, and a batch "
            "must not be used too often. How the clip does where it has work to do, with many epochs, was not tested."
        ),
        evidence=("reviews_ppo_details",),
        numbers=lambda results: {
            "gain": _gain(results),
            "ratio": _lost(results, "no ratio clipping"),
            "whole": _lost(results, "λ = 1"),
        },
        measured=(
            "on reviews, β = {settings[reviews_ppo_details][beta]:g}, mean of five laboratories, PPO raises the "
            "objective by {gain:.2f}; without clipped ratios it loses {ratio:.2f} of that, with λ = 1 {whole:.2f}."
        ),
        holds=lambda n: max(n["ratio"], n["whole"]) < _LOST_AT_MOST * n["gain"],
    ),
)
