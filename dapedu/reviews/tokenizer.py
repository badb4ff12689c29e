"""A tokenizer of whole words in the Hugging Face format: a reader sees every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dapedu.reviews import lexicon

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
PUNCTUATION = (".", ",", ":")


def vocabulary() -> list[str]:
    """Every token, in the order of its id: the special tokens, the punctuation, the words by the alphabet.

    Returns:
        The tokens.
    """
    fixed = [
        "a an reviews the i found is are was were and but as",
        *lexicon.HABITS,
        *lexicon.REVIEWERS,
        *lexicon.ITEMS,
        *lexicon.KIND_OF,
        *lexicon.GENERAL,
        *(word for adjectives in lexicon.SPECIFIC.values() for word in adjectives),
        *lexicon.ADVERBS,
        *lexicon.VERBS,
        *(scene for group in lexicon.GROUPS for scene in group.scenes),
        *lexicon.REMARKS,
        *(remark for remarks in lexicon.REMARKS.values() for remark in remarks),
        *lexicon.VERDICTS,
        *lexicon.THANKS,
        *lexicon.RUDE,
        *lexicon.ECHOES,
    ]
    words = {word for text in fixed for word in text.split()}
    return [*SPECIAL_TOKENS, *PUNCTUATION, *sorted(words)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the reviews world; `save_pretrained` writes it, `AutoTokenizer.from_pretrained` reads it.

    Words and punctuation marks are tokens, in lower case. It adds no special token by itself. Every sequence of ids
    without special tokens is the encoding of its own text, so that text records lose nothing; and a completion has
    the same tokens behind its prompt as alone.

    Returns:
        A fast tokenizer with <pad> = 0, <eos> = 1, <unk> = 2.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pad, eos, unknown = SPECIAL_TOKENS
    ids = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),  # a space before each token but the first
            decoders.Replace(Regex(r" (?=[.,:])"), ""),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        unk_token=unknown,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
