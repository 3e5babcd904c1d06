"""Delta attention: what one query missed, the next ones missed too."""

from fewer.attention import Answer, Corrector
from fewer.core import Paper, method

TITLE = "Delta Attention: Fast and Accurate Sparse Attention Inference by Delta Correction"


@method(Paper("2505.11254", TITLE, 2025, ledger=3))
class Delta(Corrector):
    """Let every `every`-th query read all, and add what it got beyond its sparse answer to the answers of those behind it.

    o_i + (full_g - o_g), g being the last such query up to i. Where attention drifts slowly this restores the output's distribution, which
    sparse attention shifts.

    Differs from the paper: while decoding, where it reads all, it may correct too; the denominator's logarithm, which learnable sinks and
    merging ask for, is shifted alike.

    >>> lse = torch.zeros(1, 1, 1)
    >>> got, near, full = ((torch.tensor([[[[x]]]]), lse) for x in (3.0, 2.0, 2.5))
    >>> Delta().correct(got, near, full)[0].item()
    3.5
    """

    every: int = 64  # the paper's gamma

    def correct(self, got: Answer, near: Answer, full: Answer) -> Answer:
        return got[0] + (full[0] - near[0]), got[1] + (full[1] - near[1])
