"""Where what is cached lies: pages of slots, each head its own, so that what one head forgets is really free."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Int32, Shaped
from torch import Tensor

from fewer.kernels import places

from ._protocol import Cached, Keep

PAGE = 16  # slots


@dataclass(eq=False)
class Store:
    """Keys, values and places of one layer, in pages of `page` slots that belong to one (row, head) each.

    `table[b, h]` names a head's pages in order (-1: none), `length[b, h]` how many slots it fills, `end` says the same on the
    device; a slot's `at` is the place of its token among all there have been (-1: empty). `beside` holds further numbers of each
    slot. Padding is never stored. Bytes are those of whole pages, places and table included. As long as `version` is the
    same, all of it lies where it lay.
    """

    page: int = PAGE
    k: Shaped[Tensor, "pages page dim"] | None = None
    v: Shaped[Tensor, "pages page out"] | None = None
    at: Int32[Tensor, "pages page"] = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int32))
    table: Int32[Tensor, "batch heads reads"] = field(default_factory=lambda: torch.empty(0, 0, 0, dtype=torch.int32))
    length: Int[Tensor, "batch heads"] = field(
        default_factory=lambda: torch.empty(0, 0, dtype=torch.int64)
    )  # on the CPU
    beside: dict[str, Float[Tensor, "pages page"]] = field(default_factory=dict)
    end: Int[Tensor, "batch heads"] = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    owned: Int[Tensor, "batch heads"] = field(
        default_factory=lambda: torch.empty(0, 0, dtype=torch.int64)
    )  # pages; on the CPU
    used: int = 0  # pages
    room: int = 0  # slots that every head has left
    version: int = 0

    @property
    def bytes(self) -> int:
        parts = [self.k, self.v, self.at, self.table, *self.beside.values()]
        return sum(t.numel() * t.element_size() for t in parts if t is not None)

    @property
    def longest(self) -> int:
        return int(self.length.max()) if self.length.numel() else 0

    def append(self, k: Cached, v: Cached, at: Int[Tensor, "batch new"]) -> None:
        """Tokens at ascending places, the same for all heads of a row; -1 is padding, and is not stored."""
        if self.k is None:
            self._begin(k, v)
        real = (at >= 0).cpu()
        rows, new = real.nonzero(as_tuple=True)
        if not len(rows):
            return
        rank = (real.cumsum(1) - 1)[rows, new]  # which of its row's new tokens
        heads, device = k.shape[1], k.device
        self._room(self.length + real.sum(1)[:, None])
        slot = self.length[rows].T + rank  # [heads, tokens]
        owner = self.table.cpu() if device.type == "cuda" else self.table
        page = owner[rows, torch.arange(heads)[:, None], slot // self.page].long()
        where = (page * self.page + slot % self.page).to(device)
        rows, new = rows.to(device), new.to(device)
        for pool, x in ((self.k, k), (self.v, v)):
            flat = x[0] if len(new) == at.numel() and len(at) == 1 else x[rows, :, new].transpose(0, 1)  # one whole row
            pool.view(-1, x.shape[-1])[where.flatten()] = flat.flatten(0, 1).to(pool.dtype)
        self.at.view(-1)[where] = at[rows, new].to(device, torch.int32)
        self._reach(self.length + real.sum(1)[:, None])

    def step(self, k: Cached, v: Cached, at: Int[Tensor, "batch 1"]) -> None:
        """One token of every row, none of them padding. While there is `room`, nothing waits for the device."""
        if not self.room:
            self.ahead(1)
        page = self.table.gather(-1, (self.end // self.page)[..., None])[..., 0].long()
        where = (page * self.page + self.end % self.page).flatten()
        for pool, x in ((self.k, k), (self.v, v), (self.at[..., None], at[:, None, :, None].expand(*k.shape[:3], 1))):
            pool.view(-1, pool.shape[-1]).index_copy_(0, where, x[:, :, 0].flatten(0, 1).to(pool.dtype))
        self.end.add_(1)
        self.stepped()

    def stepped(self) -> None:
        """What `step` notes on the CPU."""
        self.length, self.room = self.length + 1, self.room - 1

    def ahead(self, slots: int) -> None:
        """Pages for so many more slots in each head."""
        self._room(self.length + slots)
        self._reach(self.length)

    def block(self, index: Int[Tensor, "batch heads"], size: int) -> Float[Tensor, "batch heads size dim"]:
        """The keys of one block of each head, each `size` slots; whatever lies there, where it is not full."""
        slot = index[..., None] * size + torch.arange(size, device=index.device)
        named = (slot // self.page).clamp(max=self.table.shape[-1] - 1)
        page = self.table.gather(-1, named).long().clamp(min=0)
        return self.k.flatten(0, 1)[page * self.page + slot % self.page]

    def read(self, *beside: str) -> tuple[Tensor, ...]:
        """`k, v, at` and what was asked for, `[batch, heads, longest, ...]`: empty slots have `at` -1, whatever is there."""
        named, n = self.table.long(), self.longest
        pages = named.clamp(min=0)
        out = [pool[pages].flatten(2, 3)[:, :, :n] for pool in (self.k, self.v, *(self.beside[b] for b in beside))]
        at = self.at[pages].masked_fill(named[..., None] < 0, -1).flatten(2)[:, :, :n]
        return out[0], out[1], at, *out[2:]

    def keep(
        self,
        keep: Keep,
        k: Cached | None = None,
        v: Cached | None = None,
        at: Int[Tensor, "batch heads n"] | None = None,
    ) -> None:
        """Forget the rest, and give its pages back; with `k`, `v` and `at`, what stays is stored anew."""
        there = self.read(*self.beside)
        keep = keep & (there[2] >= 0)
        old_k, old_v, old_at, *more = there
        at = old_at if at is None else at
        count = keep.sum(-1)
        order = places(keep.flatten(0, 1)).unflatten(0, keep.shape[:2])
        filled, order = order >= 0, order.clamp(min=0)
        fresh = Store(self.page)
        fresh._begin(old_k, old_v, self.beside)
        fresh._room(count.cpu())
        where = fresh._where(filled)
        for name, x in (("k", old_k if k is None else k), ("v", old_v if v is None else v)):
            pool = getattr(fresh, name)
            chosen = x.gather(2, order[..., None].expand(-1, -1, -1, x.shape[-1]))[filled]
            pool.view(-1, x.shape[-1])[where] = chosen.to(pool.dtype)
        for pool, x in ((fresh.at, at), *zip(fresh.beside.values(), more, strict=True)):
            pool.view(-1)[where] = x.gather(2, order)[filled]
        self._become(fresh, count.cpu())

    def put(self, name: str, x: Float[Tensor, "batch heads n"]) -> None:
        """Numbers beside the slots, as `read` orders them."""
        if name not in self.beside:
            self.beside[name] = torch.zeros_like(self.at, dtype=torch.float32)
        filled = torch.arange(x.shape[-1]) < self.length[..., None]
        self.beside[name].view(-1)[self._where(filled.to(x.device))] = x[filled.to(x.device)].float()

    def crop(self, before: int) -> None:
        """Forget all tokens whose place is `before` or later."""
        at = self.read()[2]
        self.keep((at >= 0) & (at < before))

    def pick(self, rows: Int[Tensor, " rows"]) -> None:
        """These rows of the batch, in this order; one may come twice."""
        rows = rows.cpu()
        table, length, device = self.table[rows.to(self.table.device)], self.length[rows], self.k.device
        needed = -(-length // self.page)
        fresh = Store(self.page)
        fresh.k, fresh.v, fresh.at, fresh.table = self.k[:0], self.v[:0], self.at[:0], table[..., :0]
        fresh.length, fresh.owned = length * 0, length * 0
        fresh.beside = {b: x[:0] for b, x in self.beside.items()}
        fresh._room(length)
        filled = torch.arange(table.shape[-1]) < needed[..., None]
        old, new = table.cpu()[filled].long(), fresh.table.cpu()[..., : table.shape[-1]][filled].long()
        for pool, source in ((fresh.k, self.k), (fresh.v, self.v), (fresh.at, self.at)):
            pool[new.to(pool.device)] = source[old.to(source.device)]
        for b in fresh.beside:
            fresh.beside[b][new.to(device)] = self.beside[b][old.to(device)]
        self._become(fresh, length)

    def _begin(self, k: Cached, v: Cached, beside: dict[str, Tensor] | None = None) -> None:
        (batch, heads), device = k.shape[:2], k.device
        self.k, self.v = k.new_empty(0, self.page, k.shape[-1]), v.new_empty(0, self.page, v.shape[-1])
        self.at = torch.empty(0, self.page, dtype=torch.int32, device=device)
        self.table = torch.empty(batch, heads, 0, dtype=torch.int32, device=device)
        self.length = self.owned = torch.zeros(batch, heads, dtype=torch.int64)
        self.beside = {b: torch.empty(0, self.page, device=device) for b in beside or ()}

    def _room(self, length: Int[Tensor, "batch heads"]) -> None:
        """Pages for so many slots in each head; the pools grow by at least a 32nd once they have begun."""
        have, need = self.owned, self.owned.maximum(-(-length // self.page))
        fresh = need - have
        if not int(fresh.sum()):
            return
        pages, wide = self.used + int(fresh.sum()), int(need.max())
        if pages > len(self.at):
            size = pages if not self.used else max(pages, self.used + self.used // 32)
            for name in ("k", "v", "at"):
                setattr(self, name, _grown(getattr(self, name), size))
            self.beside = {b: _grown(x, size) for b, x in self.beside.items()}
        table = torch.full((*length.shape, max(wide, self.table.shape[-1])), -1, dtype=torch.int32)
        table[..., : self.table.shape[-1]] = self.table.cpu()
        slot = torch.arange(table.shape[-1])
        mine = (slot >= have[..., None]) & (slot < need[..., None])
        table[mine] = torch.arange(self.used, pages, dtype=torch.int32)
        self.table, self.used, self.owned, self.version = table.to(self.at.device), pages, need, self.version + 1

    def _reach(self, length: Int[Tensor, "batch heads"]) -> None:
        """So many slots of each head are filled."""
        self.length, self.room = length, int((self.owned * self.page - length).min())
        if self.end.shape == length.shape and self.end.device == self.at.device:
            self.end.copy_(length)  # where it lay
        else:
            self.end = length.to(self.at.device, copy=True)

    def _where(self, filled: Bool[Tensor, "batch heads n"]) -> Int[Tensor, " filled"]:
        """The addresses of the first slots of each head, as many as are filled."""
        slot = torch.arange(filled.shape[-1], device=filled.device)
        page = self.table[..., slot // self.page].long()
        return (page * self.page + slot % self.page)[filled]

    def _become(self, other: "Store", length: Int[Tensor, "batch heads"]) -> None:
        self.__dict__.update(other.__dict__ | {"version": self.version + 1})
        self._reach(length)


def _grown(pool: Tensor, pages: int) -> Tensor:
    """More pages; new slots are empty (-1), where it is places that they hold."""
    out = (
        pool.new_full((pages, *pool.shape[1:]), -1)
        if pool.dtype == torch.int32
        else pool.new_zeros(pages, *pool.shape[1:])
    )
    out[: len(pool)] = pool
    return out
