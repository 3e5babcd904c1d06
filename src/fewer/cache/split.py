"""Split: the queries go where the old keys are."""

from torch import Tensor

from fewer.cache import Form, Pages, Stored
from fewer.core import Paper, method

TITLE = "RetrievalAttention: Accelerating Long-Context LLM Inference via Vector Retrieval"


@method(Paper("2409.10516", TITLE, 2024, ledger=278))
class Split(Form):
    """Keep all but the first and the newest tokens on another `device`, attend to them there, and merge the two by their log-sum-exps.

    With o and l the output and the logarithm of the softmax's denominator of each part: o = sum exp(l_i - l) o_i, l = log sum exp(l_i).
    So only a query goes there, and an output and a number for each head come back. It is attention over all of it but for rounding.

    Differs from the paper: which of the old tokens are read is a pattern's matter (`attention/product_codes` and others); there a graph of
    keys finds them, made of what the prompt's queries read. Two parts; more hosts (ledger 292) merge by the same sum.

    >>> x = torch.tensor([[[1.0, 2.0]]])
    >>> Split().read(Split().write(x, 3 * x), (2, 2))
    (tensor([[[1., 2.]]]), tensor([[[3., 6.]]]))
    """

    sinks: int = 128  # "640 tokens": 128 first and 512 newest
    recent: int = 512
    device: str = "cpu"
    comes = False

    def write(self, k: Pages, v: Pages, learnt: tuple[Tensor, ...] = ()) -> Stored:
        return k, v

    def read(self, stored: Stored, dims: tuple[int, int], learnt: tuple[Tensor, ...] = ()) -> tuple[Pages, Pages]:
        return stored[0], stored[1]
