"""CSR: a key is a few atoms of a dictionary."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from fewer.cache import Form, Pages, Stored
from fewer.core import Paper, method
from fewer.select import pursue

TITLE = "CSR: Achieving 1 Bit Key-Value Cache via Sparse Representation"


@method(Paper("2412.11741", TITLE, 2024, ledger=308))
class SparseCodes(Form):
    """Store of each key and each value which `atoms` of a dictionary of `size` spell it, and how much of each.

    Atoms are found by orthogonal matching pursuit. A vector takes 2 bytes for each index (1 for up to 256 atoms) and 1 for each amount, which is one of
    255 steps up to the vector's largest, kept in float16. Keys and values have a dictionary each.

    Differs from the paper: its dictionaries (NeuralDict) are trained beforehand by gradient; here those of a layer are learnt from the first pages that
    are stored, `rounds` times coding and refitting (method of optimal directions), and all rows of a batch and all heads share them. They count
    as bytes, so they pay from about as many slots as they have atoms on.

    Of the atoms (1, 0) and (0.6, 0.8), the second spells (3, 4).

    >>> book = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> index, amount, most, *_ = SparseCodes(atoms=1).write(*[torch.tensor([[[3.0, 4.0]]])] * 2, learnt=(book, book))
    >>> index.tolist(), amount.tolist(), most.tolist()
    ([[[1]]], [[[127]]], [[[5.0]]])
    """

    atoms: int = 8
    size: int = 1024
    rounds: int = 3
    sinks: int = 0
    recent: int = 128
    device: str = ""

    def write(self, k: Pages, v: Pages, learnt: tuple[Tensor, ...] = ()) -> Stored:
        return *self._coded(k, learnt[0]), *self._coded(v, learnt[1])

    def read(self, stored: Stored, dims: tuple[int, int], learnt: tuple[Tensor, ...] = ()) -> tuple[Pages, Pages]:
        return _spelt(*stored[:3], learnt[0]), _spelt(*stored[3:], learnt[1])

    def learn(self, k: Pages, v: Pages) -> tuple[Tensor, ...]:
        return tuple(self._dictionary(x.flatten(0, 1).float()) for x in (k, v))

    def _coded(self, x: Pages, book: Float[Tensor, "size dim"]) -> Stored:
        index, amount = pursue(x.flatten(0, 1).float(), book.float(), min(self.atoms, *book.shape))
        most = amount.abs().amax(-1, keepdim=True).half()
        steps = (amount * 127 / torch.where(most == 0, 1, most).float()).round().clamp(-127, 127)
        small = torch.uint8 if len(book) <= 256 else torch.int16
        return tuple(t.unflatten(0, x.shape[:2]) for t in (index.to(small), steps.to(torch.int8), most))

    def _dictionary(self, x: Float[Tensor, "slots dim"]) -> Float[Tensor, "size dim"]:
        """Vectors at equal distances to begin with; then those that explain best how the first codes are spelt."""
        size = min(self.size, len(x))
        x = x[: 16 * size]
        book = normalize(x[torch.arange(size, device=x.device) * len(x) // size], dim=-1)
        for _ in range(self.rounds):
            index, amount = pursue(x, book, min(self.atoms, *book.shape))
            z = torch.zeros(len(x), size, device=x.device).scatter_(1, index, amount)
            gram = z.mT @ z
            ridge = 1e-3 * gram.diagonal().mean() * torch.eye(size, device=x.device)
            fresh = torch.linalg.solve(gram + ridge, z.mT @ x)
            used = fresh.norm(dim=-1, keepdim=True) > 1e-6
            book = torch.where(used, normalize(fresh, dim=-1), book)
        return book


def _spelt(index: Tensor, amount: Tensor, most: Tensor, book: Float[Tensor, "size dim"]) -> Pages:
    weight = amount.float() * most.float() / 127
    return (weight[..., None, :] @ book.float()[index.long()])[..., 0, :]
