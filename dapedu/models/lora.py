"""LoRA through peft: few weights are trained, beside a base that stays as it is."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from dapedu.models.source import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ModelError,
    Source,
    check_safetensors,
    is_adapter,
    library_errors,
    locate,
    refuse_pickles,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel
    from transformers import PreTrainedModel


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] = "all-linear",
    seed: int = 0,
) -> PeftModel:
    """Give a model LoRA adapters, the only weights that then learn.

    A linear map W becomes W + (alpha / rank) B A. B starts at zero, so the policy starts as the base, which is the
    reference: `with policy.disable_adapter()` reads with it, and no second model is in memory. There is no dropout,
    because a log-ratio compares the policy with the reference on the same text.

    Args:
        model: changed in place; its own weights get no gradient any more.
        rank: rows of A, at least 1.
        alpha: how strongly the adapters count, > 0.
        targets: `all-linear` for every linear map but the output's; or the names of linear maps, whole or their last
            parts; or one regular expression for whole names.
        seed: of A; the caller's random numbers go on as before.

    Returns:
        The model with adapters, on the same device and in the same mode.

    Raises:
        ValueError: a number is out of range, a target is no linear map of the model (the message lists some that
            are), or the model has adapters already.

    Source: arXiv:2106.09685, §4.1, Eq. 3.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if rank < 1:
        raise ValueError(f"add_lora: rank is {rank}, expected at least 1")
    if not 0 < alpha < math.inf:
        raise ValueError(f"add_lora: alpha is {alpha}, expected a positive number")
    if has_adapters(model):
        raise ValueError("add_lora: the model has adapters already; merge them first, with merge_and_unload()")
    maps = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    _check_targets(targets, list(maps))
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by r
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in maps.values()),  # GPT-2 keeps W transposed
    )
    devices = [model.device] if model.device.type == "cuda" else []
    was_training = model.training
    with torch.random.fork_rng(devices=devices), _without_notice():
        torch.manual_seed(seed)
        policy = get_peft_model(model, config)
    return cast("PeftModel", policy.train(was_training))


@contextmanager
def _without_notice() -> Iterator[None]:
    """peft asks transformers by a name that transformers is giving up, which is no business of the reader's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def _check_targets(targets: str | Sequence[str], names: list[str]) -> None:
    if targets == "all-linear":
        return
    if isinstance(targets, str):
        unknown = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in names)]
    if unknown or not targets:
        known = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        raise ValueError(
            f"add_lora: targets {', '.join(unknown) or 'are none and'} match no linear map of the model, which has "
            f"{', '.join(known[:12])}{', …' if known[12:] else ''}"
        )


def has_adapters(model: nn.Module) -> bool:
    """Whether LoRA adapters are among a model's modules.

    Args:
        model: any.

    Returns:
        True if there is one.
    """
    return any(name.endswith(".lora_A") for name, _ in model.named_modules())


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapters, and the name of the base that they belong to.

    Args:
        model: the base, which has a folder or a hub name, with adapters.
        folder: an existing one.
    """
    config = model.active_peft_config
    base = str(cast("PreTrainedModel", model.get_base_model()).name_or_path)
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    # Else peft asks the hub whether the base's vocabulary has grown.
    model.save_pretrained(str(folder), save_embedding_layers=False)


def base_of(source: Source, *, weights: bool = True) -> Source:
    """The base of an adapter.

    Args:
        source: the adapter's folder.
        weights: whether to fetch the base's, if it is on the hub.

    Returns:
        The base's folder.

    Raises:
        ModelError: adapter_config.json is broken or of another kind of adapter, or the base is not where it says.
    """
    config = source.read_object(ADAPTER_CONFIG)
    kind, name = config.get("peft_type"), config.get("base_model_name_or_path")
    if kind != "LORA":
        raise source.problem(f"holds an adapter of type {kind!r}, expected LORA, which can be merged into the base")
    if not isinstance(name, str) or not name:
        raise source.problem(f"names no base; write its folder as base_model_name_or_path in {ADAPTER_CONFIG}")
    beside = source.folder / name
    try:
        base = locate(source.function, str(beside) if beside.is_dir() else name, weights=weights)
    except ModelError as problem:
        reason = str(problem).removeprefix(f"{source.function}: ")
        raise source.problem(
            f"holds adapters whose base is {name}, but {reason}; if it has moved, write where it is now as "
            f"base_model_name_or_path in {source.folder / ADAPTER_CONFIG}"
        ) from None
    if is_adapter(base):
        raise source.problem(f"holds adapters whose base {name} is itself an adapter; save that merged, and name it")
    return base


def merged(source: Source, base: PreTrainedModel) -> PreTrainedModel:
    """A base with adapters added to its weights.

    Args:
        source: the adapters' folder.
        base: changed in place.

    Returns:
        A plain model.

    Raises:
        ModelError: the adapters are missing, pickles, damaged, or do not fit the base.
    """
    from peft import LoraConfig, PeftModel

    if not source.has(ADAPTER_WEIGHTS):
        refuse_pickles(source)
        raise source.problem(f"has no weights, expected {ADAPTER_WEIGHTS}")
    check_safetensors(source, ADAPTER_WEIGHTS)
    with library_errors(source, f"holds adapters that peft cannot add to {base.name_or_path}; copy both again"):
        config = LoraConfig.from_pretrained(str(source.folder))
        with _without_notice():
            model = PeftModel(base, config, low_cpu_mem_usage=True)  # no random numbers for what is read next
        result = model.load_adapter(str(source.folder), "default", torch_device="cpu", low_cpu_mem_usage=True)
    strangers = [*result.missing_keys, *result.unexpected_keys]
    if strangers:
        raise source.problem(
            f"has an {ADAPTER_CONFIG} and an {ADAPTER_WEIGHTS} that do not fit each other or {base.name_or_path}: "
            f"{strangers[0]} is in one alone; copy all again"
        )
    with library_errors(source, f"holds adapters that peft cannot merge into {base.name_or_path}"):
        plain = cast("PreTrainedModel", model.merge_and_unload())
    plain.name_or_path = plain.config._name_or_path = ""  # no longer the base's weights, should it get new adapters
    return plain
