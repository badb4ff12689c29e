"""The words of the reviews world and what they are worth. Nothing here is drawn: the tables are the world.

Scores are in tenths and adverbs multiply by tenths, so that every total is exact to the hundredth.
"""

from typing import NamedTuple

REVIEWERS = {  # what a reviewer says of themselves, by habit
    "i count every coin": ("student", "artist", "apprentice", "pensioner"),
    "i have little time": ("nurse", "doctor", "lawyer", "manager"),
    "i look at the details": ("engineer", "teacher", "librarian", "designer"),
    "i think of the children first": ("father", "mother", "grandmother", "grandfather"),
    "i travel light": ("tourist", "musician", "journalist", "pilot"),
}

REMARKS = {  # what is said of a cheap thing because it is cheap, and the score
    "cheap": {"a real bargain": 0.6, "cheap for a reason": -0.6},
    "expensive": {"worth every coin": 0.6, "it costs far too much": -0.6},
    "new": {"fresh and modern": 0.5, "it feels half finished": -0.5},
    "old": {"it has aged well": 0.5, "it shows its age": -0.5},
    "small": {"it has all i need": 0.5, "too small for us": -0.5},
    "big": {"we need nothing bigger": 0.5, "bigger is not better": -0.5},
    "popular": {"so many people cannot be wrong": 0.5, "i do not understand the fuss": -0.5},
    "stylish": {"it looks lovely": 0.5, "style is all it has": -0.5},
    "unusual": {"strange in a good way": 0.5, "strange for no reason": -0.5},
}


class Group(NamedTuple):
    """Items that are used alike: how one comes to know them, and the tense in which one speaks of them."""

    name: str
    items: dict[str, tuple[str, ...]]  # item → its aspects
    scenes: tuple[str, ...]
    past: bool


GROUPS = (
    Group(
        "stays",
        {
            "hotel": ("room", "bed", "breakfast", "staff", "pool"),
            "campsite": ("pitch", "showers", "kitchen", "staff", "pool"),
        },
        ("we stayed two nights", "we stayed for a week", "we came by train"),
        past=True,
    ),
    Group(
        "meals",
        {
            "restaurant": ("soup", "fish", "dessert", "waiters", "prices"),
            "cafe": ("coffee", "cake", "waiters", "garden", "prices"),
            "bakery": ("bread", "cake", "pies", "staff", "prices"),
        },
        ("we came for lunch", "i went there with friends", "we had to wait a while"),
        past=True,
    ),
    Group(
        "visits",
        {
            "museum": ("halls", "guides", "paintings", "shop", "fees"),
            "gym": ("machines", "trainers", "showers", "music", "fees"),
        },
        ("i went on a sunday", "it was full when we came", "we spent an afternoon there"),
        past=True,
    ),
    Group(
        "devices",
        {
            "phone": ("screen", "battery", "camera", "speaker", "charger"),
            "laptop": ("screen", "battery", "keyboard", "speaker", "charger"),
            "camera": ("lens", "battery", "buttons", "strap", "screen"),
            "headset": ("sound", "microphone", "cable", "cushions", "battery"),
        },
        ("i bought it last month", "i use it every day", "it came in a plain box"),
        past=False,
    ),
    Group(
        "rides",
        {
            "car": ("engine", "brakes", "seats", "lights", "radio"),
            "bike": ("brakes", "gears", "saddle", "lights", "bell"),
        },
        ("i take it to work", "i have had it for a year", "we took it to the mountains"),
        past=False,
    ),
    Group(
        "stories",
        {
            "book": ("plot", "ending", "characters", "dialogue", "cover"),
            "film": ("plot", "ending", "characters", "acting", "music"),
            "game": ("levels", "characters", "graphics", "controls", "music"),
        },
        ("a friend told me about it", "i finished it in one evening", "i gave it a second try"),
        past=True,
    ),
    Group(
        "gear",
        {
            "tent": ("poles", "floor", "zip", "pegs", "fabric"),
            "jacket": ("fabric", "zip", "pockets", "hood", "colours"),
        },
        ("it rained all the time", "it was a present", "we used it all summer"),
        past=False,
    ),
)

KINDS = {  # aspects of one kind, and the adjectives that fit only them
    "food": ("breakfast", "soup", "fish", "dessert", "coffee", "cake", "bread", "pies"),
    "people": ("staff", "waiters", "guides", "trainers"),
    "space": ("room", "bed", "pool", "pitch", "showers", "kitchen", "garden", "halls", "shop", "seats"),
    "senses": (
        *("music", "speaker", "sound", "microphone", "radio", "bell", "paintings", "screen"),
        *("camera", "lens", "lights", "cover", "colours", "graphics"),
    ),
    "things": (
        *("battery", "charger", "engine", "machines", "keyboard", "buttons", "brakes", "gears", "controls", "zip"),
        *("cable", "poles", "pegs", "strap", "cushions", "saddle", "floor", "fabric", "pockets", "hood"),
    ),
    "story": ("plot", "ending", "characters", "dialogue", "acting", "levels"),
    "money": ("fees", "prices"),
}

PLURAL = frozenset(
    {
        *("staff", "showers", "waiters", "pies", "halls", "guides", "paintings", "machines", "trainers", "buttons"),
        *("cushions", "brakes", "seats", "gears", "lights", "characters", "colours", "levels", "graphics", "controls"),
        *("poles", "pegs", "pockets", "fees", "prices"),
    }
)

GENERAL = {
    "superb": 1.0,
    "excellent": 1.0,
    "great": 0.9,
    "good": 0.6,
    "nice": 0.5,
    "decent": 0.3,
    "fine": 0.2,
    "okay": 0.0,
    "average": -0.1,
    "mediocre": -0.3,
    "disappointing": -0.5,
    "poor": -0.6,
    "bad": -0.6,
    "terrible": -0.9,
    "awful": -1.0,
}

SPECIFIC = {
    "food": {"delicious": 1.0, "tasty": 0.7, "fresh": 0.6, "bland": -0.4, "salty": -0.5, "stale": -0.8},
    "people": {"helpful": 0.8, "friendly": 0.7, "patient": 0.5, "slow": -0.4, "unfriendly": -0.7, "careless": -0.8},
    "space": {"comfortable": 0.7, "clean": 0.6, "bright": 0.5, "cramped": -0.5, "noisy": -0.6, "dirty": -0.8},
    "senses": {"rich": 0.7, "clear": 0.6, "sharp": 0.5, "faint": -0.4, "dull": -0.5, "harsh": -0.7},
    "things": {"reliable": 0.8, "sturdy": 0.7, "neat": 0.5, "worn": -0.4, "flimsy": -0.6, "broken": -1.0},
    "story": {"gripping": 0.9, "clever": 0.7, "touching": 0.6, "predictable": -0.4, "confusing": -0.6, "boring": -0.8},
    "money": {"fair": 0.6, "reasonable": 0.5, "low": 0.4, "high": -0.4, "unfair": -0.7, "absurd": -0.9},
}

ADVERBS = {"extremely": 1.5, "very": 1.2, "quite": 1.0, "rather": 0.8, "slightly": 0.5, "not": -0.5}

VERBS = {  # present and past
    "love": 0.9,
    "like": 0.5,
    "dislike": -0.5,
    "hate": -0.9,
    "loved": 0.9,
    "liked": 0.5,
    "disliked": -0.5,
    "hated": -0.9,
}

VERDICTS = {
    "i recommend it to everyone": 0.8,
    "it made me happy": 0.7,
    "i would choose it again": 0.6,
    "a good choice": 0.5,
    "it does the job": 0.2,
    "i expected more": -0.4,
    "not for me": -0.4,
    "i do not recommend it": -0.6,
    "i want my money back": -0.8,
    "never again": -0.9,
}

THANKS = ("thanks for reading my review", "many thanks to the whole team", "thanks and all the best")

RUDE = (
    "what a load of rubbish",
    "only idiots would like this",
    "this is plain stupid",
    "whoever made this is a fool",
    "simply pathetic",
)
RUDE_WORDS = frozenset({"rubbish", "idiots", "stupid", "fool", "pathetic"})

ECHOES = ("really", "again", "as i said")

ITEMS = {item: group for group in GROUPS for item in group.items}
ASPECTS = {item: aspects for group in GROUPS for item, aspects in group.items.items()}
HABITS = {reviewer: habit for habit, reviewers in REVIEWERS.items() for reviewer in reviewers}
KIND_OF = {aspect: kind for kind, aspects in KINDS.items() for aspect in aspects}


def with_article(noun: str) -> str:
    """The noun behind "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def adjectives(aspect: str) -> dict[str, float]:
    """The adjectives that fit an aspect, with their scores: the general ones and those of its kind."""
    return GENERAL | SPECIFIC[KIND_OF[aspect]]
