"""Where a model is read from, and what is wrong with it when it cannot be: one line that names the folder."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# What a tokenizer is made of; its tokenizer_config.json alone holds no tokens.
_VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", ".model", ".tiktoken")
_TEXTS = ["*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class ModelError(ValueError):
    """A model that cannot be used; the message names its folder and says what is expected."""


class Contents(NamedTuple):
    """How much a model's files of weights hold."""

    tensors: int
    numbers: int


@dataclass(frozen=True)
class Source:
    """A folder that exists, as a function was asked for it."""

    function: str  # starts the messages
    name: str  # the model's, in messages
    folder: Path
    from_hub: bool = False

    @property
    def address(self) -> str:
        """What finds the model again, wherever the reader stands: its hub name, or the folder's whole path."""
        return self.name if self.from_hub else str(self.folder.resolve())

    def problem(self, text: str) -> ModelError:
        """An error to raise.

        Args:
            text: goes on after the folder's name.

        Returns:
            The error.
        """
        return ModelError(f"{self.function}: {self.name} {text}")

    def has(self, file: str) -> bool:
        """Whether the folder holds a file.

        Args:
            file: its name.

        Returns:
            True for a file, or a link to one.
        """
        return (self.folder / file).is_file()

    def names(self) -> list[str]:
        """What the folder holds.

        Returns:
            Names, sorted.

        Raises:
            ModelError: the folder cannot be listed.
        """
        try:
            return sorted(os.listdir(self.folder))
        except OSError as problem:
            raise self.problem(f"cannot be read: {problem.strerror}; change its permissions") from None

    def read_object(self, file: str) -> dict[str, Any]:
        """A JSON object of the folder.

        Args:
            file: its name.

        Returns:
            The object.

        Raises:
            ModelError: the file cannot be read, is no JSON, or holds something else.
        """
        try:
            content = json.loads((self.folder / file).read_text(encoding="utf8"))
        except OSError as problem:
            raise self.problem(f"has an unreadable {file}: {problem.strerror}; change its permissions") from None
        except (ValueError, RecursionError) as problem:
            raise self.problem(f"has a damaged {file}, which is no JSON ({problem}); copy it again") from None
        if not isinstance(content, dict):
            raise self.problem(
                f"has a damaged {file}, which holds a {type(content).__name__}, expected an object; copy it again"
            )
        return content


def locate(function: str, name: str | Path, *, weights: bool = True) -> Source:
    """The folder of a model by its path, or of one on the Hugging Face hub by its name, fetched if need be.

    Args:
        function: starts the messages.
        name: a folder; or, as a string and where there is no such folder, `gpt2` or `owner/name`.
        weights: whether to fetch them too.

    Returns:
        The folder, which for a hub name is in the hub's cache.

    Raises:
        ModelError: there is no such folder, and no such model on the hub or no way to it.
    """
    if os.path.isdir(name):
        return Source(function, str(name), Path(name))
    if os.path.exists(name):
        raise ModelError(f"{function}: {name} is a file, expected the folder that holds it")
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(name):
        raise ModelError(f"{function}: there is no folder {name}; expected one, or a hub name such as gpt2")
    return Source(function, name, _fetched(function, name, weights=weights), from_hub=True)


def _fetched(function: str, name: str, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    wanted = [*_TEXTS, _WEIGHTS, "model-*.safetensors", ADAPTER_WEIGHTS] if weights else _TEXTS
    start = f"{function}: there is no folder {name}, and as a name on the Hugging Face hub it"
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except GatedRepoError:
        raise ModelError(f"{start} is gated: ask for access on its page there, then run hf auth login") from None
    except RepositoryNotFoundError:
        raise ModelError(f"{start} is unknown, or private: mend the name, or run hf auth login") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelError(
            f"{start} is not in this machine's cache, and the hub cannot be reached: mend the path, or the network"
        ) from None
    except Exception as problem:
        raise ModelError(f"{start} cannot be fetched: {first_line(problem)}") from None


def is_adapter(source: Source) -> bool:
    """Whether a folder holds an adapter and not a whole model.

    Args:
        source: the folder.

    Returns:
        True for an adapter.

    Raises:
        ModelError: it holds both.
    """
    if not source.has(ADAPTER_CONFIG):
        return False
    if source.has(_WEIGHTS) or source.has(_INDEX):
        raise source.problem(f"holds both a whole model and an adapter ({ADAPTER_CONFIG}); move one to its own folder")
    return True


def has_tokenizer(source: Source) -> bool:
    """Whether a folder holds a tokenizer's vocabulary.

    Args:
        source: the folder.

    Returns:
        True if it does.
    """
    return any(name.endswith(_VOCABULARIES) for name in source.names())


def read_config(source: Source) -> PreTrainedConfig:
    """A model's configuration, checked as far as it can be without making the model.

    Args:
        source: the folder.

    Returns:
        What transformers makes of config.json.

    Raises:
        ModelError: it is missing or broken, of an unknown type, or asks for code of its own.
    """
    import transformers

    if not source.has("config.json"):
        raise source.problem("has no config.json, so it is not a model's folder")
    config = source.read_object("config.json")
    kind = config.get("model_type")
    refuse_code(source, "config.json", config)
    if not isinstance(kind, str):
        raise source.problem("has a config.json without model_type; expected one as save_pretrained writes it")
    if kind not in transformers.CONFIG_MAPPING:
        raise source.problem(
            f"has a config.json of model_type {kind!r}, which transformers {transformers.__version__} does not know; "
            "mend it, or upgrade transformers"
        )
    with library_errors(source, "has a config.json that transformers cannot read; mend it, or copy it again"):
        return transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)


def refuse_code(source: Source, file: str, content: dict[str, Any]) -> None:
    """Refuse a model that brings Python code of its own.

    Args:
        source: the folder.
        file: the one that would say so.
        content: that file's.

    Raises:
        ModelError: it does.
    """
    # An attention by the name of a repository would be fetched from the hub, and run.
    kernels = [key for key, value in content.items() if key.endswith("_implementation") and "/" in str(value)]
    if content.get("auto_map") or kernels:
        key = kernels[0] if kernels else "auto_map"
        raise source.problem(
            f"has a {file} that asks for Python code of its own ({key}), which could do anything and is never run; "
            f"if transformers has a class for this model, remove {key} from a copy of the folder"
        )


def check_weights(source: Source, others: frozenset[str] = frozenset()) -> Contents:
    """Check that a model's weights are there, as whole safetensors files.

    Args:
        source: the folder.
        others: names of safetensors files that are not the model's own.

    Returns:
        How much they hold.

    Raises:
        ModelError: they are missing, pickles or damaged; the message names the file.
    """
    if source.has(_WEIGHTS):
        return check_safetensors(source, _WEIGHTS)
    if source.has(_INDEX):
        shards = source.read_object(_INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
            raise source.problem(f"has a damaged {_INDEX}, without a weight_map of files; copy it again")
        contents = Contents(0, 0)
        for shard in sorted(set(shards.values())):
            if not source.has(shard):
                raise source.problem(f"has no {shard}, which its {_INDEX} names; copy it there")
            more = check_safetensors(source, shard)
            contents = Contents(contents.tensors + more.tensors, contents.numbers + more.numbers)
        return contents
    refuse_pickles(source)
    strays = [name for name in source.names() if name.endswith(".safetensors") and name not in others]
    has = f"; it has {', '.join(strays)}, but no {_INDEX}" if strays else ""
    raise source.problem(f"has no weights, expected {_WEIGHTS}{has}")


def refuse_pickles(source: Source) -> None:
    """Refuse a folder whose weights are pickles.

    Args:
        source: a folder without safetensors.

    Raises:
        ModelError: it holds pickles.
    """
    pickles = [name for name in source.names() if name.endswith(_PICKLES)]
    if pickles:
        raise source.problem(
            f"has its weights as {', '.join(pickles)}; only safetensors are read, because a pickle can run any code. "
            "If you trust its source, convert it: load it with transformers or peft, then save_pretrained(new_folder)"
        )


def check_safetensors(source: Source, file: str) -> Contents:
    """Check a safetensors file's header, and that the file is as long as that says.

    Args:
        source: the folder.
        file: its name.

    Returns:
        How much it holds.

    Raises:
        ModelError: it is damaged.
    """
    from safetensors import safe_open

    with (
        library_errors(source, f"has a damaged {file}; copy it again"),
        safe_open(source.folder / file, framework="pt") as tensors,
    ):
        sizes = [math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys()]  # noqa: SIM118
    return Contents(len(sizes), sum(sizes))


@contextmanager
def library_errors(source: Source, text: str) -> Iterator[None]:
    """Turn what a library finds wrong with a folder into a `ModelError`; only its own call belongs inside.

    Args:
        source: the folder.
        text: what is wrong and what to do, before the library's own reason.

    Raises:
        ModelError: the library raised anything.
    """
    try:
        yield
    except Exception as problem:
        raise source.problem(f"{text} ({first_line(problem)})") from None


def first_line(problem: BaseException) -> str:
    """A library's message, short enough for one line.

    Args:
        problem: what it raised.

    Returns:
        The type, and the first line of the message.
    """
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0][:200]}".rstrip(": ")


class _Keeper(logging.Handler):
    def __init__(self, held: list[logging.LogRecord]) -> None:
        super().__init__()
        self.held = held

    def emit(self, record: logging.LogRecord) -> None:
        self.held.append(record)


@contextmanager
def held_messages() -> Iterator[None]:
    """No bar for each file of weights; and what transformers logs is shown only if the work inside succeeds.

    Otherwise the error says it: transformers' tables of weights would only stand before it.
    """
    from transformers.utils import logging as library

    logger = logging.getLogger("transformers")
    held: list[logging.LogRecord] = []
    handlers, propagates = logger.handlers, logger.propagate
    bars = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    logger.handlers, logger.propagate = [_Keeper(held)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        if bars:
            library.enable_progress_bar()
    for record in held:
        logger.handle(record)
