"""Causal language models: made here by name, loaded and saved, with LoRA adapters, scored, a number on each token.

`tiny` makes small ones, `folders` loads and saves any, on `source`'s checks; `lora` trains few of a model's weights;
`scoring` reads. transformers and peft are imported when a model is made or loaded, so that importing this is light.
"""

from dapedu.models.folders import load_head, load_model, load_tokenizer, require_saveable, save_model
from dapedu.models.lora import add_lora
from dapedu.models.scoring import evaluating, head_rewards, score
from dapedu.models.source import ModelError
from dapedu.models.tiny import SIZES, ScalarHead, Size, tiny_gpt2

__all__ = [
    "SIZES",
    "ModelError",
    "ScalarHead",
    "Size",
    "add_lora",
    "evaluating",
    "head_rewards",
    "load_head",
    "load_model",
    "load_tokenizer",
    "require_saveable",
    "save_model",
    "score",
    "tiny_gpt2",
]
