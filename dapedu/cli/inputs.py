"""What the commands share: models by folder or name, and wrong values that end a command with one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dapedu.models import ScalarHead

A_MODEL = "a run's folder, a model's, or a name on the Hugging Face hub"
A_SOURCE = ".jsonl (.gz), .json, .csv or .parquet, a saved dataset, or a name on the Hugging Face hub"

T = TypeVar("T")


def attempt(options: argparse.Namespace, work: Callable[[], T]) -> T:
    """Do what may find a wrong value.

    Args:
        options: of the command, with its parser.
        work: what to do.

    Returns:
        What it returned.

    Raises:
        SystemExit: it raised ValueError; the message is printed, the status is 2.
    """
    try:
        return work()
    except ValueError as problem:
        refuse(options, problem)


def refuse(options: argparse.Namespace, problem: object) -> NoReturn:
    """End a command with one line and status 2; argparse's own `error` would repeat all options first.

    Args:
        options: of the command, with its parser.
        problem: what is wrong, and what would not be.

    Raises:
        SystemExit: always.
    """
    options.parser.exit(2, f"{options.parser.prog}: {problem}\n")
    raise AssertionError  # not reached, but mypy does not know it


def at_least_one(word: str) -> int:
    """A number of things, for argparse.

    Args:
        word: as the user wrote it.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: it is no whole number, or below 1.
    """
    if (number := _whole_number(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word}, expected at least 1")
    return number


def seed(word: str) -> int:
    """What random numbers start from, for argparse.

    Args, Returns: as `at_least_one`.

    Raises:
        argparse.ArgumentTypeError: it is no whole number, or one that a generator does not take.
    """
    if not 0 <= (number := _whole_number(word)) < 2**63:
        raise argparse.ArgumentTypeError(f"{word}, expected a whole number from 0 to 2**63 - 1")
    return number


def _whole_number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word}, expected a whole number") from None


def output_name(word: str) -> str:
    """Where something goes, for argparse.

    Args:
        word: as the user wrote it.

    Returns:
        The same.

    Raises:
        argparse.ArgumentTypeError: it is empty, as a variable of the shell may be, and would mean this folder.
    """
    if not word:
        raise argparse.ArgumentTypeError("an empty name, expected one")
    return word


def output_file(word: str) -> str:
    """Where records go, for argparse.

    Args, Returns: as `output_name`.

    Raises:
        argparse.ArgumentTypeError: it is empty, or a folder's.
    """
    if Path(output_name(word)).is_dir():
        raise argparse.ArgumentTypeError(f"{word} is a folder, expected a file's name")
    return word


def refuse_same_records(options: argparse.Namespace, data: str) -> None:
    """Refuse to hold out what is trained on.

    Args:
        options: of the command, with its parser, `split`, `held_out` and `held_out_split`.
        data: the source of the records to train on.

    Raises:
        SystemExit: both are the same.
    """
    if not options.held_out:
        return
    one, other = Path(data), Path(options.held_out)
    if data != options.held_out and not (one.exists() and other.exists() and one.samefile(other)):
        return
    has_splits = not one.exists() or (one / "dataset_dict.json").is_file()
    if not has_splits or options.split == options.held_out_split:
        split = f", split {options.split}" if has_splits else ""
        refuse(options, f"--held-out is {data}{split}: a model would be evaluated on what it is trained on")


def refuse_output(options: argparse.Namespace, *names: str) -> None:
    """Refuse an --output that no run can go to, or in which it would write over a model that it reads.

    Args:
        options: of the command, with its parser, `output`, `resume` and `dry_run`.
        names: of the options that name such models, where they are given.

    Raises:
        SystemExit: as said.
    """
    from dapedu.train.checkpoints import RunError, require_usable

    output = Path(options.output).resolve()
    for name in names:
        model = getattr(options, name)
        if model and Path(model).resolve() in (output, output / "model"):
            refuse(options, f"--output is the folder of {flag(name)} {model}, which would change; choose another one")
    if not options.dry_run:
        try:
            require_usable(Path(options.output), resume=options.resume)
        except RunError as problem:
            refuse(options, problem)


def flag(name: str) -> str:
    """An option as the user writes it.

    Args:
        name: as the program does, `batch_size`.

    Returns:
        `--batch-size`.
    """
    return f"--{name.replace('_', '-')}"


def load(options: argparse.Namespace, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model by its folder, by that of the run that made it, or by its name on the Hugging Face hub.

    Args:
        options: of the command, with its parser.
        name: as the user wrote it.

    Returns:
        Model and tokenizer.

    Raises:
        SystemExit: as `attempt`.
    """
    from dapedu.models import load_model

    return attempt(options, lambda: load_model(_of_run(name)))


def load_tokenizer(options: argparse.Namespace, name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone, which takes no time, so that data can be checked before the model is read.

    Args, Raises: as `load`.

    Returns:
        The tokenizer.
    """
    from dapedu.models import load_tokenizer

    return attempt(options, lambda: load_tokenizer(_of_run(name)))


def load_head(
    options: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    option: str,
    *,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> ScalarHead:
    """A reward or value model, which has to read what another model writes, token by token.

    Args:
        options: of the command, with its parser and `model`.
        model, tokenizer: what writes.
        option: the one that names the folder, as `reward`.
        prompts: what it completes.
        max_new_tokens: of its longest completion.

    Returns:
        The head.

    Raises:
        SystemExit: as `attempt`, or it cannot read all that may be written.
    """
    from dapedu.data import encode_prompts
    from dapedu.models import load_head

    name = getattr(options, option)
    head, own = attempt(options, lambda: load_head(_of_run(name)))
    start = f"{flag(option)} {name}"
    if (own.get_vocab(), own.eos_token_id) != (tokenizer.get_vocab(), tokenizer.eos_token_id):
        refuse(options, f"{start} has other tokens than --model {options.model} writes; train it from that model")
    config = head.transformer.config.get_text_config()
    written = model.config.get_text_config().vocab_size
    if config.vocab_size < written:
        problem = f"knows tokens 0 … {config.vocab_size - 1}, but the model may write up to {written - 1}"
        refuse(options, f"{start} {problem}; train it from that model")
    longest = max(map(len, attempt(options, lambda: encode_prompts(prompts, tokenizer)))) + max_new_tokens
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        refuse(options, f"{start} reads {limit} tokens; prompt and completion may have {longest}")
    return head


def _of_run(name: str) -> str | Path:
    inner = Path(name) / "model"
    return inner if inner.is_dir() else name
