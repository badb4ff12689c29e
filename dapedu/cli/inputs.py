"""What the commands share: models by folder, and wrong values that end a command with one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        options.parser.error(str(problem))  # does not return
        raise


def load(options: argparse.Namespace, folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model by its folder, or by that of the run that made it.

    Args:
        options: of the command, with its parser.
        folder: as the user wrote it.

    Returns:
        Model and tokenizer.

    Raises:
        SystemExit: as `attempt`.
    """
    from dapedu.models import load_model

    inner = Path(folder) / "model"
    return attempt(options, lambda: load_model(inner if inner.is_dir() else folder))
