"""What `dapedu ppo`, `rloo` and `rounds` share: prompts to complete, and a reward that judges the completions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapedu.cli.inputs import A_SOURCE, attempt, refuse
from dapedu.reviews import PROXIES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dapedu.data import Records
    from dapedu.models import ScalarHead
    from dapedu.ppo.rollouts import Reward

JUDGES = ("gold", *(f"{strength}-proxy" for strength in PROXIES))


def add_judged(parser: argparse.ArgumentParser) -> None:
    """Add the options of prompts and reward.

    Args:
        parser: of a command.
    """
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="DATA",
        help="prompts, or records of any kind, of which the prompts alone are taken, each once; conversations are "
        f"rendered by the model's chat template: {A_SOURCE}",
    )
    parser.add_argument("--split", default="train", help="of a dataset that has several (default: train)")
    parser.add_argument(
        "--reward",
        required=True,
        metavar="REWARD",
        help=f"the folder of a run of `dapedu reward`, or of its model; or a judge of the reviews: {', '.join(JUDGES)}",
    )
    parser.add_argument(
        "--reward-scale",
        type=float,
        default=1.0,
        metavar="S",
        help="the reward is multiplied by this; 4 makes the gold reward the one that the annotator of `dapedu data "
        "pairs` goes by (default: 1)",
    )


def check_judge(options: argparse.Namespace) -> None:
    """What can be seen of the reward before a file is read.

    Args:
        options: of the command, with its parser.

    Raises:
        SystemExit: there is no such reward, or its scale is no positive number.
    """
    if not 0 < options.reward_scale < math.inf:
        refuse(options, f"--reward-scale is {options.reward_scale:g}, expected a positive number")
    if options.reward not in JUDGES and not Path(options.reward).exists():
        refuse(options, f"--reward is {options.reward}, which is no folder, nor one of {', '.join(JUDGES)}")


def prompt_records(options: argparse.Namespace) -> Records:
    """The records of the file, of whatever kind; what is wrong with one is found before any work starts.

    Args:
        options: of the command.

    Returns:
        The records, of which the prompts matter.

    Raises:
        ValueError: there is no such file, or something is wrong with a record.
    """
    from dapedu.data import Records, load_demonstrations, load_rankings
    from dapedu.data.formats import guess_kind
    from dapedu.data.sources import read_source

    name, unit, numbered = read_source(options.prompts, split=options.split)
    positions, rows = [], []
    for position, row in numbered:
        positions.append(position)
        rows.append(row)
    kind = guess_kind(rows[0]) if rows else None
    if kind is None:
        rows = [_completed(row) for row in rows]
    load = load_rankings if kind == "rankings" else load_demonstrations  # which reads preferences too
    return load(Records(rows, source=name, unit=unit, positions=positions))


def _completed(row: Any) -> Any:
    """A prompt that stands alone, completed, so that the loaders check it; nobody reads the completion."""
    from dapedu.data.sources import RowError

    if not isinstance(row, dict):  # an error, or what the loaders refuse
        return row
    if "prompt" not in row:
        return RowError("no `prompt`")
    completion = "." if isinstance(row["prompt"], str) else [{"role": "assistant", "content": "."}]
    return row | {"completion": completion}


def prompts_of(records: Records, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Their prompts, each once, as the model reads them.

    Args:
        records: with `prompt`.
        tokenizer: the model's, which renders conversations.

    Returns:
        Texts, in the order of the records.

    Raises:
        ValueError: a prompt is a conversation, and the tokenizer has no chat template.
    """
    from dapedu.data import Records, apply_chat_template

    alone = Records(
        ({"prompt": record["prompt"]} for record in records),
        source=records.source,
        unit=records.unit,
        positions=records.positions,
    )
    return list(dict.fromkeys(record["prompt"] for record in apply_chat_template(alone, tokenizer)))


def judged_reward(
    options: argparse.Namespace, reward_model: ScalarHead | None, prompts: Sequence[str], *, at_once: int
) -> Reward:
    """The reward model's reward, or that of a judge of the reviews, on the scale that was asked for.

    Args:
        options: of the command, with its parser.
        reward_model: what `reward` names, moved to this process's device; None where it is one of `JUDGES`.
        prompts: all that may be completed.
        at_once: completions that the reward model reads at once.

    Returns:
        From samples to one number each.

    Raises:
        SystemExit: the judge does not know one of the prompts.
    """
    from dapedu import reviews
    from dapedu.models import head_rewards
    from dapedu.train.processes import this_process

    if reward_model is not None:
        reward_model.to(attempt(options, this_process).device)
        return lambda samples: options.reward_scale * head_rewards(reward_model, samples.sequences, batch_size=at_once)
    # All of them: one that the judge does not know may be drawn hours later.
    attempt(options, lambda: [reviews.judge(prompt, "") for prompt in prompts])
    if options.reward == "gold":
        return lambda samples: options.reward_scale * reviews.gold_rewards(samples)
    strength = options.reward.removesuffix("-proxy")
    return lambda samples: options.reward_scale * reviews.proxy_rewards(samples, strength=strength)
