"""World 3, reviews: short product reviews from a documented grammar, and a reward that can be recomputed by hand.

`lexicon` holds every word and score, `grammar` the odds by which people write, `rewards` the rules of the judge.
"""

from dapedu.reviews.attributes import is_repetitive, is_rude
from dapedu.reviews.card import write_world
from dapedu.reviews.collect import draw_prompts, gold_rewards, make_model, preferences, proxy_rewards, rankings
from dapedu.reviews.grammar import MAX_TOKENS, SPLITS, corpus, prompts
from dapedu.reviews.labels import label_pairs
from dapedu.reviews.rewards import FAULTS, PROXIES, Judgement, Line, count_thanks, gold_reward, judge, proxy_reward
from dapedu.reviews.tokenizer import make_tokenizer

__all__ = [
    "FAULTS",
    "MAX_TOKENS",
    "PROXIES",
    "SPLITS",
    "Judgement",
    "Line",
    "corpus",
    "count_thanks",
    "draw_prompts",
    "gold_reward",
    "gold_rewards",
    "is_repetitive",
    "is_rude",
    "judge",
    "label_pairs",
    "make_model",
    "make_tokenizer",
    "preferences",
    "prompts",
    "proxy_reward",
    "proxy_rewards",
    "rankings",
    "write_world",
]
