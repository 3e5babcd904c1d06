"""Where what is cached lies: pages of slots, each head its own, so that what one head forgets is really free."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32, Shaped
from torch import Tensor

from fewer.kernels import append_slots, places

from ._pool import Pool, longer
from ._protocol import Cached, Form, Keep

PAGE = 16  # slots
Values = Float[Tensor, "batch kv_heads keys out"]
AT_ONCE = 2**24  # numbers that are read out of a form at a time


class Reading(NamedTuple):
    """Pages for `kernels.attend_pages`, and the table that names them; all on one device."""

    k: Shaped[Tensor, "pages page dim"]
    v: Shaped[Tensor, "pages page out"]
    at: Int32[Tensor, "pages page"]
    table: Int32[Tensor, "batch heads reads"]


@dataclass(eq=False)
class Store:
    """Keys, values and places of one layer, in pages of `page` slots that belong to one (row, head) each.

    `table[b, h]` names a head's pages in order (-1: none), `length[b, h]` how many slots it fills, `end` says the same on the
    device; a slot's `at` is the place of its token among all there have been (-1: empty). `beside` holds further numbers of each
    slot. Padding is never stored. Bytes are those of whole pages, places and table included. As long as `version` is the
    same, all of it lies where it lay. With a `form`, `settle` puts pages into it that are full and old enough.
    """

    page: int = PAGE
    form: Form | None = None
    pool: Pool | None = None
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
    settled: Int[Tensor, "batch heads"] | None = None  # pages of each head that need not be looked at again; on the CPU

    @property
    def k(self) -> Shaped[Tensor, "pages page dim"] | None:
        """Keys of the pages that are in no form."""
        return self.pool and self.pool.k

    @property
    def v(self) -> Shaped[Tensor, "pages page out"] | None:
        return self.pool and self.pool.v

    @property
    def bytes(self) -> int:
        parts = [self.at, self.table, *self.beside.values()]
        return sum(t.numel() * t.element_size() for t in parts) + (self.pool.bytes if self.pool else 0)

    @property
    def longest(self) -> int:
        return int(self.length.max()) if self.length.numel() else 0

    def append(
        self,
        k: Cached,
        v: Values,
        at: Int[Tensor, "batch new"],
        beside: dict[str, Float[Tensor, "batch heads new"]] | None = None,
    ) -> None:
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
        page, slot = page.to(device), (slot % self.page).to(device)
        rows, new = rows.to(device), new.to(device)
        one = len(new) == at.numel() and len(at) == 1  # a whole row
        flat = [(x[0] if one else x[rows, :, new].transpose(0, 1)).flatten(0, 1) for x in (k, v)]
        self.pool.put(page.flatten(), slot.flatten(), *flat)
        where = page * self.page + slot
        self.at.view(-1)[where] = at[rows, new].to(device, torch.int32)
        for name, x in (beside or {}).items():
            self._beside(name).view(-1)[where] = x[rows, :, new].T.float()
        self._reach(self.length + real.sum(1)[:, None])

    def step(
        self,
        k: Cached,
        v: Values,
        at: Int32[Tensor, "batch 1"],
        beside: dict[str, Float[Tensor, "batch heads 1"]] | None = None,
    ) -> None:
        """One token of every row, none of them padding. While there is `room`, nothing waits for the device."""
        if not self.room:
            self.ahead(1)
        if self.form is None and not beside:
            append_slots(k, v, at, self.k, self.v, self.at, self.table, self.end)
        else:
            page = self.table.gather(-1, (self.end // self.page)[..., None])[..., 0].long().flatten()
            slot = (self.end % self.page).flatten()
            where = page * self.page + slot
            self.pool.put(page, slot, *(x[:, :, 0].flatten(0, 1) for x in (k, v)))
            self.at.view(-1).index_copy_(0, where, at.expand(k.shape[:2]).flatten())
            for name, x in (beside or {}).items():
                self._beside(name).view(-1).index_copy_(0, where, x.flatten().float())
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
        return self.pool.keys(page, slot % self.page)

    def read(self, *beside: str) -> tuple[Tensor, ...]:
        """`k, v, at` and what was asked for, `[batch, heads, longest, ...]`: empty slots have `at` -1, whatever is there."""
        named, n = self.table.long(), self.longest
        pages = named.clamp(min=0)
        found = *self.pool.take(pages), *(self.beside[b][pages] for b in beside)
        out = [x.flatten(2, 3)[:, :, :n] for x in found]
        at = self.at[pages].masked_fill(named[..., None] < 0, -1).flatten(2)[:, :, :n]
        return out[0], out[1], at, *out[2:]

    def keep(
        self,
        keep: Keep,
        k: Cached | None = None,
        v: Values | None = None,
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
        fresh = Store(self.page, self.form)
        fresh._begin(old_k, old_v, self.beside, self.pool.learnt)
        fresh._room(count.cpu())
        where = fresh._where(filled)
        chosen = [
            x.gather(2, order[..., None].expand(-1, -1, -1, x.shape[-1]))[filled]
            for x in (old_k if k is None else k, old_v if v is None else v)
        ]
        fresh.pool.put(where // self.page, where % self.page, *chosen)
        for pool, x in ((fresh.at, at), *zip(fresh.beside.values(), more, strict=True)):
            pool.view(-1)[where] = x.gather(2, order)[filled]
        self._become(fresh, count.cpu())

    def put(self, name: str, x: Float[Tensor, "batch heads n"]) -> None:
        """Numbers beside the slots, as `read` orders them."""
        filled = torch.arange(x.shape[-1]) < self.length[..., None]
        self._beside(name).view(-1)[self._where(filled.to(x.device))] = x[filled.to(x.device)].float()

    def _beside(self, name: str) -> Float[Tensor, "pages page"]:
        if name not in self.beside:
            self.beside[name] = torch.zeros_like(self.at, dtype=torch.float32)
        return self.beside[name]

    def crop(self, before: int) -> None:
        """Forget all tokens whose place is `before` or later."""
        at = self.read()[2]
        self.keep((at >= 0) & (at < before))

    def pick(self, rows: Int[Tensor, " rows"]) -> None:
        """These rows of the batch, in this order; one may come twice."""
        rows = rows.cpu()
        old, length, owned = self.table.cpu()[rows], self.length[rows], self.owned[rows]
        there, device = old >= 0, self.at.device
        pages = old[there].long().to(device)
        table = old.masked_scatter(there, torch.arange(len(pages), dtype=torch.int32)).to(device)
        beside = {b: x[pages] for b, x in self.beside.items()}
        fresh = Store(self.page, self.form, self.pool.copy(pages), self.at[pages], table, length, beside, owned=owned)
        fresh.used, fresh.settled = len(pages), None if self.settled is None else self.settled[rows]
        self._become(fresh, length)

    def settle(self) -> None:
        """Put into the form what is full, and not among the first or the newest; who just forgot looks at all anew."""
        if self.form is None or self.pool is None:
            return
        done = (self.length - self.form.recent).clamp(min=0) // self.page
        begin = torch.full_like(done, -(-self.form.sinks // self.page)) if self.settled is None else self.settled
        if bool((done <= begin).all()):
            return
        index = torch.arange(self.table.shape[-1])
        due = (index >= begin[..., None]) & (index < done[..., None])
        self.pool.settle(self.table.cpu()[due].long().to(self.at.device))
        self.settled, self.version = begin.maximum(done), self.version + 1

    def readings(self, table: Int32[Tensor, "batch heads reads"], parts: int = 1) -> Iterator[Reading]:
        """The pages that a table names, or of pages cut into so many `parts` those.

        What lies in a form is read out of it, some pages at a time; what does not come to the queries stays where it is.
        """
        if self.form is None:
            k, v, at = (t.view(-1, self.page // parts, *t.shape[2:]) for t in (self.k, self.v, self.at))
            yield Reading(k, v, at, table)
            return
        here, apart = self.at.device, [(table, self.at.device)]
        if not self.form.comes:
            coded = self.pool.row[(table.long() // parts).clamp(min=0)] < 0
            there = torch.device(self.form.device) if self.form.device else here
            apart = [(table.masked_fill(coded, -1), here), (table.masked_fill(~coded, -1), there)]
        each = table.shape[0] * table.shape[1] * self.page // parts * (self.k.shape[-1] + self.v.shape[-1])
        for mine, device in apart:
            for some in mine.split(max(1, AT_ONCE // max(each, 1)), -1):
                if bool((some >= 0).any()):
                    yield self._out(some, parts, device)

    def _out(self, table: Tensor, parts: int, device: torch.device) -> Reading:
        """These pages and no others, numbered anew."""
        page, part, none = table.long() // parts, table.long() % parts, table < 0
        names, where = page.where(~none, page[~none][0]).unique(return_inverse=True)
        k, v = self.pool.take(names, device)
        at, table = self.at[names].to(device), torch.where(none, -1, where * parts + part)
        k, v, at = (t.view(-1, self.page // parts, *t.shape[2:]) for t in (k, v, at))
        return Reading(k, v, at, table.to(device, torch.int32))

    def _begin(
        self, k: Cached, v: Values, beside: dict[str, Tensor] | None = None, learnt: tuple[Tensor, ...] = ()
    ) -> None:
        (batch, heads), device = k.shape[:2], k.device
        self.pool = Pool.like(self.page, k, v, self.form, learnt)
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
            self.at = longer(self.at, size, -1)
            self.beside = {b: longer(x, size) for b, x in self.beside.items()}
        self.pool.grow(pages, self.used)
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
