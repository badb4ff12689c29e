"""A tokenizer of a few words and models that have opinions about them."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from dapedu.models import tiny_gpt2

SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}  # ids 0, 1, 2


def word_tokenizer(words: str, *, special: dict[str, str] = SPECIAL) -> PreTrainedTokenizerFast:
    vocabulary = {word: token for token, word in enumerate([*special.values(), *words.split()])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=special.get("unk_token", words.split()[0])))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def opinionated(*, vocab_size: int, n_positions: int = 16, seed: int = 0) -> GPT2LMHeadModel:
    """A random model whose distributions are far from uniform, and which does not just repeat the last token."""
    model = tiny_gpt2("tiny", vocab_size=vocab_size, n_positions=n_positions, seed=seed, pad_token_id=0, eos_token_id=1)
    signs = torch.randn(64, generator=torch.Generator().manual_seed(seed)).sign()
    with torch.no_grad():
        model.transformer.ln_f.weight.copy_(8 * signs)
    return model
