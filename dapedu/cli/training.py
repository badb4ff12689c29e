"""`dapedu sft` and `train`: one loop, by a method's name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapedu.cli.inputs import attempt, load, refuse
from dapedu.train import METHODS, SFT_SETTINGS, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STRENGTHS = {
    "beta": "β of dpo, λ of spin: the KL weight; a larger one keeps the policy nearer the reference",
    "tau": "τ of ipo: the KL weight; the margin's target is 1/(2τ)",
    "delta": "δ of slic-hf and click: the hinge's margin in nats",
    "sft_weight": "λ of slic-hf and rrhf: weight of the likelihood term",
    "contrast_weight": "α of click: weight of the hinge",
}
_SETTINGS = {
    "steps": "optimiser steps",
    "batch_size": "examples a step",
    "parts": "a batch is read in so many parts, sorted by length: saves padding, and memory",
    "lr": "AdamW's learning rate after the warm-up",
    "warmup": "steps in which the learning rate rises",
    "clip": "largest norm of the gradient",
    "seed": "of the data's order",
    "log_every": "steps between rows of log.csv",
    "evaluate_every": "steps between evaluations on held-out records",
    "kl_samples": "completions drawn at an evaluation to estimate the KL",
    "checkpoint_every": "steps between checkpoints",
}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands.

    Args:
        commands: the parser's.
    """
    _add_sft(commands)
    _add_train(commands)


def _add_sft(commands: argparse._SubParsersAction) -> None:
    sft = commands.add_parser(
        "sft",
        help="train a language model on demonstrations",
        description="Make a tiny GPT-2, or take one from a folder, and train it to imitate demonstrations.",
    )
    sft.add_argument("--data", required=True, metavar="FILE", help=".jsonl of prompt and completion")
    sft.add_argument("--held-out", metavar="FILE", help="demonstrations that are evaluated, not trained on")
    sft.add_argument("--size", default="tiny", help="of a new model: tiny or small (default: tiny)")
    sft.add_argument("--model", metavar="FOLDER", help="go on training this model instead of a new one")
    sft.add_argument("--model-seed", type=int, default=0, help="of a new model's weights (default: 0)")
    _add_training(sft, SFT_SETTINGS)
    sft.set_defaults(run=_sft, parser=sft)


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train a language model on preferences or rankings",
        description=(
            "Train a model by one of the book's methods. The model as it is loaded is the reference. Preferences have "
            "prompt, chosen and rejected (and target, for slic-hf and click, if it is not the chosen completion); "
            "rankings have prompt, completions and rewards."
        ),
    )
    train.add_argument("--method", required=True, choices=[name for name in METHODS if name != "sft"])
    train.add_argument("--model", required=True, metavar="FOLDER", help="the SFT model: a run's folder, or a model's")
    train.add_argument("--data", required=True, metavar="FILE", help=".jsonl of preferences, or of rankings for rrhf")
    train.add_argument("--held-out", metavar="FILE", help="records that are evaluated, not trained on")
    for name, text in _STRENGTHS.items():
        train.add_argument(_flag(name), type=float, help=f"{text} (default: the paper's)")
    _add_training(train, Settings())
    train.set_defaults(run=_train, parser=train)


def _add_training(parser: argparse.ArgumentParser, defaults: Settings) -> None:
    parser.add_argument("--output", required=True, metavar="FOLDER", help="for the log, checkpoints and the model")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take: tokens, steps, memory, time")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    for name, text in _SETTINGS.items():
        default = getattr(defaults, name)
        parser.add_argument(_flag(name), type=type(default), default=default, help=f"{text} (default: {default:g})")


def _sft(options: argparse.Namespace) -> int:
    from dapedu import reviews
    from dapedu.data import load_demonstrations

    records, held_out = _records(options, load_demonstrations)
    if options.model:
        model, tokenizer = load(options, options.model)
    else:
        tokenizer = reviews.make_tokenizer()
        model = attempt(options, lambda: reviews.make_model(tokenizer, size=options.size, seed=options.model_seed))
    return _run_training(options, model, tokenizer, records, held_out, method="sft", strengths={})


def _train(options: argparse.Namespace) -> int:
    from dapedu.data import load_preferences, load_rankings

    method = METHODS[options.method]
    strengths = {name: getattr(options, name) for name in _STRENGTHS if getattr(options, name) is not None}
    for name in strengths:
        if name not in method.strengths:
            has = " and ".join(_flag(own) for own in method.strengths)
            refuse(options, f"{_flag(name)} is no strength of {options.method}, which has {has}")
    records, held_out = _records(options, load_rankings if method.records == "rankings" else load_preferences)
    model, tokenizer = load(options, options.model)
    return _run_training(
        options, model, tokenizer, records, held_out, method=options.method, strengths={**method.strengths, **strengths}
    )


def _run_training(
    options: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    *,
    method: str,
    strengths: dict[str, float],
) -> int:
    from dapedu.train import DivergedError, RunError, plan, train_preference

    settings = attempt(options, lambda: Settings(**{name: getattr(options, name) for name in _SETTINGS}))
    if options.dry_run:
        print(plan(model, tokenizer, records, method=method, settings=settings))
        return 0
    try:
        log = train_preference(
            model,
            tokenizer,
            records,
            method=method,
            strengths=strengths,
            settings=settings,
            held_out=held_out,
            output=options.output,
            resume=options.resume,
            progress=not options.quiet,
        )
    except DivergedError as diverged:
        print(f"dapedu: {diverged}", file=sys.stderr)
        return 1
    except (RunError, ValueError) as problem:
        refuse(options, problem)
    if log:
        print(", ".join(f"{name} {value:.4g}" for name, value in log[-1].items()))
    print(f"wrote {Path(options.output) / 'model'}, log.csv beside it; curves: tensorboard --logdir {options.output}")
    return 0


def _records(
    options: argparse.Namespace, read: Callable[[str], list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training and held-out records; what is wrong with a file is found before any work starts."""
    return attempt(options, lambda: (read(options.data), read(options.held_out) if options.held_out else []))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
