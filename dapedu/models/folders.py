"""Model folders: saved whole or not at all; loaded from safetensors, or refused in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from dapedu.models.lora import base_of, has_adapters, merged, save_adapter
from dapedu.models.source import (
    Contents,
    ModelError,
    Source,
    check_weights,
    has_tokenizer,
    held_messages,
    is_adapter,
    library_errors,
    locate,
    read_config,
    refuse_code,
)
from dapedu.models.tiny import HEAD_FILE, ScalarHead

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


def save_model(
    model: PreTrainedModel | PeftModel | ScalarHead, tokenizer: PreTrainedTokenizerBase, path: str | Path, card: str
) -> None:
    """Write a model's folder, which appears whole or not at all.

    An earlier model in that folder stays until the new one is complete. Nothing else is ever removed.

    Args:
        model: a causal language model or a `ScalarHead`, whose weights are written as safetensors; or, from
            `add_lora`, one with adapters, of which the adapters alone are written, with the name of the base. The
            base must have been loaded, and its own weights be as they were then.
        tokenizer: the one that it reads with.
        path: the folder; made if missing.
        card: what the model is, in Markdown, for its README.md.

    Raises:
        ModelError: path is a file, or a folder with something that is not part of this model; or there are adapters
            whose base has no folder and no hub name, or adapters in what is to be written as a whole model.
    """
    path = Path(path).resolve()
    require_saveable(model, path)
    with_base = hasattr(model, "get_base_model")  # a PeftModel
    partial = path.with_name(f".{path.name}.dapedu-partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        with held_messages():
            if with_base:
                save_adapter(cast("PeftModel", model), partial)
            else:
                cast("PreTrainedModel | ScalarHead", model).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf8", newline="\n")
        _replace(path, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_saveable(model: PreTrainedModel | PeftModel | ScalarHead, path: str | Path) -> None:
    """Find out before hours of training what `save_model` would refuse after them.

    Args:
        model: what is to be saved.
        path: where.

    Raises:
        ModelError: as `save_model`.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ModelError(f"save_model: {path} is a file, expected a folder")
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if names and not names & {"config.json", "adapter_config.json"}:
            raise ModelError(f"save_model: {path} holds {', '.join(sorted(names))} and no model; expected a new folder")
    if not hasattr(model, "get_base_model"):
        if has_adapters(model):
            raise ModelError(
                "save_model: the model has LoRA adapters inside; merge them first, with merge_and_unload()"
            )
    elif not cast("PeftModel", model).get_base_model().name_or_path:
        raise ModelError(
            "save_model: the adapters' base has no folder, and without it they are of no use; before add_lora, save "
            "the base and load it from there with load_model"
        )


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


def load_model(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any causal language model that transformers has a class for, and its tokenizer.

    Read from safetensors only, and no code that comes with the model is run. A folder of LoRA adapters gives the base
    with the adapters merged into its weights, a plain model; the base is where adapter_config.json says, an absolute
    path, one relative to the adapters' folder, or a name as for this function.

    Args:
        name: a folder that `save_model`, transformers, TRL or peft has written; or, as a string and where there is no
            such folder, a name on the Hugging Face hub, such as `gpt2` or `owner/name`, fetched once.

    Returns:
        The model, on the CPU, in evaluation mode and in the number format that it was saved in; the tokenizer, which
        has an end-of-sequence token and may have no padding token.

    Raises:
        ModelError: there is no such model, or something in its folder is missing, damaged, unsafe or does not fit.
    """
    source = locate("load_model", name)
    if source.has(HEAD_FILE):
        raise source.problem("holds a model with a number on each token; read it with load_head")
    with held_messages():
        if is_adapter(source):
            base = base_of(source)
            tokenizer = _read_tokenizer(source if has_tokenizer(source) else base)
            model = merged(source, _read_language_model(base))
        else:
            read_config(source)
            check_weights(source)
            tokenizer = _read_tokenizer(source)  # before the weights, which may take minutes
            model = _read_language_model(source)
        _check_vocabulary(source, model, tokenizer)
    return model.eval(), tokenizer


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone, with its chat template if there is one; the weights are not read, nor fetched.

    Args:
        name: as `load_model`.

    Returns:
        The tokenizer, which has an end-of-sequence token and may have no padding token.

    Raises:
        ModelError: there is no such model, or its tokenizer is missing, damaged or has no end-of-sequence token.
    """
    source = locate("load_tokenizer", name, weights=False)
    with held_messages():
        if not has_tokenizer(source) and is_adapter(source):
            return _read_tokenizer(base_of(source, weights=False))
        return _read_tokenizer(source)


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
    from transformers import AutoModel

    source = locate("load_head", Path(path))
    config = read_config(source)
    contents = check_weights(source, frozenset({HEAD_FILE}))
    if not source.has(HEAD_FILE):
        raise source.problem(f"has no {HEAD_FILE}; a language model is read with load_model")
    with held_messages():
        tokenizer = _read_tokenizer(source)
        model = _read_weights(source, AutoModel, config, contents)
        _check_vocabulary(source, model, tokenizer)
    head = ScalarHead(model)
    with library_errors(source, f"has a {HEAD_FILE} that does not fit the transformer beside it; copy it again"):
        head.linear.load_state_dict(load_file(source.folder / HEAD_FILE))
    return head.eval(), tokenizer


def _read_language_model(source: Source) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = read_config(source)
    contents = check_weights(source)
    no_language_model = source.problem(
        f"holds a {config.model_type} model, which is no causal language model; expected one such as gpt2 or llama"
    )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise no_language_model
    model = _read_weights(source, AutoModelForCausalLM, config, contents)
    # An encoder such as BERT has a class for this task, but each of its tokens sees those after it. GPT-NeoX has the
    # setting of an encoder, and attention that is causal.
    if getattr(config, "is_decoder", None) is False and not any(
        getattr(module, "is_causal", None) is True for module in model.modules()
    ):
        raise no_language_model
    return model


def _read_weights(
    source: Source, auto_class: type[_BaseAutoModelClass], config: PreTrainedConfig, contents: Contents
) -> PreTrainedModel:
    """The model, if its folder has each of its parameters: transformers would fill up with random ones."""
    if source.has("generation_config.json"):
        source.read_object("generation_config.json")
    _check_size(source, auto_class, config, contents)
    with library_errors(source, "cannot be loaded by transformers; copy it again, or see whether it needs a package"):
        model, info = auto_class.from_pretrained(
            source.folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    if info["mismatched_keys"]:
        key, saved, expected = sorted(info["mismatched_keys"])[0]
        raise source.problem(
            f"has weights that do not fit its config.json: {key} has shape {tuple(saved)}, expected {tuple(expected)} "
            f"({len(info['mismatched_keys'])} in all do not fit); they are of two models, copy both again"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise source.problem(
            f"has no weights for {len(missing)} of its model's parameters: {', '.join(missing[:3])}"
            f"{', …' if missing[3:] else ''}; they would be random, so it is not read: copy it again"
        )
    model.name_or_path = model.config._name_or_path = source.address
    return model


def _check_size(
    source: Source, auto_class: type[_BaseAutoModelClass], config: PreTrainedConfig, contents: Contents
) -> None:
    """A model far larger than its files would first be filled with random numbers, and could take all memory."""
    if getattr(config, "quantization_config", None):  # several of the model's numbers are packed in one
        return
    if (getattr(config, "num_hidden_layers", None) or 0) <= contents.tensors:
        text = "has a config.json of which transformers makes no model; copy it again, or install what it needs"
        with library_errors(source, text), torch.device("meta"):
            empty = auto_class.from_config(config, trust_remote_code=False)
        if sum(p.numel() for p in empty.parameters()) <= 2 * contents.numbers:  # what is used twice is saved once
            return
    raise source.problem(
        f"has {contents.tensors} tensors of {contents.numbers:,} numbers as its weights, and a config.json of a far "
        "larger model; they are of two models, copy both again"
    )


def _read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not has_tokenizer(source):
        raise source.problem("has no tokenizer; write it there with tokenizer.save_pretrained")
    if source.has("config.json"):  # decides the class where the tokenizer does not name it
        read_config(source)
    if source.has("tokenizer_config.json"):
        refuse_code(source, "tokenizer_config.json", source.read_object("tokenizer_config.json"))
    with library_errors(source, "has a tokenizer that transformers cannot read; copy its files again"):
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise source.problem(
            "has a tokenizer without an end-of-sequence token, so that no text could end; set tokenizer.eos_token to "
            "one of its tokens and write it there with tokenizer.save_pretrained"
        )
    return tokenizer


def _check_vocabulary(source: Source, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = cast("nn.Embedding", model.get_input_embeddings()).weight.shape[0]
    if len(tokenizer) > rows:
        raise source.problem(
            f"has a tokenizer of {len(tokenizer)} tokens and a model of {rows}; they are of two models, or the model "
            "has yet to be given the new ones: model.resize_token_embeddings(len(tokenizer)), train, and save"
        )
