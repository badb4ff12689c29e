"""Preferences: two completions of a prompt, labelled by an annotator who errs on close calls."""

import math
import random
from collections.abc import Sequence

from dapedu.reviews.rewards import gold_reward


def label_pairs(
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    *,
    first_finished: Sequence[bool],
    second_finished: Sequence[bool],
    sharpness: float = 4.0,
    flip: float = 0.0,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Preference records by Bradley–Terry on the gold reward, with label noise on request.

    ::

        P(first ≻ second) = σ(sharpness · (r(first) − r(second))),   then turned with probability flip

    Three kinds of pairs are dropped: of identical completions, which teach nothing; with an empty one, which no file of
    records may hold; and with an unfinished one, because a record of text cannot say that it has no end. The labels of
    the others do not depend on what was dropped.

    Args:
        prompts: one a pair.
        first, second: the completions.
        first_finished, second_finished: whether each was ended by its writer.
        sharpness: how well the annotator tells rewards apart, ≥ 0; 0 tosses a coin.
        flip: probability that a label is turned afterwards, from 0 to 0.5.
        seed: of the labels.

    Returns:
        Records with "prompt", "chosen" and "rejected", in the order of the pairs.

    Raises:
        ValueError: lengths differ, sharpness is negative, flip is not from 0 to 0.5, or a prompt is not of this world.

    Source: arXiv:2305.18290, Eq. 1, for the annotator.
    """
    columns = {
        "first": first,
        "second": second,
        "first_finished": first_finished,
        "second_finished": second_finished,
    }
    for name, column in columns.items():
        if len(column) != len(prompts):
            raise ValueError(f"label_pairs: {name} has length {len(column)}, expected {len(prompts)}, one a prompt")
    if not sharpness >= 0:
        raise ValueError(f"label_pairs: sharpness is {sharpness}, expected ≥ 0")
    if not 0 <= flip <= 0.5:
        raise ValueError(f"label_pairs: flip is {flip}, expected from 0 to 0.5")

    rng = random.Random(seed)
    records = []
    for prompt, one, other, one_ended, other_ended in zip(prompts, *columns.values(), strict=True):
        call, turn = rng.random(), rng.random()
        if one == other or not (one and other and one_ended and other_ended):
            continue
        margin = gold_reward(prompt, one) - gold_reward(prompt, other)
        one_wins = (call < 1 / (1 + math.exp(-sharpness * margin))) != (turn < flip)
        chosen, rejected = (one, other) if one_wins else (other, one)
        records.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return records
