"""`dapedu ppo` and `rloo`: a model trained on its own completions, which a reward judges."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapedu.cli.inputs import (
    A_MODEL,
    attempt,
    flag,
    load,
    load_head,
    output_name,
    refuse,
    refuse_output,
    seed,
)
from dapedu.cli.judged import JUDGES, add_judged, check_judge, judged_reward, prompt_records, prompts_of
from dapedu.ppo import PPOSettings, RLOOSettings
from dapedu.ppo.settings import KL_PLACES

if TYPE_CHECKING:
    from torch import nn

# Without `evaluate_every`, which is about metrics, and no option adds one.
_SETTINGS = {
    "steps": "how often completions are drawn and learnt from",
    "batch_size": "completions a step",
    "samples_per_prompt": "completions of each prompt in a step",
    "epochs": "how often a step's completions are learnt from",
    "minibatches": "into which each epoch cuts them, an optimiser step each",
    "lr": "AdamW's learning rate of the policy at the first step; falls linearly",
    "final_lr": "share of the learning rate that is left at the last step",
    "value_lr": "AdamW's learning rate of the value model; falls as the policy's",
    "clip": "largest norm of a model's gradient, or inf",
    "clip_range": "ε: how far a token's probability may move in a step with a gain, as a share, or inf",
    "value_clip_range": "ε of the value loss, in the reward's unit, or inf",
    "gae_lambda": "λ of the advantages: 1 trusts the returns, 0 the value model",
    "normalise_rewards": "to a standard deviation of 1 in each batch, the KL term with them",
    "normalise_advantages": "to mean 0 and standard deviation 1 in each batch",
    "kl_in": "what the KL term is part of",
    "target_kl": "nats: adapt β so that the KL comes to this",
    "max_new_tokens": "of the longest completion",
    "seed": "of prompts, samples and minibatches",
    "log_every": "steps between rows of log.csv",
    "checkpoint_every": "steps between checkpoints",
}
_TIMED = 2  # steps of a dry run, after one that warms up


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands.

    Args:
        commands: the parser's.
    """
    ppo = commands.add_parser(
        "ppo",
        help="train a language model by reinforcement learning, on a reward of its completions",
        description=(
            "Maximise reward − β KL by proximal policy optimisation. In each step the model completes prompts, the "
            "reward judges what it wrote, and the model learns from that; as it is loaded it is also the reference. A "
            "value model of its size learns beside it what reward is to be expected, so that four models are in memory."
        ),
    )
    _add_inputs(ppo)
    ppo.add_argument(
        "--value-model",
        metavar="FOLDER",
        help="what the value model starts as, such as the reward model (default: a copy of the model, all values 0)",
    )
    _add_settings(ppo, PPOSettings())
    ppo.set_defaults(run=_run, parser=ppo, settings=PPOSettings)
    rloo = commands.add_parser(
        "rloo",
        help="the same without a value model: a prompt's completions are compared with each other",
        description=(
            "Maximise reward − β KL by REINFORCE with a leave-one-out baseline: each prompt gets several completions, "
            "and what is learnt from is how much better one is than the others. The rest is as in `dapedu ppo`."
        ),
    )
    _add_inputs(rloo)
    _add_settings(rloo, RLOOSettings())
    rloo.set_defaults(run=_run, parser=rloo, settings=RLOOSettings, value_model=None)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="MODEL", help=f"the SFT model: {A_MODEL}")
    add_judged(parser)
    parser.add_argument(
        "--beta",
        type=float,
        required=True,
        help="β: the KL weight, in the reward's unit; with a reward model it means what dpo's on the same pairs does",
    )


def _add_settings(parser: argparse.ArgumentParser, defaults: RLOOSettings) -> None:
    parser.add_argument(
        "--output", required=True, type=output_name, metavar="FOLDER", help="for the log, checkpoints and the model"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take: models, memory, time")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    for name, text in _SETTINGS.items():
        if not hasattr(defaults, name):
            continue
        default = getattr(defaults, name)
        kind: dict[str, Any] = {"type": seed if name == "seed" else type(default)}
        shown = f"{default:g}" if isinstance(default, float) else f"{default}"
        if default is None:
            kind, shown = {"type": float}, "β stays as it is"
        elif isinstance(default, bool):
            kind, shown = {"action": argparse.BooleanOptionalAction}, "yes" if default else "no"
        elif isinstance(default, str):
            kind = {"choices": KL_PLACES}
        # No default of argparse's, which some Pythons would show once more.
        parser.add_argument(flag(name), help=f"{text} (default: {shown})", **kind)


def _run(options: argparse.Namespace) -> int:
    from dapedu.models import ScalarHead
    from dapedu.ppo import train_ppo, train_rloo
    from dapedu.train import DivergedError, RunError

    settings = _checked_words(options)
    records = attempt(options, lambda: prompt_records(options))
    model, tokenizer = load(options, options.model)
    prompts = attempt(options, lambda: prompts_of(records, tokenizer))
    parts: dict[str, nn.Module] = {"policy": model, "reference": model}
    given = partial(load_head, options, model, tokenizer, prompts=prompts, max_new_tokens=settings.max_new_tokens)
    train: Callable[..., list[dict[str, float]]] = train_rloo
    if isinstance(settings, PPOSettings):
        value_model = given("value_model") if options.value_model else None
        parts["value model"] = value_model or ScalarHead(model)  # to be counted: train_ppo makes its own
        train = partial(train_ppo, value_model=value_model)
    reward_model = None
    if options.reward not in JUDGES:
        parts["reward model"] = reward_model = given("reward")
    # In groups as large as a minibatch: what fits in memory with a gradient fits without.
    reward = judged_reward(
        options, reward_model, prompts, at_once=math.ceil(settings.batch_size / settings.minibatches)
    )
    train = partial(train, model, tokenizer, prompts, reward, beta=options.beta)
    try:
        if options.dry_run:
            print(_foreseen(train, parts, settings, len(prompts)))
            return 0
        log = train(settings=settings, output=options.output, resume=options.resume, progress=not options.quiet)
    except DivergedError as diverged:
        print(f"dapedu: {diverged}", file=sys.stderr)
        return 1
    except (RunError, ValueError) as problem:
        refuse(options, problem)
    print(", ".join(f"{name} {value:.4g}" for name, value in log[-1].items()))
    print(f"wrote {Path(options.output) / 'model'}, log.csv beside it; curves: tensorboard --logdir {options.output}")
    return 0


def _checked_words(options: argparse.Namespace) -> RLOOSettings:
    """The settings; what can be seen before a file is read is refused."""
    refuse_output(options, "model", "value_model", "reward")
    check_judge(options)
    given = {name: value for name in _SETTINGS if (value := getattr(options, name, None)) is not None}
    return attempt(options, lambda: options.settings(**given))


def _foreseen(
    train: Callable[..., object], parts: Mapping[str, nn.Module], settings: RLOOSettings, n_prompts: int
) -> str:
    """What a run would take, from a few steps of it, which are not kept."""
    from dapedu.train.processes import this_process

    ends: list[float] = []

    def clock(policy: object) -> float:
        ends.append(time.perf_counter())
        return 0.0

    train(settings=replace(settings, steps=_TIMED + 1, evaluate_every=1), metrics={"clock": clock}, progress=False)
    seconds = (ends[-1] - ends[0]) / _TIMED * settings.steps
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    trained = sum(parameters.get(name, 0) for name in ("policy", "value model"))
    memory = 12 * trained + sum(p.numel() * p.element_size() for part in parts.values() for p in part.parameters())
    return "\n".join(
        (
            f"prompts      {n_prompts:,}",
            f"steps        {settings.steps:,}, of {settings.batch_size:,} completions",
            f"models       {len(parts)}: {', '.join(parts)}",
            f"parameters   {sum(parameters.values()):,}, of which {trained:,} are trained",
            f"memory       {memory / 2**20:,.0f} MiB for weights, gradients and AdamW; activations besides",
            f"time         about {seconds:,.0f} s on {this_process().device.type}, from {_TIMED} timed steps",
        )
    )
