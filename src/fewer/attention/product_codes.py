"""Product codes: rank tokens by keys of a few bytes."""

from dataclasses import replace
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import best, dots

Books = Float[Tensor, "kv_heads parts codes part"]


@method(
    Paper(
        "2312.10365",
        "SPT: Fine-Tuning Transformer-based Language Models Efficiently with Sparsification",
        2023,
        ledger=282,
    )
)
class ProductCodes(ByScore):
    """Rank a token by q.k with each `part` channels of k replaced by a multiple of the nearest vector of a codebook.

    Of the codes c of a part it takes the one of the largest k.c / |c|, times k.c / |c|^2. `fit(q, k)` finds 2^part
    codes a part by k-means of directions; before, they are all vectors of signs.

    Differs from the paper: it stores codes alone and counts equal ones; here lengths are kept, and the products are added.

    >>> m = ProductCodes(part=2)
    >>> code, length = m.digest(torch.tensor([[[[2.0, -4.0]]]]))
    >>> code.item(), length.item()  # 3 times (1, -1)
    (1, 3.0)
    """

    phases = ("decode",)
    fits = "books"

    part: int = 4
    turns: int = 10
    books: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...] = ()
    rows: int = 1
    block: int = 1

    def fit(self, q: Query, k: Key) -> "ProductCodes":
        x = torch.nn.functional.normalize(self._parts(k).double().transpose(0, 1).flatten(1, 2).transpose(1, 2), dim=-1)
        centre = self._books(k).double().expand(len(x), -1, -1, -1).contiguous()
        for _ in range(self.turns):
            said = x @ torch.nn.functional.normalize(centre, dim=-1).mT
            member = torch.nn.functional.one_hot(said.argmax(-1), centre.shape[2]).double()
            mean = member.mT @ x
            centre = torch.where(mean.norm(dim=-1, keepdim=True) > 0, mean, centre)
        centre = torch.nn.functional.normalize(centre, dim=-1)
        return replace(self, books=tuple(tuple(tuple(map(tuple, part)) for part in head) for head in centre.tolist()))

    def digest(self, k: Key) -> Digest:
        books = self._books(k)
        along = torch.einsum("bhnpd,hpcd->bhnpc", self._parts(k), books.expand(k.shape[1], -1, -1, -1))
        square = books.square().sum(-1)[:, None]
        code = (along / square.sqrt()).argmax(-1, keepdim=True)
        length = (along / square).gather(-1, code)
        return code[..., 0].to(torch.uint8), length[..., 0]

    def score(self, q: Query, digest: Digest) -> Score:
        code, length = digest
        books = self._books(q).expand(code.shape[1], -1, -1, -1)
        head, part = (torch.arange(n, device=q.device) for n in books.shape[:2])
        vectors = books[head[:, None, None], part, code.long()] * length[..., None].to(q.dtype)
        return best(dots(q, vectors.flatten(3)), self.rows)

    def _parts(self, k: Key) -> Float[Tensor, "batch kv_heads keys parts part"]:
        if k.shape[-1] % self.part:
            raise ValueError(f"{self.name}: {k.shape[-1]} channels do not divide into parts of {self.part}")
        return k.unflatten(-1, (-1, self.part))

    def _books(self, like: Tensor) -> Books:
        if self.books:
            return torch.tensor(self.books, dtype=like.dtype, device=like.device)
        signs = torch.tensor([*product((1.0, -1.0), repeat=self.part)], dtype=like.dtype, device=like.device)
        signs = signs.expand(like.shape[-1] // self.part, -1, -1)
        return signs[None]
