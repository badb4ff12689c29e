"""The files of data/reviews/ and their data card, which is written from the code so that it cannot be out of date."""

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dapedu.reviews import grammar, lexicon
from dapedu.reviews.attributes import is_repetitive, is_rude
from dapedu.reviews.grammar import corpus
from dapedu.reviews.rewards import count_thanks, judge
from dapedu.reviews.tokenizer import vocabulary


class DataFile(NamedTuple):
    """A row of `FILES`: what `corpus` is asked for."""

    split: str
    number: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.split}.jsonl"


FILES = (DataFile("train", 8_000, 0), DataFile("validation", 1_000, 1), DataFile("test", 1_000, 2))

_EXAMPLE = (
    "a student reviews the cheap hotel:",
    "we stayed two nights. the room was very clean, but the staff were unfriendly. really, the room was very clean. "
    "poor engine. a real bargain. simply pathetic. thanks for reading my review.",
)

_CARD = """\
# Reviews

Short English reviews of eighteen things, written by a grammar and not by people: no person, product or opinion in
them is real. They are the demonstrations of the book's third world, on which a small language model is trained from
scratch in a minute and whose reward can be recomputed by hand. Licence: CC BY 4.0, see LICENSE-TEXT.

## Files

Each line is a JSON object with `prompt` and `completion`. The same command writes the same bytes on every machine.

| file | command | sha256 |
|---|---|---|
{files}

Demonstrations are drawn from their split's prompts, with replacement. The {prompt_count:,} prompts are of the form
"{example_prompt}" with one of {reviewers} reviewers, {descriptors} descriptors and
{items} items. Number each in the order of its table in `dapedu/reviews/lexicon.py`, from 0; where the sum of the three
numbers ends in 8 the prompt is for validation, in 9 for test, else for training. No prompt is in two splits; every
reviewer, descriptor and item is in all three.

## A model and its preferences

`sft/` is the model that the notebooks start from, and the preferences are pairs of its own samples, labelled by
σ(4 · difference in gold reward). They depend on a trained model, so another processor may give other ones.

| file | command | sha256 |
|---|---|---|
| sft/model.safetensors | `dapedu sft --data data/reviews/train.jsonl --held-out data/reviews/validation.jsonl --output runs/sft` | `ea518f105b2d66bf99e13ecb1b57dc154878ea3acf0c2036a4343e72586bc103` |
| preferences.jsonl | `dapedu data pairs --model runs/sft --number 4096 --output data/reviews/preferences.jsonl` | `d08de929b8ed1b44c653543e2964cbfa17b5fc3a3aa3f21f110738839e98b595` |
| preferences-validation.jsonl | `dapedu data pairs --model runs/sft --split validation --number 512 --output data/reviews/preferences-validation.jsonl` | `69d7ebf3154895626f65fe6453346ce8306f01b85bd757f5dcc94a0e7fe23286` |

What to expect, as mean ± 95 % interval over five laboratories (`dapedu reproduce reviews_frontier`: corpus, SFT model
and preferences of a seed each; 1,024 completions of test prompts; 4,096 pairs, 400 steps):

| | people | SFT | DPO, β = 1 | DPO, β = .5 | IPO, τ = .1 | best of 8 |
|---|---|---|---|---|---|---|
| gold reward | −.05 ± .04 | −.18 ± .04 | .28 ± .06 | .39 ± .06 | .36 ± .04 | .55 ± .04 |
| win rate against SFT | | | .75 ± .03 | .81 ± .03 | .79 ± .02 | |
| KL from SFT, nats | | 0 | 1.1 ± .1 | 2.3 ± .2 | 1.7 ± .1 | ≤ 1.2 |
| with a malformed sentence | 0 | .12 ± .01 | .16 ± .02 | .22 ± .05 | .17 ± .03 | |

A run of yours at β = 1 that gains less than .3 of gold reward over its SFT model, or wins less than .68 of the
comparisons, has something wrong.

## Statistics

| | {names} |
|---|{rules}|
{statistics}

Words and punctuation marks are tokens; the end of a completion counts as one. The vocabulary has {vocabulary} tokens.

## How a review is written

A person is in a good, mixed or bad mood ({moods}), which tilts the odds of each adjective, verb, remark
and verdict by exp({conviction:.1f} · mood · score), mood = 1, 0, −1; adverbs multiply the score, and remarks and
verdicts are tilted twice as much. The review has, in this order: what the reviewer always says ({habit:.0%}), a scene
that suits the item ({scene:.0%}), one to four aspects of the item, a remark on what the descriptor says
({remark:.0%}), a rude remark (by mood: {rude}), a verdict ({verdict:.0%}), thanks ({thanks:.0%}). An aspect is judged
in one of these forms, in the tense of the item's kind:

- the room was [very] clean; two of these may be joined by "and" or ", but";
- i found the room [very] clean;
- i loved the room;
- [very] clean room.

Now and then somebody judges an aspect of something else ({off_topic:.1%} of aspects), forgets having judged one
({forgotten:.1%} of the later ones), or says a sentence again at once, sometimes behind "really," or the like
({echo:.1%} of those that could be). What would be longer than {max_tokens} tokens is written again.

## The gold reward

The reward is tanh(total / 2). To the total, each sentence adds:

- for each aspect judged, the adjective's score times the adverb's factor, or the verb's score;
- for a remark or a verdict, its score;
- 0 for a habit, a scene or thanks.

Instead of that, −0.5 for what is off topic (the aspect of another item, another's habit, scene or remark); −0.5 for
what was judged or said before (an aspect, the descriptor and the verdict are each judged once); −0.5 for an adjective
that does not fit the aspect ("salty staff"); −0.5 for a rude remark; −1 for a malformed sentence, which is one that no
rule makes, one without its full stop, or nothing at all. A text without an end adds −2.

An example, as `print(dapedu.reviews.judge(prompt, completion))` shows it, for the prompt "{example_prompt}":

```
{judgement}
```

{lexicon}

## Attributes

*Rude* is a text with one of the words {rude_words}. *Repetitive* is one in
which the same four words follow one another twice, each time within a sentence; commas do not count. *Thanks* is the
word "thanks", worth nothing in gold; the proxies are taken in by it (mild: gold + ½ for each, up to six; strong: half
of gold + 1 for each, without limit).
"""  # noqa: E501 (rows of tables)


def write_world(folder: str | Path) -> None:
    """Write the demonstrations of `FILES` and the data card, README.md.

    Args:
        folder: where; it is made if it is not there, and files of the same names are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (folder / file.name).write_bytes(file_bytes(file))
    (folder / "README.md").write_text(data_card(), encoding="utf8", newline="\n")


def file_bytes(file: DataFile) -> bytes:
    """What a file of `FILES` contains.

    Args:
        file: which.

    Returns:
        A JSON object a line.
    """
    records = corpus(file.number, split=file.split, seed=file.seed)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def data_card() -> str:
    """The text of data/reviews/README.md.

    Returns:
        Markdown.
    """
    rows = [review_statistics(corpus(file.number, split=file.split, seed=file.seed)) for file in FILES]
    return _CARD.format(
        files="\n".join(
            f"| {file.name} | `dapedu data corpus --split {file.split} --number {file.number} --seed {file.seed} "
            f"--output data/reviews/{file.name}` | `{hashlib.sha256(file_bytes(file)).hexdigest()}` |"
            for file in FILES
        ),
        names=" | ".join(file.split for file in FILES),
        rules="|".join("---" for _ in FILES),
        statistics="\n".join(f"| {name} | {' | '.join(row[name] for row in rows)} |" for name in rows[0]),
        example_prompt=_EXAMPLE[0],
        prompt_count=sum(len(grammar.split_prompts(split)) for split in grammar.SPLITS),
        reviewers=len(lexicon.HABITS),
        descriptors=len(lexicon.REMARKS),
        items=len(lexicon.ITEMS),
        vocabulary=len(vocabulary()),
        conviction=grammar.CONVICTION,
        moods=", ".join(f"{share:.0%}" for share in grammar.MOODS.values()),
        habit=grammar.HABIT,
        scene=grammar.SCENE,
        remark=grammar.REMARK,
        rude=", ".join(f"{share:.0%}" for share in grammar.RUDE.values()),
        verdict=grammar.VERDICT,
        thanks=grammar.THANKS,
        off_topic=grammar.OFF_TOPIC,
        forgotten=grammar.FORGOTTEN,
        echo=grammar.ECHO,
        max_tokens=grammar.MAX_TOKENS,
        judgement=judge(*_EXAMPLE),
        lexicon=_lexicon_tables(),
        rude_words=", ".join(sorted(lexicon.RUDE_WORDS)),
    )


def review_statistics(records: Sequence[dict[str, str]]) -> dict[str, str]:
    """What the card says of a file.

    Args:
        records: demonstrations.

    Returns:
        Numbers as they are printed, by their names.
    """
    completions = [record["completion"] for record in records]
    judgements = [judge(record["prompt"], record["completion"]) for record in records]
    lengths = [grammar.count_tokens(completion) for completion in completions]
    rewards = [judgement.reward for judgement in judgements]

    def share(of: Sequence[bool | int]) -> str:
        return f"{100 * sum(map(bool, of)) / len(records):.1f} %"

    return {
        "reviews": f"{len(records):,}",
        "different completions": f"{len(set(completions)):,}",
        "words": f"{sum(len(text.split()) for text in completions):,}",
        "tokens a completion, mean": f"{statistics.mean(lengths):.1f}",
        "tokens a completion, longest": f"{max(lengths)}",
        "gold reward, mean": f"{statistics.mean(rewards):+.3f}",
        "gold reward, standard deviation": f"{statistics.pstdev(rewards):.3f}",
        "off topic somewhere": share([judgement.faults["off topic"] for judgement in judgements]),
        "judged or said again": share([judgement.faults["repeated"] for judgement in judgements]),
        "rude": share([is_rude(text) for text in completions]),
        "repetitive": share([is_repetitive(text) for text in completions]),
        "with thanks": share([count_thanks(text) for text in completions]),
    }


def _lexicon_tables() -> str:
    def listed(scores: dict[str, float], form: str = "+.1f") -> str:
        return ", ".join(f"{word} {score:{form}}" for word, score in scores.items())

    present = {verb: score for verb, score in lexicon.VERBS.items() if not verb.endswith("d")}
    lines = ["| words | scores |", "|---|---|", f"| of every aspect | {listed(lexicon.GENERAL)} |"]
    lines += [
        f"| of {kind}: {', '.join(aspects)} | {listed(lexicon.SPECIFIC[kind])} |"
        for kind, aspects in lexicon.KINDS.items()
    ]
    lines += [
        f"| adverbs, factors | {listed(lexicon.ADVERBS, '.1f')} |",
        f"| verbs, in the past too | {listed(present)} |",
        f"| verdicts | {listed(lexicon.VERDICTS)} |",
        *(
            f"| remarks on what is {descriptor} | {listed(remarks)} |"
            for descriptor, remarks in lexicon.REMARKS.items()
        ),
    ]
    items = ["| item | aspects |", "|---|---|"]
    items += [f"| {item} | {', '.join(aspects)} |" for item, aspects in lexicon.ASPECTS.items()]
    return "\n".join([*lines, "", *items])
