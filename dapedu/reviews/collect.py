"""A model for the reviews, and preferences and rankings as they are collected: it writes, somebody judges."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapedu.models import tiny_gpt2
from dapedu.reviews.grammar import prompts
from dapedu.reviews.labels import label_pairs
from dapedu.reviews.rewards import gold_reward, proxy_reward
from dapedu.sampling import Samples, sample

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase


_N_POSITIONS = 96  # tokens: the longest prompt and 64 of completion, with room


def make_model(tokenizer: PreTrainedTokenizerBase, *, size: str = "tiny", seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 with random weights that reads this world's tokens.

    Args:
        tokenizer: of `make_tokenizer`.
        size: a key of `dapedu.models.SIZES`.
        seed: of the weights.

    Returns:
        The model, see `dapedu.models.tiny_gpt2`.

    Raises:
        ValueError: there is no such size.
    """
    return tiny_gpt2(
        size,
        vocab_size=len(tokenizer),
        n_positions=_N_POSITIONS,
        seed=seed,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def draw_prompts(n: int, *, split: str, seed: int = 0) -> list[str]:
    """Prompts in random order, all of the split before one comes again.

    Args:
        n: how many.
        split: "train", "validation" or "test".
        seed: of the order.

    Returns:
        n prompts.

    Raises:
        ValueError: n is not positive, or there is no such split.
    """
    if n < 1:
        raise ValueError(f"draw_prompts: n is {n}, expected at least 1")
    rng, every = random.Random(seed), prompts(split)
    drawn: list[str] = []
    while len(drawn) < n:
        drawn += rng.sample(every, len(every))
    return drawn[:n]


def gold_rewards(samples: Samples) -> Tensor:
    """`gold_reward` of samples.

    Args:
        samples: of prompts of this world.

    Returns:
        Shape (samples,), float64.

    Raises:
        ValueError: a prompt is not of this world.
    """
    rows = zip(samples.prompts, samples.completions, samples.finished, strict=True)
    return torch.tensor([gold_reward(*row) for row in rows], dtype=torch.float64)


def proxy_rewards(samples: Samples, *, strength: str) -> Tensor:
    """`proxy_reward` of samples.

    Args:
        samples: of prompts of this world.
        strength: "mild" or "strong".

    Returns:
        Shape (samples,), float64.

    Raises:
        ValueError: a prompt is not of this world, or there is no such strength.
    """
    rows = zip(samples.prompts, samples.completions, samples.finished, strict=True)
    return torch.tensor([proxy_reward(*row, strength=strength) for row in rows], dtype=torch.float64)


def preferences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    *,
    split: str = "train",
    temperature: float = 1.0,
    sharpness: float = 4.0,
    flip: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, str]]:
    """Two completions of each of n prompts by the model, labelled by `label_pairs`.

    Args:
        model, tokenizer: what writes, usually the SFT model.
        n: pairs drawn; fewer come back, see `label_pairs`.
        split: whose prompts.
        temperature: of the sampling.
        sharpness, flip: of the annotator, see `label_pairs`.
        seed: of prompts, samples and labels; the samples are the same whatever the annotator.
        progress: show a bar.

    Returns:
        Records with "prompt", "chosen" and "rejected".

    Raises:
        ValueError: as `label_pairs`, `draw_prompts` and `dapedu.sampling.sample`.
    """
    asked = draw_prompts(n, split=split, seed=seed)
    # Of no pairs yet: what is out of range is found before the sampling.
    label_pairs([], [], [], first_finished=[], second_finished=[], sharpness=sharpness, flip=flip)
    samples = sample(model, tokenizer, asked * 2, temperature=temperature, seed=seed, progress=progress)
    return label_pairs(
        asked,
        samples.completions[:n],
        samples.completions[n:],
        first_finished=samples.finished[:n],
        second_finished=samples.finished[n:],
        sharpness=sharpness,
        flip=flip,
        seed=seed,
    )


def rankings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    *,
    candidates: int,
    split: str = "train",
    temperature: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Several completions of each of n prompts by the model, with their gold rewards.

    Args:
        model, tokenizer: what writes.
        n: prompts; fewer come back where a completion is empty, which no file of records may hold.
        candidates: completions a prompt, at least 2.
        split: whose prompts.
        temperature: of the sampling.
        seed: of prompts and samples.
        progress: show a bar.

    Returns:
        Records with "prompt", "completions" and "rewards". A completion without an end is left as far as it goes, with
        the reward of an unfinished one.

    Raises:
        ValueError: candidates is below 2; as `draw_prompts` and `dapedu.sampling.sample`.
    """
    if candidates < 2:
        raise ValueError(f"rankings: candidates is {candidates}, expected at least 2")
    asked = draw_prompts(n, split=split, seed=seed)
    repeated = [prompt for prompt in asked for _ in range(candidates)]
    samples = sample(model, tokenizer, repeated, temperature=temperature, seed=seed, progress=progress)
    rewards = gold_rewards(samples).view(n, candidates).tolist()
    texts = [samples.completions[first : first + candidates] for first in range(0, n * candidates, candidates)]
    return [
        {"prompt": prompt, "completions": completions, "rewards": own}
        for prompt, completions, own in zip(asked, texts, rewards, strict=True)
        if all(completions)
    ]
