"""Small models and model folders: made here by name, saved, loaded, scored, and with a number on each token.

transformers is imported when a model is made or loaded, so that importing this module stays light.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from dapedu.data import Sequences, collate
from dapedu.logps import model_logps

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

_HEAD = "scalar_head.safetensors"


class Size(NamedTuple):
    """A row of `SIZES`: width, depth and heads of a GPT-2."""

    n_embd: int
    n_layer: int
    n_head: int


SIZES = {"tiny": Size(n_embd=64, n_layer=2, n_head=4), "small": Size(n_embd=128, n_layer=4, n_head=4)}


class ModelError(ValueError):
    """A folder that cannot be used; the message names it and says what is expected."""


def tiny_gpt2(
    size: str,
    *,
    vocab_size: int,
    n_positions: int,
    seed: int = 0,
    pad_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, small enough to be trained on a laptop.

    Two departures from GPT-2: no dropout, so that a text gets the same log-probability twice, and the fast kernel
    of its activation.

    Args:
        size: a key of `SIZES`.
        vocab_size: tokens in the vocabulary.
        n_positions: longest text, in tokens.
        seed: of the weights; the same one gives the same model, and the caller's random numbers go on as before.
        pad_token_id, eos_token_id: the tokenizer's, kept with the model for those who load it with transformers alone;
            the weights do not depend on them.

    Returns:
        The model, on the CPU, in evaluation mode (training mode does not differ, there being no dropout).

    Raises:
        ValueError: there is no such size; the message lists them.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if size not in SIZES:
        raise ValueError(f"tiny_gpt2: no size {size!r}; there are {', '.join(SIZES)}")
    shape = SIZES[size]
    config = GPT2Config(
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        vocab_size=vocab_size,
        n_positions=n_positions,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


class ScalarHead(nn.Module):
    """A transformer with one number a token, for rewards and values: a linear map of its last hidden states.

    The transformer is the given model's own, not a copy: training one trains the other, so pass
    `copy.deepcopy(model)` to keep the model as it is. The linear map starts at zero. So every reward and value does,
    whatever the seed: the first preference loss is log 2, the first advantages are the returns, and the transformer
    gets no gradient through random weights; its own starts with the second step.

    Args:
        model: a causal language model, or a transformer without a head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.transformer = cast("PreTrainedModel", model.base_model)
        self.linear = nn.Linear(model.config.hidden_size, 1, device=model.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        """A number for each token, which has seen that token and those before it.

        Args:
            input_ids: padded on the right, shape (rows, seq).

        Returns:
            Float32, shape (rows, seq); meaningless on padding.
        """
        hidden = self.transformer(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.linear(hidden.float()).squeeze(-1)

    def last(self, *, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """The number of each completion's last token, which has seen all of prompt and completion: a reward.

        Args:
            input_ids: padded on the right, shape (rows, seq).
            completion_mask: true on the completion's tokens, shape (rows, seq).

        Returns:
            Float32, shape (rows,).

        Raises:
            ValueError: shapes differ, or a completion has no token.
        """
        if completion_mask.shape != input_ids.shape:
            raise ValueError(
                f"ScalarHead.last: completion_mask has shape {tuple(completion_mask.shape)}, "
                f"expected {tuple(input_ids.shape)}"
            )
        mask = completion_mask.bool()
        if not mask.any(dim=1).all():
            rows = (~mask.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"ScalarHead.last: the completions of rows {rows} are empty, so they have no last token")
        positions = torch.arange(mask.shape[1], device=mask.device)
        return self(input_ids).gather(1, (mask * positions).amax(dim=1, keepdim=True)).squeeze(1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the transformer as transformers does, and the linear map beside it; `save_model` calls this.

        Args:
            folder: an existing one.
        """
        from safetensors.torch import save_file

        self.transformer.save_pretrained(folder)
        save_file(self.linear.state_dict(), Path(folder) / _HEAD)


def save_model(
    model: PreTrainedModel | ScalarHead, tokenizer: PreTrainedTokenizerBase, path: str | Path, card: str
) -> None:
    """Write a model's folder, which appears whole or not at all.

    An earlier model in that folder stays until the new one is complete. Nothing else is ever removed.

    Args:
        model: a causal language model or a `ScalarHead`; its weights are written as safetensors.
        tokenizer: the one that it reads with.
        path: the folder; made if missing.
        card: what the model is, in Markdown, for its README.md.

    Raises:
        ModelError: path is a file, or a folder with something that is not part of this model.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise ModelError(f"save_model: {path} is a file, expected a folder")
    partial = path.with_name(f".{path.name}.dapedu-partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        with _without_bars():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf8", newline="\n")
        _replace(path, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(path: Path, complete: Path) -> None:
    if path.exists():
        others = sorted({entry.name for entry in path.iterdir()} - {entry.name for entry in complete.iterdir()})
        if others:
            raise ModelError(
                f"save_model: {path} also holds {', '.join(others)}, which would be lost; expected a new folder, "
                "or one with such a model alone"
            )
        previous = path.with_name(f".{path.name}.dapedu-previous")
        shutil.rmtree(previous, ignore_errors=True)  # of a run that was killed
        os.replace(path, previous)
        os.replace(complete, path)
        shutil.rmtree(previous)
    else:
        os.replace(complete, path)


def load_model(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer from a local folder: safetensors only, no code from the folder.

    Args:
        path: a folder that `save_model`, or transformers' own `save_pretrained`, has written.

    Returns:
        The model, on the CPU, in evaluation mode and in the number format that it was saved in; the tokenizer.

    Raises:
        ModelError: the folder is missing, or lacks its config.json, its weights as safetensors or its tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _checked_folder("load_model", path)
    if (folder / _HEAD).exists():
        raise ModelError(f"load_model: {folder} holds a model with a number on each token; read it with load_head")
    with _without_bars():
        model = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return model.eval(), tokenizer


def load_head(path: str | Path) -> tuple[ScalarHead, PreTrainedTokenizerBase]:
    """A `ScalarHead` and its tokenizer from a local folder.

    Args:
        path: a folder that `save_model` has written.

    Returns:
        The head with its transformer, on the CPU, in evaluation mode; the tokenizer.

    Raises:
        ModelError: as `load_model`, or the folder holds no linear map.
    """
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    folder = _checked_folder("load_head", path)
    if not (folder / _HEAD).exists():
        raise ModelError(f"load_head: {folder} has no {_HEAD}; a language model is read with load_model")
    with _without_bars():
        model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, local_files_only=True)
    head = ScalarHead(model)
    head.linear.load_state_dict(load_file(folder / _HEAD))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return head.eval(), tokenizer


def _checked_folder(function: str, path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"{function}: there is no folder {folder}")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{function}: {folder} has no config.json, so it is not a model's folder")
    names = {entry.name for entry in folder.iterdir()}
    if not any(name.endswith(".safetensors") and name != _HEAD for name in names):
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        if pickles:
            raise ModelError(
                f"{function}: {folder} has its weights as {', '.join(pickles)}; only safetensors are read, because a "
                "pickle can run any code. If you trust its source, convert it: "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
            )
        raise ModelError(f"{function}: {folder} has no weights, expected model.safetensors")
    if not any(name.startswith(("tokenizer", "vocab")) for name in names):
        raise ModelError(f"{function}: {folder} has no tokenizer; write it there with tokenizer.save_pretrained")
    return folder


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers shows a bar for every file of weights, also for small ones."""
    from transformers.utils import logging

    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradient and no dropout inside; afterwards the model is in the mode that it was in.

    Args:
        model: switched to evaluation mode.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def score(model: PreTrainedModel, sequences: Sequences, *, batch_size: int = 256) -> Tensor:
    """Log-probability of each completion under the model: a sum over its tokens, without gradient.

    Minus its mean over samples of the model itself estimates the model's entropy in nats, without bias.

    Args:
        model: a causal language model, on any device.
        sequences: prompts with completions.
        batch_size: sequences read at once; those of like length are read together, which saves padding.

    Returns:
        Nats, float32 on the CPU, shape (sequences,), in the order given.

    Raises:
        ValueError: batch_size is not positive, or a prompt has no tokens.

    Source: arXiv:2305.18290, §4: log π(y|x) of a completion is the sum over its tokens.
    """
    if batch_size < 1:
        raise ValueError(f"score: batch_size is {batch_size}, expected at least 1")
    order = sorted(range(len(sequences)), key=lambda row: len(sequences.input_ids[row]))
    logps = torch.zeros(len(sequences))
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            input_ids, completion_mask = collate(sequences.select(rows), device=model.device)
            logps[rows] = model_logps(model, input_ids=input_ids, completion_mask=completion_mask).sum(dim=1).cpu()
    return logps
