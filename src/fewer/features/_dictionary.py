"""A learnt dictionary: what is read from some sites is spelt by few latents, which say what is written at others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fewer import kernels
from fewer.core import Budget
from fewer.layout import Codes

from ._forms import Encoder
from ._protocol import ByKeep, ByScore, Own, Pre, Sparsifier
from ._sparse import narrowed, said, spoken
from .linear import Linear

ROWS = 256  # inputs coded at once: their pre-activations stay in a cache


@dataclass(frozen=True, eq=False)
class Dictionary:
    """`decode(encode(x))` is near what is written, where `x` is what is read; both are the sites' activations, side by side.

    One site that is read and written makes a sparse autoencoder, two a transcoder, several a crosscoder.
    pre = x W_enc^T + b_enc, or what `how` makes of that; z = code(pre); out = z W_dec + b_dec (+ x W_skip^T).
    """

    sparsifier: Sparsifier
    budget: Budget
    encoder: Float[Tensor, "maps in"]
    encoder_bias: Float[Tensor, " maps"]
    decoder: Float[Tensor, "latents out"]
    decoder_bias: Float[Tensor, " out"]
    own: Own = field(default_factory=dict)  # what the sparsifier has learnt
    skip: Float[Tensor, "out in"] | None = None
    reads: tuple[str, ...] = ()  # sites, as `models.tap` names them
    writes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)  # data, tokens, seed, ...: whatever JSON can hold
    how: Encoder = Linear()  # noqa: RUF009  frozen; what is made of the encoder's linear maps

    @property
    def latents(self) -> int:
        return len(self.decoder)

    @property
    def is_autoencoder(self) -> bool:
        """Whether it writes where it reads."""
        return self.reads == self.writes and self.skip is None

    def pre(self, x: Float[Tensor, "batch in"]) -> Pre:
        """The pre-activations of all latents."""
        return self.how.spread(F.linear(x, self.encoder, self.encoder_bias))

    def read_alone(self, what: str) -> None:
        """ValueError if latents share linear maps, so that none has a direction in which it reads; `what` would need one."""
        if not isinstance(self.how, Linear):
            raise ValueError(f"{what} asks for a linear map for each latent; this dictionary reads by {self.how.name}")

    def encode(self, x: Float[Tensor, "*batch in"]) -> Codes:
        """Who speaks, and how loud, in each row [batch, in]; without a gradient, never holding all pre-activations.

        ValueError: what is no rows, or of another width or dtype, or NaN or infinite.
        """
        self._check(x)
        m, linear = self.sparsifier, isinstance(self.how, Linear)
        if linear and (k := plainly(m, self.budget, self.latents)) and type(m).serve is Sparsifier.serve:
            index, pre = kernels.encode(x, self.encoder, self.encoder_bias, k, m.by_size)
            return Codes(index, m.amount(pre), self.latents)
        with torch.no_grad():
            parts = [_packed(self.code(rows)) for rows in x.split(ROWS)]
            index, value = (_stacked([getattr(c, name) for c in parts]) for name in ("index", "value"))
            return Codes(index, value, self.latents)

    def code(self, x: Float[Tensor, "batch in"]) -> Pre:
        """All latents' codes, differentiable."""
        m, own = self.sparsifier, self.own
        if m.looks:
            own = {**own, **m.look(x - self.decoder_bias, self.decoder)}
        return m.serve(self.pre(x), self.budget, own)

    def decode(self, codes: Codes, x: Float[Tensor, "batch in"] | None = None) -> Float[Tensor, "batch out"]:
        """What the codes say; `x` is asked for if there is a skip connection."""
        out = spoken(codes, self.decoder) + self.decoder_bias
        if self.skip is None:
            return out
        if x is None:
            raise ValueError("this dictionary has a skip connection: decode(codes, x) needs what was read")
        return out + F.linear(x, self.skip)

    def __call__(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "batch out"]:
        return self.decode(self.encode(x), x)

    def _check(self, x: Tensor) -> None:
        width, dtype = self.encoder.shape[1], self.encoder.dtype
        if x.ndim != 2 or x.shape[1] != width:
            flat = f"; flatten the axes before the last: x.reshape(-1, {width})" if x.shape[-1:] == (width,) else ""
            raise ValueError(f"inputs of shape {tuple(x.shape)}: this dictionary reads rows, [batch, {width}]{flat}")
        if x.dtype != dtype:
            raise ValueError(
                f"inputs in {x.dtype}, the dictionary in {dtype}: write x.to({dtype}) or dictionary.to({x.dtype})"
            )
        if not x.detach().sum().isfinite() and not x.isfinite().all():  # the sum alone is 100 times cheaper
            row = int((~x.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"inputs: row {row} is NaN or infinite")

    def to(self, *args: Any) -> "Dictionary":
        """The same on another device or in another dtype."""
        return replace(
            self,
            **{name: t.to(*args) for name, t in self.tensors().items()},
            own={k: t.to(*args) for k, t in self.own.items()},
        )

    def tensors(self) -> dict[str, Tensor]:
        """The matrices and biases by name; `own` apart."""
        names = ("encoder", "encoder_bias", "decoder", "decoder_bias", "skip")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def chosen(
    m: ByKeep,
    budget: Budget,
    x: Float[Tensor, "batch in"],
    w: Float[Tensor, "latents in"],
    b: Float[Tensor, " latents"],
    own: Own,
) -> tuple[Int64[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """Which latents may speak in each row, and their pre-activations; -1 and 0 where a row has fewer than another.

    Rows that are chosen alone are done some at a time: [batch, latents] is then never in memory.
    """
    with torch.no_grad():
        if k := plainly(m, budget, len(w)):
            index, value = kernels.encode(*map(narrowed, (x, w, b)), k, m.by_size)
            kernels.share(index)  # by the gradients of encoder, bias and decoder
            return index, value.to(x.dtype)
        found = []
        for rows in x.split(ROWS if m.alone and not x.is_cuda else max(1, len(x))):
            pre = F.linear(rows, w, b)
            keep = m.keep(pre, budget, own)
            index = kernels.places(keep)
            found.append((index, pre.gather(1, index.clamp(min=0)).masked_fill(index < 0, 0)))
        index, value = zip(*found, strict=True)
        return _stacked(index, empty=-1), _stacked(value)


def plainly(m: Sparsifier, budget: Budget, latents: int) -> int:
    """How many the highest pre-activations of each row are kept, if that is the whole rule; else 0."""
    rule = isinstance(m, ByScore) and type(m).score is ByScore.score and type(m).keep is ByScore.keep
    if not rule or not by_places(m) or not budget.plain:
        return 0
    return min(budget.of(latents), latents)


def by_places(m: Sparsifier) -> bool:
    """Whether who may speak and what the pre-activation is there say all, so that `coded` is `m.code`."""
    return isinstance(m, ByKeep) and type(m).code is ByKeep.code


def coded(
    m: ByKeep,
    budget: Budget,
    x: Float[Tensor, "batch in"],
    w: Float[Tensor, "latents in"],
    b: Float[Tensor, " latents"],
    own: Own,
) -> tuple[Codes, Float[Tensor, "batch k"]]:
    """`m.code` of x W^T + b as codes that know their places, differentiable, and the pre-activations there."""
    index, value = chosen(m, budget, x, w, b, own)
    if plainly(m, budget, len(w)):
        pre = said(x, w, b, index, value)
        return Codes(index, m.amount(pre), len(w)), pre
    real, index = index >= 0, index.clamp(min=0)
    pre = said(x, w, b, index, value)
    return Codes(index, torch.where(real, m.amount(pre), 0.0), len(w)), pre


def joined(m: ByKeep, budget: Budget, how: Encoder, said: Float[Tensor, "batch maps"], latents: int, own: Own) -> Codes:
    """`m.code` of what `how` makes of the maps, as codes that know their places, differentiable.

    All pre-activations are made for some rows at a time, if rows are chosen alone, to choose by; what is chosen is made anew.
    """
    with torch.no_grad():
        parts = said.split(ROWS if m.alone else max(1, len(said)))
        index = _stacked([kernels.places(m.keep(how.spread(rows), budget, own)) for rows in parts], empty=-1)
        real, index = index >= 0, index.clamp(min=0)
    return Codes(index, torch.where(real, m.amount(how.at(said, index)), 0.0), latents)


def _packed(z: Pre) -> Codes:
    keep = z != 0
    index = kernels.places(keep)
    value = z.gather(1, index.clamp(min=0)).masked_fill(index < 0, 0)
    return Codes(index.clamp(min=0), value, z.shape[1])


def _stacked(parts: Sequence[Tensor], empty: int = 0) -> Tensor:
    """Rows under rows; those that are shorter end in `empty` slots."""
    most = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, most - part.shape[1]), value=empty) for part in parts])
