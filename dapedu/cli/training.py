"""`dapedu sft`, `train` and `reward`: one loop, by a method's name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dapedu.cli.inputs import (
    A_MODEL,
    A_SOURCE,
    at_least_one,
    attempt,
    flag,
    load,
    output_name,
    refuse,
    refuse_output,
    refuse_same_records,
    seed,
)
from dapedu.train import METHODS, REWARD_SETTINGS, SFT_SETTINGS, Settings
from dapedu.train.methods import REWARD, method_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dapedu.data import Record, Records
    from dapedu.models import ScalarHead

_STRENGTHS = {
    "beta": "β of dpo, kto and robust-dpo, λ of spin: the KL weight; a larger one keeps the policy nearer the "
    "reference; of simpo the scale of the reward",
    "tau": "τ of ipo: the KL weight; the margin's target is 1/(2τ)",
    "delta": "δ of slic-hf and click: the hinge's margin in nats",
    "sft_weight": "λ of slic-hf and rrhf: weight of the likelihood term",
    "contrast_weight": "α of click: weight of the hinge; λ of orpo: weight of the odds ratio",
    "undesirable_weight": "λ_U of kto: weight of a rejected completion; a chosen one weighs 1",
    "gamma": "γ of simpo: the target of the reward's difference",
    "flip": "ε of robust-dpo: the share of turned labels, below 0.5",
}
_SETTINGS = {
    "steps": "optimiser steps",
    "batch_size": "examples a step",
    "parts": "a batch is read in so many parts, one after the other: saves memory",
    "max_length": "tokens of the longest sequence; prompts that are too long lose their beginning",
    "lr": "AdamW's learning rate after the warm-up",
    "warmup": "steps in which the learning rate rises",
    "clip": "largest norm of the gradient",
    "seed": "of the data's order",
    "log_every": "steps between rows of log.csv",
    "evaluate_every": "steps between evaluations on held-out records",
    "kl_samples": "completions drawn at an evaluation to estimate the KL",
    "checkpoint_every": "steps between checkpoints",
}
# Of supervised fine-tuning where the model knows something already: all weights, or adapters alone.
_LR_GIVEN, _LR_ADAPTERS = 1e-5, 1e-4
_CARD = "# The base of adapters\n\nThe adapters of the run in the folder above were trained beside these weights.\n"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands.

    Args:
        commands: the parser's.
    """
    _add_sft(commands)
    _add_train(commands)
    _add_reward(commands)


def _add_sft(commands: argparse._SubParsersAction) -> None:
    sft = commands.add_parser(
        "sft",
        help="train a language model on demonstrations",
        description="Make a tiny GPT-2, or take one from a folder, and train it to imitate demonstrations.",
    )
    sft.add_argument("--data", required=True, metavar="DATA", help=f"demonstrations: {A_SOURCE}")
    _add_splits(sft, "demonstrations")
    sft.add_argument("--size", default="tiny", help="of a new model: tiny or small (default: tiny)")
    sft.add_argument("--model", metavar="MODEL", help=f"train this one instead of a new one: {A_MODEL}")
    sft.add_argument("--model-seed", type=seed, default=0, help="of a new model's weights (default: 0)")
    lr = f"{SFT_SETTINGS.lr:g} for a new model, {_LR_GIVEN:g} for a given one, {_LR_ADAPTERS:g} for its adapters"
    _add_adapters(sft)
    add_training(sft, SFT_SETTINGS, later={"lr": lr})
    sft.set_defaults(run=_sft, parser=sft)


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train a language model on preferences or rankings",
        description=(
            "Train a model by one of the book's methods. The model as it is loaded is the reference. Preferences have "
            "chosen and rejected, and a prompt if it is not what both begin with (and target, for slic-hf and click, "
            "if it is not the chosen completion); rankings have prompt, completions and rewards. All of them may be "
            "texts or conversations; `dapedu data check` says what is in a file. Several processes share each batch: "
            "torchrun --nproc-per-node 2 -m dapedu train …, or accelerate launch -m dapedu train …"
        ),
    )
    train.add_argument("--method", required=True, choices=[name for name in METHODS if name != "sft"])
    train.add_argument("--model", required=True, metavar="MODEL", help=f"the SFT model: {A_MODEL}")
    train.add_argument("--data", required=True, metavar="DATA", help=f"preferences, or rankings for rrhf: {A_SOURCE}")
    _add_splits(train, "records")
    add_strengths(train)
    _add_adapters(train)
    add_training(train, Settings(), later={})
    train.set_defaults(run=_train, parser=train)


def _add_reward(commands: argparse._SubParsersAction) -> None:
    reward = commands.add_parser(
        "reward",
        help="train a reward model on preferences or rankings",
        description=(
            "Put a number on each completion's last token and train it, and the model under it, to be larger where "
            "people like a completion better: on preferences by Bradley–Terry, on rankings by Plackett–Luce, whichever "
            "the file holds. The records are those of `dapedu train`. What comes out is a reward model, which "
            "dapedu.models.load_head reads and PPO maximises; it is no language model any more. Evaluate on held-out "
            "records: read for too long, pairs are learnt by heart."
        ),
    )
    reward.add_argument("--model", required=True, metavar="MODEL", help=f"the SFT model: {A_MODEL}")
    reward.add_argument("--data", required=True, metavar="DATA", help=f"preferences or rankings: {A_SOURCE}")
    _add_splits(reward, "records")
    add_training(reward, REWARD_SETTINGS, later={}, without={"kl_samples"})
    reward.set_defaults(run=_reward, parser=reward, kl_samples=0, lora_rank=None, lora_alpha=None)


def _add_splits(parser: argparse.ArgumentParser, records: str) -> None:
    parser.add_argument("--split", default="train", help="of a dataset that has several (default: train)")
    parser.add_argument("--held-out", metavar="DATA", help=f"{records} that are evaluated, not trained on")
    parser.add_argument("--held-out-split", default="train", metavar="SPLIT", help="of that (default: train)")


def _add_adapters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lora-rank", type=at_least_one, metavar="R", help="train LoRA adapters of this rank alone")
    parser.add_argument("--lora-alpha", type=float, help="how strongly they count (default: twice the rank)")


def add_training(
    parser: argparse.ArgumentParser,
    defaults: Settings,
    *,
    later: dict[str, str],
    without: Collection[str] = (),
) -> None:
    """Add the options of a run.

    Args:
        parser: of a command.
        defaults: of the settings.
        later: of which settings the default depends on others, and how.
        without: settings that are no options.
    """
    parser.add_argument(
        "--output", required=True, type=output_name, metavar="FOLDER", help="for the log, checkpoints and the model"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take: tokens, steps, memory, time")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--max-length", type=int, help=_SETTINGS["max_length"] + " (default: nothing is cut)")
    for name, text in _SETTINGS.items():
        if name != "max_length" and name not in without:
            default = getattr(defaults, name)
            parser.add_argument(
                flag(name),
                type=seed if name == "seed" else type(default),
                default=None if name in later else default,
                help=f"{text} (default: {later.get(name, f'{default:g}')})",
            )


def settings_of(options: argparse.Namespace) -> Settings:
    """How to train.

    Args:
        options: of a command, with its parser and those of `add_training`.

    Returns:
        Settings; those that are no options have their defaults.

    Raises:
        SystemExit: a number is out of range.
    """
    given = {name: getattr(options, name) for name in _SETTINGS if name in options}
    return attempt(options, lambda: Settings(**given))


def add_strengths(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add the options of the methods' hyperparameters.

    Args:
        parser: of a command.
        without: those that are no options, or another one's.
    """
    for name, text in _STRENGTHS.items():
        if name not in without:
            parser.add_argument(flag(name), type=float, help=f"{text} (default: the paper's)")


def strengths_of(options: argparse.Namespace, *, without: Collection[str] = ()) -> dict[str, float]:
    """All hyperparameters of the method that was asked for.

    Args:
        options: of a command, with its parser, `method` and the hyperparameters.
        without: those that mean something else here.

    Returns:
        Them, at the paper's values where nothing else is given.

    Raises:
        SystemExit: one is given that the method does not have.
    """
    own = METHODS[options.method].strengths
    asked = {name: getattr(options, name) for name in _STRENGTHS if name not in without}
    given = {name: value for name, value in asked.items() if value is not None}
    for name in given:
        if name not in own:
            has = " and ".join(map(flag, own)) or "none"
            refuse(options, f"{flag(name)} is no strength of {options.method}, which has {has}")
    return {**own, **given}


def _sft(options: argparse.Namespace) -> int:
    from dapedu import reviews
    from dapedu.data import load_demonstrations

    _check_words(options)
    if options.lr is None:
        options.lr = SFT_SETTINGS.lr if not options.model else _LR_ADAPTERS if options.lora_rank else _LR_GIVEN
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
    strengths = strengths_of(options)
    _check_words(options)
    records, held_out = _records(options, load_rankings if method.records == "rankings" else load_preferences)
    model, tokenizer = load(options, options.model)
    return _run_training(options, model, tokenizer, records, held_out, method=options.method, strengths=strengths)


def _reward(options: argparse.Namespace) -> int:
    from dapedu.data import load_preferences, load_rankings

    _check_words(options)
    are_rankings = attempt(options, lambda: _first_row_is_ranking(options))
    records, held_out = _records(options, load_rankings if are_rankings else load_preferences)
    model, tokenizer = load(options, options.model)
    return _run_training(options, model, tokenizer, records, held_out, method=REWARD, strengths={})


def _run_training(
    options: argparse.Namespace,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    held_out: Sequence[Record],
    *,
    method: str,
    strengths: dict[str, float],
) -> int:
    from dapedu.models import ScalarHead
    from dapedu.train import DivergedError, RunError, plan
    from dapedu.train.loop import train_by, try_loss
    from dapedu.train.processes import this_process

    settings = settings_of(options)
    model: PreTrainedModel | PeftModel | ScalarHead
    model = ScalarHead(base) if method == REWARD else _with_adapters(options, base, tokenizer)
    if options.dry_run:
        attempt(options, lambda: try_loss(method_of(method, records), strengths, 2))
        foreseen = attempt(options, lambda: plan(model, tokenizer, records, method=method, settings=settings))
        if this_process().is_main_process:
            print(foreseen)
        return 0
    try:
        log = train_by(
            method,
            model,
            tokenizer,
            records,
            strengths=strengths,
            settings=settings,
            held_out=held_out,
            metrics={},
            output=options.output,
            resume=options.resume,
            progress=not options.quiet,
        )
    except DivergedError as diverged:
        print(f"dapedu: {diverged}", file=sys.stderr)
        return 1
    except (RunError, ValueError) as problem:
        refuse(options, problem)
    if not this_process().is_main_process:
        return 0
    if log:
        print(", ".join(f"{name} {value:.4g}" for name, value in log[-1].items()))
    print(f"wrote {Path(options.output) / 'model'}, log.csv beside it; curves: tensorboard --logdir {options.output}")
    return 0


def _check_words(options: argparse.Namespace) -> None:
    """What can be seen before a file is read."""
    if options.lora_alpha is not None and not options.lora_rank:
        refuse(options, "--lora-alpha is about adapters, which only --lora-rank makes")
    refuse_same_records(options, options.data)
    refuse_output(options, "model")


def _with_adapters(
    options: argparse.Namespace, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | PeftModel:
    from dapedu.models import add_lora

    if not options.lora_rank:
        return base
    if not base.name_or_path and not options.dry_run:
        _keep_base(options, base, tokenizer)
    alpha = 2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
    return attempt(options, lambda: add_lora(base, rank=options.lora_rank, alpha=alpha))


def _keep_base(options: argparse.Namespace, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adapters name their base's folder; a model that was just made, or merged with other adapters, has none yet."""
    import torch

    from dapedu.models import save_model
    from dapedu.train.processes import this_process

    process, folder = this_process(), (Path(options.output) / "base").resolve()
    if process.is_main_process:
        if folder.exists():
            kept, now = load(options, str(folder))[0].state_dict(), base.state_dict()
            if kept.keys() != now.keys() or not all(torch.equal(kept[name], now[name]) for name in now):
                refuse(options, f"{folder} holds another model than the adapters' base; choose another --output")
        else:
            attempt(options, lambda: save_model(base, tokenizer, folder, card=_CARD))
            print(f"wrote {Path(options.output) / 'base'}, the adapters' base, which had no folder yet")
    process.wait_for_everyone()
    base.name_or_path = str(folder)


def _first_row_is_ranking(options: argparse.Namespace) -> bool:
    """What is neither will be refused as preferences."""
    from dapedu.data.formats import guess_kind
    from dapedu.data.sources import read_source

    first = next(read_source(options.data, split=options.split).rows, None)
    return first is not None and guess_kind(first[1]) == "rankings"


def _records(options: argparse.Namespace, read: Callable[..., Records]) -> tuple[Sequence[Record], Sequence[Record]]:
    """The training and held-out records; what is wrong with a file is found before any work starts."""

    def both() -> tuple[Sequence[Record], Sequence[Record]]:
        records = read(options.data, split=options.split)
        return records, read(options.held_out, split=options.held_out_split) if options.held_out else []

    return attempt(options, both)
