"""A linear module whose weights live in a layout, and how it takes a dense module's place and gives it back."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewer.core.site import Site
from fewer.kernels.sparse_linear import sparse_linear
from fewer.layout import Layout, blockwise, put_around, quantised_together, smallest

LowRank = tuple[Tensor, Tensor]  # left [out, rank], right [rank, in]
Around = tuple[Tensor, Tensor]  # blocks [n, b, b] of A on the output side, [m, c, c] of B on the input side


class SparseLinear(nn.Module):
    """y = x (A W B)^T + (x right^T) left^T + bias, with W in a layout; A and B, and the low-rank part, are optional.

    The layout's tensors are buffers under their own field names, so a state dict holds `<name>.value`,
    `<name>.mask`, ...; `left` `[out, rank]` and `right` `[rank, in]` lie beside them, as do the diagonal blocks of A
    and B, `outer` and `inner`; `bias` is the parameter that it was. `weight` unpacks the whole map for code that looks at it; writing into it changes nothing.

    >>> w = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    >>> SparseLinear(smallest(w, w != 0))(torch.tensor([1.0, 10.0]))
    tensor([20.,  3.])
    """

    bias: nn.Parameter | None
    left: Tensor | None
    right: Tensor | None
    outer: Tensor | None
    inner: Tensor | None

    def __init__(
        self,
        layout: Layout,
        bias: nn.Parameter | None = None,
        low_rank: LowRank | None = None,
        around: Around | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.numbers = type(layout), layout.numbers()
        self.out_features, self.in_features = layout.shape
        self.fields = tuple(layout.tensors())
        for field, tensor in layout.tensors().items():
            self.register_buffer(field, tensor)
        beside = (*(low_rank or (None, None)), *(around or (None, None)))
        for field, dense in zip(("left", "right", "outer", "inner"), beside, strict=True):
            self.register_buffer(field, dense)
        self.register_parameter("bias", bias)
        self._last, self._seen = layout, tuple((field, self._buffers[field]) for field in self.fields)

    @classmethod
    def from_linear(
        cls, linear: nn.Module, layout: Layout, low_rank: LowRank | None = None, around: Around | None = None
    ) -> "SparseLinear":
        """In place of an `nn.Linear`, `Conv1D` or another `SparseLinear`, with its bias; `layout` is `[out, in]`."""
        shape = Site("", linear, transposed=type(linear).__name__ == "Conv1D").shape
        if tuple(layout.shape) != shape:
            raise ValueError(f"the layout holds {tuple(layout.shape)} and the module maps {shape}: give [out, in]")
        packed = cls(layout, getattr(linear, "bias", None), low_rank, around)
        return packed.train(linear.training)

    @property
    def layout(self) -> Layout:
        """The layout, made of the buffers as they are now (moved, cast, loaded); the same object while they stay."""
        here = self._buffers  # read as a dict: this is on the way of every token
        if any(here[field] is not tensor for field, tensor in self._seen):
            self._last = self.kind.restore({field: getattr(self, field) for field in self.fields}, self.numbers)
            self._seen = tuple((field, here[field]) for field in self.fields)
        return self._last

    @property
    def low_rank(self) -> LowRank | None:
        left, right = self._buffers["left"], self._buffers["right"]
        return None if left is None or right is None else (left, right)

    @property
    def around(self) -> Around | None:
        outer, inner = self._buffers["outer"], self._buffers["inner"]
        return None if outer is None or inner is None else (outer, inner)

    @property
    def weight(self) -> Shaped[Tensor, "out in"]:
        return self.dense()

    def dense(self) -> Shaped[Tensor, "out in"]:
        """The whole map, with what is around it and the low-rank part."""
        w = self.layout.dense()
        if self.around is not None:
            w = put_around(w.float(), *(blocks.float() for blocks in self.around)).to(w.dtype)
        if self.low_rank is None:
            return w
        left, right = self.low_rank
        return w + (left @ right).to(w.dtype)

    def forward(self, x: Float[Tensor, "*b n_in"]) -> Float[Tensor, "*b n_out"]:
        if self.around is None:
            y = sparse_linear(x, self.layout, self.bias)
        else:
            outer, inner = (blocks.to(x.dtype) for blocks in self.around)
            y = blockwise(sparse_linear(blockwise(x, inner), self.layout), outer)
            y = y if self.bias is None else y + self.bias
        if self.low_rank is None:
            return y
        left, right = (t.to(x.dtype) for t in self.low_rank)
        return y + x @ right.mT @ left.mT

    @property
    def bytes(self) -> int:
        """What is stored: the layout with its indices, all that is dense beside it, the bias."""
        return sum(t.numel() * t.element_size() for t in (*self.buffers(), *self.parameters()))

    def flops(self, tokens: int) -> int:
        """Multiplications and additions that count for so many tokens: of survivors and of what is dense beside them."""
        beside = (*(self.low_rank or ()), *(self.around or ()))
        return 2 * tokens * (self._last.count + sum(t.numel() for t in beside))

    def extra_repr(self) -> str:
        rank = 0 if self.right is None else len(self.right)
        return f"in={self.in_features}, out={self.out_features}, layout={self.kind.name}, rank={rank}"


def swap(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put `modules` in their places by name and return those that were there, for `restore`.

    A module that stands in several places (shared layers) is replaced in all of them. Raises `ValueError`, before
    anything is changed, for a name that the model does not have.
    """
    here = dict(model.named_modules(remove_duplicate=False))
    for name in modules:
        if name not in here:
            raise ValueError(f"the model has no module {name!r} to put a packed one in the place of")
    new = {id(here[name]): module for name, module in modules.items()}
    before = {name: module for name, module in here.items() if id(module) in new}
    for name, module in before.items():
        _put(model, name, new[id(module)])
    return before


def restore(model: nn.Module, before: Mapping[str, nn.Module]) -> None:
    """Undo a `swap`: the very modules that were there."""
    for name, module in before.items():
        _put(model, name, module)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    home, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(home), leaf, module)


def join(parts: Sequence[tuple[Site, Layout, LowRank | None]]) -> tuple[Layout, LowRank | None]:
    """One layout `[out, in]` for a fused module out of those of its parts; rows that no part owns stay as they are.

    All parts of one class give that class where it can hold the whole, else the smallest that can. Low-rank parts are
    stacked: each part's `right` keeps its own rows, `left` is zero outside the part.
    """
    site = parts[0][0]
    whole = Site(site.name, site.module, transposed=site.transposed).read()
    dtype = parts[0][1].dense().dtype  # what is stored may be smaller than what the module computes in
    dense, keep = whole.to(dtype, copy=True), torch.ones_like(whole, dtype=torch.bool)
    ranks = [0 if low is None else len(low[1]) for _, _, low in parts]
    left = dense.new_zeros(len(whole), sum(ranks))
    for i, (place, layout, low) in enumerate(parts):
        rows = slice(None) if place.part is None else place.part
        dense[rows], keep[rows] = layout.dense(), layout.keep()
        if low is not None:
            left[rows, sum(ranks[:i]) : sum(ranks[: i + 1])] = low[0].to(left.dtype)
    rights = [low[1].to(left.dtype) for _, _, low in parts if low is not None]
    one = quantised_together([(site.part, layout) for site, layout, _ in parts], len(whole))
    one = one or _one(dense, keep, [layout for _, layout, _ in parts])
    return one, (left, torch.cat(rights)) if rights else None


def _one(dense: Tensor, keep: Tensor, layouts: Sequence[Layout]) -> Layout:
    if len({type(layout) for layout in layouts}) == 1:
        try:
            return type(layouts[0]).pack(dense, keep)
        except ValueError:  # N:M with another N in each part
            pass
    return smallest(dense, keep)
