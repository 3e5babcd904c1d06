"""ShadowLLM: one network for the whole model, which hears its beginning."""

from dataclasses import field

from fewer.calibrate.held import NONE, Held
from fewer.core import Paper, method

from ._narrow import Narrow


@method(
    Paper(
        "2406.16635",
        "ShadowLLM: Predictor-based Contextual Sparsity for Large Language Models",
        2024,
        ledger=350,
        equation="section 3",
    )
)
class Shadow(Narrow):
    """Compute the hidden neurons that one network, from what the first MLP hears, finds likeliest to have the largest |h dL/dh|.

    score = B_l relu(A x) + b_l: A [rank, width] is shared by all MLPs, B_l and b_l are those of MLP l. h dL/dh is how far the loss of
    the text's next tokens moves with a neuron (the paper's plainact).

    `fewer train activations/shadow 30% -o shadow.safetensors` learns, `activations/shadow(file=shadow.safetensors) 30%` computes.

    Differs from the paper: each token is predicted for itself, not a text for all that follows; neurons alone, no heads; cross
    entropy to the true set, not the error of scores. The shared matrix is counted as read once an MLP.

    >>> held = Held({"shared_reads": torch.tensor([[1.0, -1.0]]), "says": torch.tensor([[2.0], [-1.0]]), "bias": torch.tensor([0.0, 4.0])})
    >>> Shadow(parts=held).score(torch.tensor([4.0, 1.0]), observe((), torch.ones(1, 1), torch.ones(1, 1)))  # relu(4 - 1) = 3
    tensor([6., 1.])
    """

    reads = "shared_reads"
    first = True
    feels = True
    rank: int = 256
    file: str = ""
    parts: Held = field(default=NONE, repr=False)
