"""What a method learns from, of candidates that were judged: the best, pairs, or the whole ranking."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dapedu.data import Record
from dapedu.models import score
from dapedu.sampling import Samples

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

NEIGHBOURS = ("below", "above", "random")


def best_of(samples: Samples, rewards: Tensor) -> list[Record]:
    """Of each prompt the best candidate: what rejection sampling imitates.

    Args:
        samples: the candidates of each prompt next to one another.
        rewards: shape (prompts, candidates).

    Returns:
        Demonstrations, of the prompts whose best candidate is a text with an end.
    """
    records: list[Record] = []
    for first, own in _of_prompts(rewards):
        best = first + int(own.argmax())
        if samples.completions[best] and samples.finished[best]:
            records.append({"prompt": samples.prompts[best], "completion": samples.completions[best]})
    return records


def best_and_worst(samples: Samples, rewards: Tensor) -> list[Record]:
    """Of each prompt the best candidate against the worst.

    Args:
        samples, rewards: as `best_of`.

    Returns:
        Preferences, of the prompts where both are texts with an end and differ in reward.
    """
    places = [(first + int(own.argmax()), first + int(own.argmin())) for first, own in _of_prompts(rewards)]
    return _pairs(samples, rewards, places)


def two_by_two(samples: Samples, rewards: Tensor) -> list[Record]:
    """Of each prompt the first candidate against the second, the third against the fourth, and so on.

    The candidates come in random order, so this is a random pairing: SLiC-HF's sample-and-rank.

    Args:
        samples: as `best_of`, an even number a prompt.
        rewards: as `best_of`.

    Returns:
        Preferences, of the pairs where both are texts with an end and differ in reward.

    Raises:
        ValueError: the number of candidates is odd, and a pair would be of two prompts.

    Source: arXiv:2305.10425, §3.1.
    """
    if rewards.shape[1] % 2:
        raise ValueError(f"two_by_two: {rewards.shape[1]} candidates a prompt, expected an even number")
    flat = rewards.flatten()
    places = [(row, row + 1) for row in range(0, len(flat) - 1, 2)]
    return _pairs(samples, rewards, [pair if flat[pair[0]] > flat[pair[1]] else pair[::-1] for pair in places])


def ranked(samples: Samples, rewards: Tensor) -> list[Record]:
    """Of each prompt all candidates with their rewards: what RRHF learns from.

    Args:
        samples, rewards: as `best_of`.

    Returns:
        Rankings, of the prompts whose candidates are all texts. One without an end counts as ended where it was cut,
        with the reward of what has no end.
    """
    records: list[Record] = []
    for first, own in _of_prompts(rewards):
        texts = samples.completions[first : first + len(own)]
        if all(texts):
            records.append({"prompt": samples.prompts[first], "completions": texts, "rewards": own.tolist()})
    return records


def by_likelihood(
    model: PreTrainedModel | PeftModel, *, neighbour: str = "below", seed: int = 0
) -> Callable[[Samples, Tensor], list[Record]]:
    """CLICK's pairing: a prompt's candidates in the order of their likelihood, each good one against a bad neighbour.

    Good are the candidates of the prompt's largest reward, bad all others. A good one without a bad one on the side
    that was asked for gets the nearest on the other.

    Args:
        model: whose likelihood orders them; as it is when the candidates are ranked.
        neighbour: one of `NEIGHBOURS`: the likeliest bad candidate "below", the least likely one "above", or any at
            "random".
        seed: of the random ones.

    Returns:
        A function as `train_in_rounds` takes it for `rank`. It returns preferences, one for each good candidate of a
        prompt that also has a bad one, where both are texts with an end.

    Raises:
        ValueError: there is no such neighbour.

    Source: arXiv:2306.03350, §3; it does not say clearly which neighbour.
    """
    if neighbour not in NEIGHBOURS:
        raise ValueError(f"by_likelihood: no neighbour {neighbour!r}; there are {', '.join(NEIGHBOURS)}")

    def rank(samples: Samples, rewards: Tensor) -> list[Record]:
        rng, logps = random.Random(seed), score(model, samples.sequences).tolist()
        places = []
        for first, own in _of_prompts(rewards):
            rows = range(first, first + len(own))
            good = [row for row, value in zip(rows, own.tolist(), strict=True) if value == own.max()]
            bad = sorted(set(rows) - set(good), key=logps.__getitem__)
            for row in good if bad else []:
                below = [other for other in bad if logps[other] <= logps[row]]
                above = bad[len(below) :]
                nearest = [*below[-1:], *above[:1]]  # the less likely first
                side = {"below": nearest[0], "above": nearest[-1], "random": rng.choice(bad)}
                places.append((row, side[neighbour]))
        return _pairs(samples, rewards, places)

    return rank


def _of_prompts(rewards: Tensor) -> list[tuple[int, Tensor]]:
    """Where a prompt's candidates begin, and their rewards."""
    return [(row * rewards.shape[1], own) for row, own in enumerate(rewards)]


def _pairs(samples: Samples, rewards: Tensor, places: Sequence[tuple[int, int]]) -> list[Record]:
    flat = rewards.flatten()
    return [
        {
            "prompt": samples.prompts[better],
            "chosen": samples.completions[better],
            "rejected": samples.completions[worse],
        }
        for better, worse in places
        if flat[better] > flat[worse]
        and all(samples.completions[row] and samples.finished[row] for row in (better, worse))
    ]
