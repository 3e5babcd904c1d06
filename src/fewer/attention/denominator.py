"""Re-ttention: sparse attention's weights are too large, by as much as before."""

from fewer.attention import Answer, Corrector
from fewer.core import Paper, method

TITLE = "Re-ttention: Ultra Sparse Visual Generation via Attention Statistical Reshape"


@method(Paper("2505.22918", TITLE, 2025, ledger=506))
class Denominator(Corrector):
    """Shrink an answer by the ratio of the softmax's denominators, and add the rest: both those of the last query that read all.

    With r = sum over what was read / sum over all, moved towards 1 by `nudge` of the way: r o_i + (full_g - r o_g). Given the true
    ratio, the weights of what was read are those of dense attention.

    Differs from the paper: there the ratio and the rest are those of the same query at a denoising step before, here of a query before, as an
    autoregressive model has no such steps; there the nudge grows from step to step.

    Half of the denominator was read: 0.5 * 4 + (3 - 0.5 * 2).

    >>> got, near, full = ((torch.tensor([[[[x]]]]), torch.tensor([[[y]]]).log()) for x, y in ((4.0, 1.0), (2.0, 1.0), (3.0, 2.0)))
    >>> round(Denominator().correct(got, near, full)[0].item(), 4)
    4.0
    """

    every: int = 64
    nudge: float = 0.0

    def correct(self, got: Answer, near: Answer, full: Answer) -> Answer:
        ratio = (near[1] - full[1]).exp().nan_to_num(1.0).clamp(max=1.0)
        ratio = (ratio + self.nudge * (1 - ratio))[..., None].to(got[0].dtype)
        return ratio * got[0] + (full[0] - ratio * near[0]), got[1] + (full[1] - near[1])
