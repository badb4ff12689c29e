"""What is claimed of RRHF: what it needs, what its two terms do, and how it does against PPO and imitation.

Differences are taken laboratory by laboratory; a half is half of the 95 % interval of their mean.
"""

from typing import Any

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_less, is_more

_SOURCE = "the source, section on RRHF"
_PAPER = "arXiv:2304.05302"
_TEACHER, _WOMBAT = "teacher: PPO, gold reward", "Wombat, weight 1"


def _variants(results: dict[str, Any], name: str, metric: str, first: str, second: str) -> Numbers:
    variants = results["reviews_rrhf"]["variants"]
    return difference(name, variants[first][metric], variants[second][metric])


def _lead(results: dict[str, Any], duel: str) -> Numbers:
    """Share of prompts that the first policy of a duel wins, less those that it loses."""
    row = results["reviews_rrhf"][duel]
    return difference("lead", row["wins"], row["loses"])


def _taught(results: dict[str, Any]) -> Numbers:
    """How far Wombat is above Alpaca, trained for as long and for less, and below the teacher."""
    gold = {name: row["gold"] for name, row in results["reviews_teacher"].items()}
    return {
        **difference("over", gold[_WOMBAT], gold["Alpaca, longer"]),
        **difference("below", gold[_TEACHER], gold[_WOMBAT]),
    }


def _shares(results: dict[str, Any]) -> Numbers:
    """Over the numbers of candidates, the least and the largest share of best-of-k's gain that RRHF has."""
    shares = [
        [
            (gold - mean) / (best - mean)
            for gold, mean, best in zip(row["gold"], row["test: mean"], row["test: best"], strict=True)
        ]
        for row in results["reviews_rrhf"]["candidates"].values()
    ]
    return estimate("least", min(shares, key=sum)) | estimate("most", max(shares, key=sum))


def _against_ppo(results: dict[str, Any]) -> Numbers:
    row = results["reviews_rrhf"]["against PPO"]
    return difference("learned", row["first: learned reward"], row["second: learned reward"])


CLAIMS = (
    Claim(
        id="rrhf-1",
        claimed_by=_SOURCE,
        statement="Like SLiC-HF, DPO and IPO, RRHF is trained without a value, a reward or a reference model.",
        remark=(
            "A matter of counting, not of measuring. It is true of RRHF and of SLiC-HF, whose losses see the policy "
            "alone. RRHF does need a reward for every candidate before it begins, from a model or from people."
        ),
        slip=(
            "DPO and IPO need the reference: its log-probabilities stand in their losses, even if they can be computed "
            "once and the model then be put away."
        ),
    ),
    Claim(
        id="rrhf-2",
        claimed_by=_SOURCE,
        statement="RRHF uses rankings of several answers, as OpenAI's RLHF did; open data are mostly pairs.",
        remark=(
            "A statement about papers and data, not about something that runs. RRHF's loss takes any number of ranked "
            "candidates, and InstructGPT's labellers ranked four to nine completions of a prompt (arXiv:2203.02155, "
            "§3.5). With a reward model, rankings cost no more labels than pairs do. What the open data are we did not "
            "count."
        ),
    ),
    Claim(
        id="rrhf-3",
        claimed_by=_SOURCE,
        statement="For a pair, RRHF's ranking loss is SLiC-HF's hinge without a margin.",
        remark=(
            "For completions of equal length they are the same up to a factor; for others they want different things, "
            "and the authors' code, which leaves the division out in effect, is on sums as well."
        ),
        slip="SLiC-HF's hinge is on sums of log-probabilities, RRHF's on means per token.",
        evidence=("reviews_rrhf",),
        numbers=lambda results: _variants(results, "longer", "length", "as published", "sums, weight 1"),
        measured=(
            "the length of completions after RRHF on means, less that after RRHF on sums, λ = 1 in both, is "
            "{longer:+.1f} "
            "± {longer_half:.1f} tokens, " + LABORATORIES + "."
        ),
        holds_if=lambda n: abs(n["longer"]) <= n["longer_half"],
    ),
    Claim(
        id="rrhf-4",
        claimed_by=_SOURCE,
        statement="It is well to give the best candidate a likelihood loss as well.",
        remark=(
            "The source's reason is that it would be a waste not to use it. It is more than that: without it nothing "
            "holds the policy to texts that somebody has judged. The ranking term is the one that can be left out "
            "here."
        ),
        evidence=("reviews_rrhf",),
        numbers=lambda results: _variants(results, "more", "gold", "tuned", "no likelihood term"),
        measured=(
            "with the likelihood term the gold reward is {more:+.2f} ± {more_half:.2f} above that without it, all else "
            "equal, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "more"),
    ),
    Claim(
        id="rrhf-5",
        claimed_by=f"{_SOURCE}; {_PAPER}",
        statement="With the same reward model RRHF is slightly preferred to PPO.",
        remark=(
            "The paper's people had 27 wins, 48 ties and 25 losses, which are no difference. Here the gold reward "
            "judges, no people. Both were tuned by eight random trials, and by the learned reward they are equal."
        ),
        evidence=("reviews_rrhf",),
        numbers=lambda results: _lead(results, "against PPO"),
        measured=(
            "of 2,048 test prompts the share on which RRHF's completion has more gold reward than PPO's, less the "
            "share on which it has less, is {lead:+.3f} ± {lead_half:.3f}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "lead"),
    ),
    Claim(
        id="rrhf-6",
        claimed_by=f"{_SOURCE}; {_PAPER}",
        statement="A second round, on candidates of the once trained model, beats a single one.",
        remark=(
            "With as many completions judged and as many steps in all. It goes twice as far for it in KL: two rounds "
            "of k are worth best of k². In the paper people saw 10 wins and 90 ties."
        ),
        evidence=("reviews_rrhf",),
        numbers=lambda results: _lead(results, "two rounds against one"),
        measured=(
            "of 2,048 test prompts the share on which two rounds have more gold reward than one, less the share on "
            "which they have less, is {lead:+.3f} ± {lead_half:.3f}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "lead"),
    ),
    Claim(
        id="rrhf-10",
        claimed_by=f"{_SOURCE}; {_PAPER}",
        statement="Ranking a teacher's answers (Wombat) beats imitating them (Alpaca), and does not reach the teacher.",
        remark=(
            "Choosing is what helps: imitating the best of the same answers gives as much as Wombat. And here the "
            "student goes past its teacher, since the gold reward chose among four writers' answers; the paper's judge "
            "was the teacher."
        ),
        slip=(
            "The source has ChatGPT write all of Wombat's candidates; in the paper they are four models', Alpaca's own "
            "among them, and ChatGPT ranks them."
        ),
        evidence=("reviews_teacher",),
        numbers=_taught,
        measured=(
            "Wombat's gold reward less that of an Alpaca trained for as long is {over:+.3f} ± {over_half:.3f}; the "
            "teacher's less Wombat's {below:+.3f} ± {below_half:.3f}; " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "over") and is_more(n, "below"),
        holds_if=lambda n: is_more(n, "over"),
    ),
    Claim(
        id="rrhf-11",
        claimed_by=_SOURCE,
        statement="RRHF came from Alibaba, the makers of Qwen.",
        remark=(
            "History, not something that runs. The authors are at Alibaba's DAMO Academy and at Tsinghua University."
        ),
        slip="It came before Qwen: the paper is of April 2023, Qwen's first open weights are of August.",
    ),
    Claim(
        id="rrhf-12",
        claimed_by=_PAPER,
        statement="RRHF learns best-of-n: its reward comes close to the mean of the candidates' largest.",
        remark=(
            "As a direction: RRHF has more than half of the gain for every k, and stays short of it. Imitating the "
            "best converges to best of k if the policy can be anything and the texts do not run out; neither is so."
        ),
        evidence=("reviews_rrhf",),
        numbers=_shares,
        measured=(
            "with {settings[reviews_rrhf][candidates][0]} to {settings[reviews_rrhf][candidates][3]} candidates of "
            "{settings[reviews_rrhf][prompts]} prompts, RRHF on the gold reward has between {least:.2f} ± "
            "{least_half:.2f} and {most:.2f} ± {most_half:.2f} of what best of k gains over the SFT model, "
            + LABORATORIES
            + "."
        ),
        holds=lambda n: is_more(n, "least", 0.8) and is_less(n, "most", 1.2),
        holds_if=lambda n: is_more(n, "least", 0.5) and is_less(n, "most", 1.2),
    ),
    Claim(
        id="rrhf-13",
        claimed_by=f"{_PAPER}, headline",
        statement="By the reward model both were trained on, it has PPO's reward: −1.03 as well, or −0.96 on samples.",
        remark=(
            "The condition: as far as five laboratories can tell; a tenth of a unit either way would be missed. By the "
            "gold reward PPO is ahead (rrhf-5)."
        ),
        evidence=("reviews_rrhf",),
        numbers=_against_ppo,
        measured="RRHF's learned reward less PPO's is {learned:+.2f} ± {learned_half:.2f}, " + LABORATORIES + ".",
        holds=lambda n: is_more(n, "learned"),
        holds_if=lambda n: abs(n["learned"]) <= n["learned_half"],
    ),
    Claim(
        id="rrhf-14",
        claimed_by=f"{_PAPER}, ablation",
        statement="Without the ranking term the reward is lower: −1.14 instead of −1.03 or −0.96.",
        remark=(
            "Here the term earns nothing. In the paper the candidates differ too: from beam search without the term, "
            "from diverse beam search or sampling with it."
        ),
        evidence=("reviews_rrhf",),
        numbers=lambda results: _variants(results, "more", "gold", "tuned", "no ranking term"),
        measured=(
            "with the ranking term the gold reward is {more:+.3f} ± {more_half:.3f} above that without it, all else "
            "equal, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "more"),
    ),
)
