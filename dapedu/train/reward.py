"""A reward model: the same loop, with rewards where a policy has log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapedu.data import Record
from dapedu.models import ScalarHead
from dapedu.train.loop import train_by
from dapedu.train.methods import REWARD
from dapedu.train.settings import REWARD_SETTINGS, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train_reward(
    head: ScalarHead,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    *,
    settings: Settings | None = None,
    held_out: Sequence[Record] = (),
    metrics: Mapping[str, Callable[[Any], float]] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a reward model on preferences, by Bradley–Terry, or on rankings, by Plackett–Luce.

    What it learns is the reward but for a number of each prompt's own, which neither loss can see. Where rewards of a
    ranking are equal, the completion that comes first counts as the better one.

    Args:
        head: of a copy of the SFT model, `ScalarHead(copy.deepcopy(model))`; trained in place.
        tokenizer: the model's.
        records: preferences, or rankings, whose rewards say no more than the order.
        settings: by default `REWARD_SETTINGS`, for a tiny model; no KL is estimated.
        held_out: records of the same kind that are evaluated, never trained on.
        metrics: what else to log at each evaluation: names, and functions of the head.
        output, resume, progress: as `train_preference`; the model is loaded with `dapedu.models.load_head`.

    Returns:
        What was logged, a dict every `log_every` steps: `loss`; for preferences the mean rewards `chosen` and
        `rejected`, their difference `margin` and its sign's share `accuracy`; for rankings the share of pairs of
        different rewards that are ordered right, `accuracy`; the rest as `train_preference`.

    Raises:
        TypeError: head is no `ScalarHead`.
        ValueError, RunError, DivergedError, KeyboardInterrupt: as `train_preference`.

    Source: arXiv:2009.01325, §3.4, for pairs; arXiv:2305.18290, appendix A.3, for rankings.
    """
    if not isinstance(head, ScalarHead):
        raise TypeError(
            f"train_reward: head is a {type(head).__name__}, expected a ScalarHead; ScalarHead(copy.deepcopy(model)) "
            "makes one of a language model"
        )
    return train_by(
        REWARD,
        head,
        tokenizer,
        records,
        strengths={},
        settings=settings or REWARD_SETTINGS,
        held_out=held_out,
        metrics=metrics or {},
        output=output,
        resume=resume,
        progress=progress,
    )
