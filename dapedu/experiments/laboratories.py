"""A laboratory's preferences and reward model, the few numbers that most experiments measure, and random settings.

A laboratory itself, its corpus and its SFT model, is `reviews.laboratory`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dapedu import reviews
from dapedu.data import save_records
from dapedu.evaluate import measure_policy
from dapedu.experiments.reviews import laboratory
from dapedu.experiments.units import run_units, scratch
from dapedu.models import ScalarHead, head_rewards, load_head, load_model, save_model
from dapedu.sampling import Samples
from dapedu.train import REWARD_SETTINGS, train_reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPLETIONS = 8_192  # that a method may have judged
SHARPNESS = 4.0  # of the annotator, and therefore the scale of the reward
_HELD_OUT = 512  # held-out pairs of the reward model


def prepare(seeds: Sequence[int]) -> list[dict[str, float]]:
    """Train the SFT and the reward models of laboratories, which other units then read.

    Args:
        seeds: of the laboratories.

    Returns:
        Metrics of each.
    """
    cases = [{"seed": seed} for seed in seeds]
    sft = run_units(laboratory, cases)
    rewards = run_units(reward_model, cases)
    return [
        row | {f"reward model's {name}": value for name, value in more.items()}
        for row, more in zip(sft, rewards, strict=True)
    ]


def reward_model(*, seed: int, flip: float = 0.0) -> dict[str, float]:
    """Draw a laboratory's preferences, train its reward model on them, and keep both.

    Args:
        seed: of the laboratory.
        flip: share of turned labels; the held-out pairs have none.

    Returns:
        Loss and accuracy on held-out pairs.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    records = reviews.preferences(reference, tokenizer, COMPLETIONS // 2, flip=flip, seed=seed)
    save_records(pairs_file(seed, flip), records)
    held_out = reviews.preferences(reference, tokenizer, _HELD_OUT, split="validation", seed=seed)
    head = new_head(seed)
    settings = replace(REWARD_SETTINGS, seed=seed, evaluate_every=REWARD_SETTINGS.steps)
    log = train_reward(head, tokenizer, records, settings=settings, held_out=held_out, progress=False)
    save_model(head, tokenizer, _reward_folder(seed, flip), card=f"The reward model of laboratory {seed}.\n")
    return {name: round(log[-1][f"held_out_{name}"], 4) for name in ("loss", "accuracy")}


def pairs_file(seed: int, flip: float = 0.0) -> Path:
    """Where a laboratory's preferences are kept.

    Args:
        seed: of the laboratory, whose `reward_model` was run.
        flip: share of turned labels.

    Returns:
        The file.
    """
    return scratch() / f"pairs-{seed}{_turned(flip)}.jsonl"


def gold_reward(samples: Samples) -> Tensor:
    """The gold reward on the annotator's scale.

    Args:
        samples: of reviews.

    Returns:
        4 r, shape (samples,).
    """
    return SHARPNESS * reviews.gold_rewards(samples)


def learned_reward(seed: int, flip: float = 0.0) -> Callable[[Samples], Tensor]:
    """The reward of a laboratory's reward model.

    Args:
        seed: of the laboratory, whose `reward_model` was run.
        flip: share of turned labels that it was fitted to.

    Returns:
        A function of samples.
    """
    head, _ = load_head(_reward_folder(seed, flip))
    return lambda samples: head_rewards(head, samples.sequences)


def new_head(seed: int) -> ScalarHead:
    """A `ScalarHead` on a laboratory's SFT model.

    Args:
        seed: of the laboratory.

    Returns:
        The head; its linear map is zero.
    """
    return ScalarHead(load_model(scratch() / f"sft-{seed}")[0])


def measured(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    split: str = "test",
) -> dict[str, float]:
    """The few numbers that most experiments need, from 1,024 completions.

    Args:
        policy, reference, tokenizer: what is measured, and the SFT model.
        seed: of prompts and samples.
        split: of the prompts.

    Returns:
        `gold`, `kl` and `length`.
    """
    prompts = reviews.draw_prompts(1_024, split=split, seed=seed)
    rewards = {"gold": reviews.gold_rewards}
    _, values = measure_policy(policy, tokenizer, prompts, rewards=rewards, reference=reference, seed=seed)
    return {name: round(values[name].mean().item(), 4) for name in ("gold", "kl", "length")}


def objective_of(row: Mapping[str, float], beta: float) -> float:
    """What RLHF maximises.

    Args:
        row: with `gold` and `kl`.
        beta: KL weight.

    Returns:
        4 gold − β KL.
    """
    return SHARPNESS * row["gold"] - beta * row["kl"]


def draw_settings(method: str, n: int, *, seed: int, spaces: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Random settings of a method.

    Args:
        method: a key of spaces.
        n: how many.
        seed: of the draws.
        spaces: what is drawn, as in `rlhf.SPACES`.

    Returns:
        Settings as `policy_unit` takes them.
    """
    rng = random.Random(f"{method} {seed}")
    drawn = []
    for _ in range(n):
        settings = {}
        for name, space in spaces[method].items():
            if isinstance(space, list):
                settings[name] = rng.choice(space)
            else:
                settings[name] = float(f"{math.exp(rng.uniform(*map(math.log, space))):.3g}")
        drawn.append(settings)
    return drawn


def _reward_folder(seed: int, flip: float) -> Path:
    return scratch() / f"reward-{seed}{_turned(flip)}"


def _turned(flip: float) -> str:
    return f"-turned-{flip:g}" if flip else ""
