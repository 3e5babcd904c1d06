"""CoreInfer by similarity: a text that is too short to show its neurons has those of the texts that it is like."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Paper, method
from fewer.select import select

from ._cores import Fixed, cores


@dataclass(frozen=True, eq=False)
class Topics:
    """What was learnt of other texts at one MLP."""

    centres: Float[Tensor, "topics in"]  # the direction of what its texts open
    votes: Float[Tensor, "topics in"]  # how many of its tokens have each neuron in their core


@method(
    Paper(
        "2410.18311",
        "CoreInfer: Accelerating Large Language Model Inference with Semantics-Inspired Adaptive Sparse Activation",
        2024,
        ledger=182,
        equation="section 4.2",
    )
)
class CoreBySimilarity(Fixed):
    """Compute, for the whole rest of a text, the neurons that were loudest in the texts its beginning is most like.

    `fit` deals out other texts to `topics` (k-means on the directions of their mean activations) and counts, for each topic, at how many
    tokens a neuron is in the core: among the share `alpha` of the positive ones, the largest.

    Differs from the paper: texts are told apart by the same MLP's activations, not by a separate embedding; beta is the budget.

    >>> x = torch.tensor([[[3.0, 1.0, 0.0]], [[2.0, 0.9, 0.0]], [[0.0, 1.0, 4.0]]])  # three texts of one token
    >>> m, stats = CoreBySimilarity(topics=2, alpha=0.5).fit(x), observe((), torch.ones(3, 1), torch.ones(1, 1))
    >>> m.begin(torch.tensor([[0.0, 0.5, 1.0]]), budget("1"), stats)
    tensor([False, False,  True])
    """

    learns = True
    topics: int = 8
    alpha: float = 0.4
    known: Topics | None = None

    def fit(self, texts: Float[Tensor, "texts tokens in"]) -> "CoreBySimilarity":
        if len(texts) < self.topics:
            raise ValueError(
                f"core_by_similarity: {len(texts)} texts cannot make {self.topics} topics; give more or ask for fewer"
            )
        try:
            from sklearn.cluster import KMeans
        except ModuleNotFoundError:
            raise ModuleNotFoundError("topics are found by scikit-learn: pip install 'fewer[judge]'") from None
        ways = F.normalize(texts.float().mean(1), dim=-1)
        found = KMeans(self.topics, n_init=4, random_state=0).fit(ways.cpu().numpy())
        of = torch.as_tensor(found.labels_, dtype=torch.long, device=texts.device)
        centres = torch.as_tensor(found.cluster_centers_, dtype=torch.float32, device=texts.device)
        votes = torch.zeros_like(centres).index_add_(0, of, cores(texts, self.alpha).sum(1).float())
        return replace(self, known=Topics(F.normalize(centres, dim=-1), votes))

    def begin(self, x: Float[Tensor, "*batch tokens in"], budget: Budget, stats: Stats) -> Tensor:
        if self.known is None:
            raise ValueError("core_by_similarity has learnt no texts: `fit` it on some first")
        topic: Int[Tensor, " *batch"] = (F.normalize(x.float().mean(-2), dim=-1) @ self.known.centres.mT).argmax(-1)
        return select(self.known.votes[topic], budget)
