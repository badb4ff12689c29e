"""Two faults that later chapters train away: rudeness and repetition. Neither depends on the other."""

import re

from dapedu.reviews.lexicon import RUDE_WORDS

_WORDS = re.compile(r"\w+")


def is_rude(completion: str) -> bool:
    """Whether a word of `lexicon.RUDE_WORDS` occurs.

    Args:
        completion: the text.

    Returns:
        True or False.
    """
    return not RUDE_WORDS.isdisjoint(_WORDS.findall(completion.lower()))


def is_repetitive(completion: str) -> bool:
    """Whether the same four words follow one another twice, each time within a sentence; commas do not count.

    Args:
        completion: the text.

    Returns:
        True or False.
    """
    sentences = (_WORDS.findall(sentence) for sentence in completion.lower().split("."))
    runs = [tuple(words[start : start + 4]) for words in sentences for start in range(len(words) - 3)]
    return len(set(runs)) < len(runs)
