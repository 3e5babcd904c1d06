"""DejaVu: a small network for each MLP says which of its neurons will matter."""

from dataclasses import field

from fewer.calibrate.held import NONE, Held
from fewer.core import Paper, method

from ._narrow import Narrow


@method(
    Paper(
        "2310.17157", "Deja Vu: Contextual Sparsity for Efficient LLMs at Inference Time", 2023, equation="section 4.1"
    )
)
class DejaVu(Narrow):
    """Compute the hidden neurons that a network of two layers, narrow between them, finds likeliest to be among the largest |h|.

    score = B relu(A x) + b, with x what the MLP hears, A [rank, width] and B [neurons, rank]; learnt as log-odds, by cross
    entropy, for the budget that it is learnt with.

    `fewer train activations/deja_vu 30% -o predictor.safetensors` learns, `activations/deja_vu(file=predictor.safetensors) 30%` computes.

    Differs from the paper: hears its own MLP's input, where the paper's hears an earlier layer's so that it runs beside it; MLPs
    alone, no heads.

    >>> held = Held({"reads": torch.tensor([[1.0, -1.0]]), "says": torch.tensor([[2.0], [-1.0]]), "bias": torch.tensor([0.0, 4.0])})
    >>> DejaVu(parts=held).score(torch.tensor([4.0, 1.0]), observe((), torch.ones(1, 1), torch.ones(1, 1)))  # relu(4 - 1) = 3
    tensor([6., 1.])
    """

    rank: int = 64
    file: str = ""
    parts: Held = field(default=NONE, repr=False)
