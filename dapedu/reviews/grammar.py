"""The prompts, their splits, and the grammar by which the people of this world write their reviews."""

import math
import random
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from dapedu.reviews import lexicon
from dapedu.reviews.lexicon import ADVERBS, ASPECTS, HABITS, ITEMS, REMARKS

SPLITS = ("train", "validation", "test")
MAX_TOKENS = 60  # of a completion, its end included

# The odds of a human review. Changing one changes every text, and so every published result.
MOODS = {1: 0.32, 0: 0.34, -1: 0.34}  # good, mixed, bad
JUDGED = {1: 0.25, 2: 0.38, 3: 0.26, 4: 0.11}  # how many aspects
SPOKEN_ADVERBS = {
    "": 0.6,
    "very": 0.14,
    "quite": 0.08,
    "rather": 0.06,
    "slightly": 0.05,
    "not": 0.04,
    "extremely": 0.03,
}
FORMS = {"the room is": 0.48, "i found": 0.2, "i love": 0.2, "clean room": 0.12}
HABIT, SCENE, REMARK, JOINED, VERDICT, THANKS = 0.12, 0.3, 0.24, 0.25, 0.4, 0.12
RUDE = {1: 0.02, 0: 0.09, -1: 0.22}
OFF_TOPIC, FORGOTTEN, ECHO = 0.02, 0.015, 0.035
CONVICTION = 2.0  # adjectives have odds exp(conviction · mood · score)

Choice = TypeVar("Choice")


class Prompt(NamedTuple):
    """Who reviews what: `str()` of it is the text."""

    reviewer: str
    descriptor: str
    item: str

    def __str__(self) -> str:
        return f"{lexicon.with_article(self.reviewer)} reviews the {self.descriptor} {self.item}:"


class _Statement(NamedTuple):
    """What is said of one aspect."""

    words: str
    score: float
    joins: bool  # whether it can be joined to another by "and" or "but"
    echoes: bool  # whether it is long enough to be heard as an echo


def split_prompts(split: str) -> list[Prompt]:
    """The prompts of a split, in the order of the lexicon.

    Reviewers, descriptors and items are numbered in the order of their tables. The last digit of the three numbers'
    sum decides: 8 is for validation, 9 for test, the rest for training. So no prompt is in two splits, and every
    reviewer, descriptor and item is in all three.

    Args:
        split: one of `SPLITS`.

    Returns:
        2,592 prompts for training, 324 for validation and for test.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"reviews: no split {split!r}; there are {', '.join(SPLITS)}")
    return [
        Prompt(reviewer, descriptor, item)
        for a, reviewer in enumerate(HABITS)
        for b, descriptor in enumerate(REMARKS)
        for c, item in enumerate(ITEMS)
        if {8: "validation", 9: "test"}.get((a + b + c) % 10, "train") == split
    ]


def prompts(split: str) -> list[str]:
    """The texts of `split_prompts`, such as "a student reviews the cheap hotel:".

    Args:
        split: one of `SPLITS`.

    Returns:
        2,592 texts for training, 324 for validation and for test.

    Raises:
        ValueError: there is no such split.
    """
    return [str(prompt) for prompt in split_prompts(split)]


def corpus(n: int, *, split: str = "train", seed: int = 0) -> list[dict[str, str]]:
    """Demonstrations: human reviews of prompts drawn from a split.

    Args:
        n: how many.
        split: one of `SPLITS`.
        seed: of all draws, which use nothing but Python's `Random.random`, the same on every machine.

    Returns:
        n records with "prompt" and "completion".

    Raises:
        ValueError: there is no such split, or n is negative.
    """
    if n < 0:
        raise ValueError(f"corpus: n is {n}, expected ≥ 0")
    rng = random.Random(seed)
    population = split_prompts(split)
    drawn = (_one_of(rng, population) for _ in range(n))
    return [{"prompt": str(prompt), "completion": write_review(prompt, rng)} for prompt in drawn]


def write_review(prompt: Prompt, rng: random.Random) -> str:
    """One human review, of at most `MAX_TOKENS` tokens: what comes out longer is written again.

    Args:
        prompt: who reviews what.
        rng: source of the draws.

    Returns:
        The text, such as "we stayed two nights. the room was very clean.".
    """
    while True:
        sentences = _sentences(prompt, rng)
        text = "".join(f"{sentence}. " for sentence in sentences).rstrip()
        if count_tokens(text) <= MAX_TOKENS:
            return text


def count_tokens(completion: str) -> int:
    """Tokens of a human review: its words, its punctuation marks and its end.

    Args:
        completion: the text, of `write_review`.

    Returns:
        Their number.
    """
    return len(completion.split()) + completion.count(".") + completion.count(",") + 1


def _sentences(prompt: Prompt, rng: random.Random) -> list[str]:
    group = ITEMS[prompt.item]
    mood = _pick(rng, MOODS)
    sentences = []
    if rng.random() < HABIT:
        sentences.append(HABITS[prompt.reviewer])
    if rng.random() < SCENE:
        sentences.append(_one_of(rng, group.scenes))

    statements = [_statement(rng, aspect, mood, past=group.past) for aspect in _aspects(rng, prompt.item)]
    for sentence, echoes in _joined(rng, statements):
        sentences.append(sentence)
        if echoes and rng.random() < ECHO:
            prefix = _one_of(rng, ("", *lexicon.ECHOES))
            sentences.append(f"{prefix}, {sentence}" if prefix else sentence)

    if rng.random() < REMARK:
        sentences.append(_pick(rng, _by_mood(REMARKS[prompt.descriptor], mood, conviction=2 * CONVICTION)))
    if rng.random() < RUDE[mood]:
        sentences.append(_one_of(rng, lexicon.RUDE))
    if rng.random() < VERDICT:
        sentences.append(_pick(rng, _by_mood(lexicon.VERDICTS, mood, conviction=2 * CONVICTION)))
    if rng.random() < THANKS:
        sentences.append(_one_of(rng, lexicon.THANKS))
    return sentences


def _aspects(rng: random.Random, item: str) -> list[str]:
    """Aspects of the item, each once, but for the seldom one that is off topic or was judged before."""
    aspects: list[str] = []
    remaining = list(ASPECTS[item])
    for _ in range(_pick(rng, JUDGED)):
        aspect = _one_of(rng, remaining)
        if rng.random() < OFF_TOPIC:
            aspect = _one_of(rng, [other for other in lexicon.KIND_OF if other not in ASPECTS[item]])
        elif aspects and rng.random() < FORGOTTEN:
            aspect = _one_of(rng, aspects)
        else:
            remaining.remove(aspect)
        aspects.append(aspect)
    return aspects


def _statement(rng: random.Random, aspect: str, mood: int, *, past: bool) -> _Statement:
    form = _pick(rng, FORMS)
    if form == "i love":
        verbs = {verb: score for verb, score in lexicon.VERBS.items() if verb.endswith("d") == past}
        verb = _pick(rng, _by_mood(verbs, mood))
        return _Statement(f"i {verb} the {aspect}", verbs[verb], joins=False, echoes=True)

    adverb = _pick(rng, SPOKEN_ADVERBS)
    adjectives = lexicon.adjectives(aspect)
    if adverb == "not":  # "not clean" is said, "not dirty" hardly ever, and "not" has no place in the other forms
        form = "the room is"
        adjectives = {word: score for word, score in adjectives.items() if 0.4 <= score <= 0.8}
    elif adverb:  # nobody says "very superb" or "very okay"
        adjectives = {word: score for word, score in adjectives.items() if 0.4 <= abs(score) <= 0.8}
    factor = ADVERBS.get(adverb, 1.0)
    odds = _by_mood(adjectives, mood, conviction=CONVICTION * factor)
    adjective = _pick(rng, odds)
    opinion = f"{adverb} {adjective}".lstrip()
    score = factor * adjectives[adjective]
    if form == "clean room":
        return _Statement(f"{opinion} {aspect}", score, joins=False, echoes=False)
    if form == "i found":
        return _Statement(f"i found the {aspect} {opinion}", score, joins=False, echoes=True)
    verb = ("were" if past else "are") if aspect in lexicon.PLURAL else ("was" if past else "is")
    return _Statement(f"the {aspect} {verb} {opinion}", score, joins=True, echoes=True)


def _joined(rng: random.Random, statements: list[_Statement]) -> list[tuple[str, bool]]:
    """Sentences, some of which join two statements, by "but" where one praises and the other blames; which may echo."""
    sentences, waiting = [], list(statements)
    while waiting:
        first = waiting.pop(0)
        if waiting and first.joins and waiting[0].joins and rng.random() < JOINED:
            second = waiting.pop(0)
            joint = ", but" if first.score * second.score < 0 else " and"
            sentences.append((f"{first.words}{joint} {second.words}", False))
        else:
            sentences.append((first.words, first.echoes))
    return sentences


def _by_mood(scores: Mapping[str, float], mood: int, conviction: float = CONVICTION) -> dict[str, float]:
    return {word: math.exp(conviction * mood * score) for word, score in scores.items()}


def _one_of(rng: random.Random, options):
    return options[int(rng.random() * len(options))]


def _pick(rng: random.Random, weights: Mapping[Choice, float]) -> Choice:
    # Random.random alone is promised to be the same in every version of Python; Random.choices is not.
    left = rng.random() * sum(weights.values())
    for choice, weight in weights.items():
        left -= weight
        if left < 0:
            return choice
    return choice
