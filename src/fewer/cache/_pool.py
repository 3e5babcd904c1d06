"""The pages of one layer as they physically lie: new ones as they came, older ones in a form."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int, Int64, Shaped
from torch import Tensor

from ._protocol import Form

Named = Int64[Tensor, " pages"]


@dataclass(eq=False)
class Pool:
    """Keys and values of pages 0, 1, ... of `page` slots each.

    Without a form page n is row n of `k` and `v`. With one, `row[n]` says where it is: a row of these, or, negative, ~row of
    `parts`, which hold what the form made of it, on the form's device. `learnt` is what all of them share.
    """

    page: int
    k: Shaped[Tensor, "rows page dim"]
    v: Shaped[Tensor, "rows page out"]
    form: Form | None = None
    row: Int64[Tensor, " pages"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    spare: Int64[Tensor, " free"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # rows
    parts: tuple[Tensor, ...] = ()
    written: int = 0  # rows of `parts` in use
    learnt: tuple[Tensor, ...] = ()

    @classmethod
    def like(cls, page: int, k: Tensor, v: Tensor, form: Form | None, learnt: tuple[Tensor, ...] = ()) -> "Pool":
        """An empty one for such keys and values."""
        none = torch.empty(0, dtype=torch.int64, device=k.device)
        k, v = k.new_empty(0, page, k.shape[-1]), v.new_empty(0, page, v.shape[-1])
        return cls(page, k, v, form, none, none, learnt=learnt)

    @property
    def bytes(self) -> int:
        held = [self.k, self.v, self.row, self.spare, *self.parts, *self.learnt]
        return sum(t.numel() * t.element_size() for t in held)

    def grow(self, pages: int, used: int) -> None:
        """Room for so many pages, of which the first `used` are there: what must be copied grows by at least a 32nd."""
        if self.form is None:
            if pages > len(self.k):
                self._widen(pages, used)
            return
        fresh = pages - len(self.row)
        if (lack := fresh - len(self.spare)) > 0:
            have = len(self.k)
            self._widen(have + lack, have)
            more = torch.arange(have, len(self.k), device=self.row.device)
            self.spare = torch.cat([self.spare, more])
        self.row, self.spare = torch.cat([self.row, self.spare[:fresh]]), self.spare[fresh:]

    def put(self, page: Int[Tensor, " n"], slot: Int[Tensor, " n"], k: Tensor, v: Tensor) -> None:
        """Write slots of pages that are in no form yet."""
        where = (page if self.form is None else self.row[page]) * self.page + slot
        for pool, x in ((self.k, k), (self.v, v)):
            pool.view(-1, x.shape[-1]).index_copy_(0, where, x.to(pool.dtype))

    def keys(self, page: Int64[Tensor, "*some"], slot: Int64[Tensor, "*some"]) -> Tensor:
        """Of single slots, `[*some, dim]`."""
        if self.form is None:
            return self.k.flatten(0, 1)[page * self.page + slot]
        names, where = page.unique(return_inverse=True)
        return self.take(names)[0][where, slot]

    def take(self, pages: Int64[Tensor, "*some"], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of these pages, `[*some, page, dim]`."""
        device = device or self.k.device
        if self.form is None:
            return self.k[pages].to(device), self.v[pages].to(device)
        row = self.row[pages.flatten()]
        out = [x.new_empty(len(row), self.page, x.shape[-1], device=device) for x in (self.k, self.v)]
        full, coded = row >= 0, row < 0
        if bool(full.any()):
            for x, pool in zip(out, (self.k, self.v), strict=True):
                x[full.to(device)] = pool[row[full]].to(device)
        if bool(coded.any()):
            for x, read in zip(out, self._read(~row[coded], device), strict=True):
                x[coded.to(device)] = read.to(x.dtype)
        return out[0].unflatten(0, pages.shape), out[1].unflatten(0, pages.shape)

    def _read(self, rows: Named, device: torch.device) -> tuple[Tensor, Tensor]:
        stored = tuple(p[rows.to(p.device)].to(device) for p in self.parts)
        return self.form.read(stored, (self.k.shape[-1], self.v.shape[-1]), tuple(t.to(device) for t in self.learnt))

    def settle(self, pages: Named) -> None:
        """Put these into the form, and free where they were."""
        rows = self.row[pages]
        k, v = self.k[rows], self.v[rows]
        self.learnt = self.learnt or self.form.learn(k, v)
        device = torch.device(self.form.device) if self.form.device else k.device
        fresh = tuple(x.to(device) for x in self.form.write(k, v, self.learnt))
        end = self.written + len(pages)
        if not self.parts:
            self.parts = tuple(x.new_empty(0, *x.shape[1:]) for x in fresh)
        if end > len(self.parts[0]):
            size = max(end, self.written + self.written // 32)
            self.parts = tuple(longer(p[: self.written], size) for p in self.parts)
        for part, x in zip(self.parts, fresh, strict=True):
            part[self.written : end] = x
        self.row[pages] = ~torch.arange(self.written, end, device=self.row.device)
        self.written, self.spare = end, torch.cat([self.spare, rows])
        if 2 * len(self.spare) > len(self.k):
            self._shrink()

    def copy(self, pages: Named) -> "Pool":
        """A pool whose page n is the n-th of these, each as it is stored."""
        if self.form is None:
            return Pool(self.page, self.k[pages], self.v[pages])
        row = self.row[pages]
        full = row >= 0
        out = Pool.like(self.page, self.k, self.v, self.form, self.learnt)
        out.k, out.v, out.row = self.k[row[full]], self.v[row[full]], row.clone()
        out.row[full] = torch.arange(len(out.k), device=row.device)
        out.written = int((~full).sum())
        out.row[~full] = ~torch.arange(out.written, device=row.device)
        out.parts = tuple(p[(~row[~full]).to(p.device)] for p in self.parts)
        return out

    def _widen(self, rows: int, used: int) -> None:
        rows = max(rows, used + used // 32)
        self.k, self.v = longer(self.k, rows), longer(self.v, rows)

    def _shrink(self) -> None:
        """Only rows in use are left."""
        full = self.row >= 0
        rows = self.row[full]
        self.k, self.v, self.spare = self.k[rows], self.v[rows], self.spare[:0]
        self.row[full] = torch.arange(len(rows), device=rows.device)


def longer(pool: Tensor, rows: int, fill: int = 0) -> Tensor:
    """With more rows, which hold `fill`."""
    out = pool.new_full((rows, *pool.shape[1:]), fill)
    out[: len(pool)] = pool
    return out
