"""What is claimed of RLHF by PPO: of its details, of what it gains, and of how it ends without a price."""

from collections.abc import Mapping
from typing import Any

import torch

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_more

_LOST_AT_MOST = 0.05  # of what PPO gains, if a detail is to be called unnecessary


def _lost(results: Mapping[str, Any], name: str, variant: str) -> Numbers:
    """What PPO's objective loses without a detail."""
    variants = results["reviews_ppo_details"]["variants"]
    return difference(name, variants["all details"]["objective"], variants[variant]["objective"])


def _details(results: Mapping[str, Any]) -> Numbers:
    """What all of PPO gains over the SFT model, and what it loses without two details.

    The SFT model has no KL and writes the completions of the first step.
    """
    row = results["reviews_ppo_details"]["variants"]["all details"]
    gain = difference("gain", row["objective"], [course[0] for course in row["reward over training"]])
    return gain | _lost(results, "ratio", "no ratio clipping") | _lost(results, "whole", "λ = 1")


def _is_unnecessary(numbers: Numbers, name: str) -> bool:
    """Whether what is lost without a detail is little, and may be chance."""
    little = numbers[name] < _LOST_AT_MOST * (numbers["gain"] - numbers["gain_half"])
    return little and not is_more(numbers, name)


def _turn(results: Mapping[str, Any]) -> Numbers:
    """Gold's rise from the start to its peak, and its fall from there to the end.

    The peak is where the mean of the other laboratories has it, so that it owes nothing to a laboratory's luck.
    """
    gold = torch.tensor(results["reviews_goodhart"]["gold"], dtype=torch.float64)
    peak = (gold.sum(dim=0) - gold).argmax(dim=1)
    top = gold.gather(1, peak[:, None]).squeeze(1).tolist()
    return difference("rise", top, gold[:, 0].tolist()) | difference("fall", top, gold[:, -1].tolist())


def _preferred(results: Mapping[str, Any]) -> Numbers:
    """PPO's win rates against people's reviews and against the SFT model's."""
    ppo = results["reviews_slic_hf"]["methods"]["PPO, learned reward"]
    return estimate("people", ppo["people: win rate"]) | estimate("sft", ppo["SFT: win rate"])


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
        numbers=_details,
        measured=(
            "on reviews, β = {settings[reviews_ppo_details][beta]:g}, PPO raises the objective by {gain:.2f} ± "
            "{gain_half:.2f}; without clipped ratios it loses {ratio:.2f} ± {ratio_half:.2f} of that, with λ = 1 "
            "{whole:.2f} ± {whole_half:.2f}; " + LABORATORIES + "."
        ),
        holds=lambda n: _is_unnecessary(n, "ratio") and _is_unnecessary(n, "whole"),
    ),
    Claim(
        id="schulman-1",
        claimed_by="arXiv:1707.06347, §6.1",
        statement="The clipped objective does better than the same without clipping.",
        remark=(
            "The paper has simulated robots and many epochs on a batch. Here the tuned PPO takes four steps from a "
            "batch, and little is left to clip; with more epochs it was not tested without the clip."
        ),
        evidence=("reviews_ppo_details",),
        numbers=lambda results: _lost(results, "ratio", "no ratio clipping"),
        measured=(
            "on reviews, β = {settings[reviews_ppo_details][beta]:g}, the objective with clipped ratios less that "
            "without is {ratio:+.2f} ± {ratio_half:.2f}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "ratio"),
    ),
    Claim(
        id="gao-1",
        claimed_by="arXiv:2210.10760; arXiv:2009.01325",
        statement="Optimised against a fitted reward, a policy gets better by the true one and then worse.",
        remark="With nothing to hold it, β = 0. What the reward models overrate is another thing in each laboratory.",
        evidence=("reviews_goodhart",),
        numbers=_turn,
        measured=(
            "PPO with β = 0 raises the gold reward by {rise:.2f} ± {rise_half:.2f} by the step that is best in the "
            "other laboratories, and loses {fall:.2f} ± {fall_half:.2f} from there to step "
            "{settings[reviews_goodhart][steps]}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "rise") and is_more(n, "fall"),
    ),
    Claim(
        id="stiennon-1",
        claimed_by="arXiv:2009.01325, abstract",
        statement="RLHF's texts are preferred to people's own, and to those of much larger models that are only tuned.",
        remark="The gold reward prefers, not people. The condition: the SFT model is of the same size.",
        evidence=("reviews_slic_hf",),
        numbers=_preferred,
        measured=(
            "PPO on a learned reward wins {people:.2f} ± {people_half:.2f} against people's reviews and {sft:.2f} ± "
            "{sft_half:.2f} against the SFT model's, " + LABORATORIES + "."
        ),
        holds_if=lambda n: is_more(n, "people", 0.5) and is_more(n, "sft", 0.5),
    ),
    Claim(
        id="ouyang-1",
        claimed_by="arXiv:2203.02155, abstract",
        statement="People prefer the answers of a model of 1.3 billion parameters after RLHF to those of GPT-3's 175.",
        remark=(
            "That takes people, and two models of which one is a hundred times the other's size; the book has one size "
            "and no people. That RLHF beats fine-tuning at one size is in stiennon-1."
        ),
    ),
)
