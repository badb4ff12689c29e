"""World 1, the bandit: n responses, π = softmax(θ), and a closed form to hold every curve against.

The setting is §5.4 of the IPO paper (arXiv:2310.12036). A dataset is a list of (winner, loser) indices, or a
table that counts them; tables come in batches, so thousands of sampled datasets are fitted at once.
"""

from dapedu.bandit.comparisons import DATASETS, Pairs, count_wins, order_with_flips, sample_wins
from dapedu.bandit.optima import (
    WinGraph,
    WinGroups,
    best_of_n,
    bradley_terry_rewards,
    fit_bradley_terry,
    fit_ipo,
    ipo_optimum,
    rlhf_optimum,
    win_graph,
    win_groups,
)
from dapedu.bandit.training import BanditRun, draw_batches, train_bandit

__all__ = [
    "DATASETS",
    "BanditRun",
    "Pairs",
    "WinGraph",
    "WinGroups",
    "best_of_n",
    "bradley_terry_rewards",
    "count_wins",
    "draw_batches",
    "fit_bradley_terry",
    "fit_ipo",
    "ipo_optimum",
    "order_with_flips",
    "rlhf_optimum",
    "sample_wins",
    "train_bandit",
    "win_graph",
    "win_groups",
]
