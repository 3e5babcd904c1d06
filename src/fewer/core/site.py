"""One place in a model where an axis can act, and what acting there did."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def first_argument(module: "nn.Module", args: tuple, kwargs: dict) -> "Tensor":
    """What a linear map is given: its first positional argument, else its only keyword."""
    return args[0] if args else next(iter(kwargs.values()))


@dataclass(frozen=True, eq=False)
class Site:
    """A linear map inside a module, whatever shape the module stores it in.

    `role` is one of `q k v o gate up down router embed head` for maps, `attention mlp experts residual` for places.
    A fused projection gives one site per part (`part` holds its output rows), a stack of experts one per expert
    (`index`), a `Conv1D` is `transposed`. `inputs` finds this map's input in its module's arguments.
    """

    name: str
    module: "nn.Module"
    role: str = "other"
    layer: int | None = None  # the number of the block it lies in
    param: str = "weight"
    index: int | None = None
    part: "slice | Tensor | None" = None
    transposed: bool = False
    inputs: Callable[["nn.Module", tuple, dict], "Tensor"] = first_argument

    @property
    def tensor(self) -> "Tensor":
        """The parameter that this site is (a part of)."""
        return getattr(self.module, self.param)

    def read(self) -> "Tensor":
        """The map as `[out, in]`, detached; a view where the storage allows one."""
        w = self.tensor.detach()
        w = w if self.index is None else w[self.index]
        w = w.mT if self.transposed else w
        return w if self.part is None else w[self.part]

    def write(self, w: "Tensor") -> None:
        """Replace the map, in the parameter's own dtype and place."""
        whole = self.tensor.detach()
        whole = whole if self.index is None else whole[self.index]
        whole = whole.mT if self.transposed else whole
        if self.part is None:
            whole.copy_(w)
        else:
            whole[self.part] = w.to(whole.dtype)

    @property
    def bias_name(self) -> str:
        """`weight` goes with `bias`, `in_proj_weight` with `in_proj_bias`, a stack `down_proj` with `down_proj_bias`."""
        return f"{self.param.removesuffix('weight')}{'' if self.param.endswith('weight') else '_'}bias"

    @property
    def takes_bias(self) -> bool:
        """Whether the module adds a bias, or would if it had one."""
        return self.bias_name in self.module._parameters

    @property
    def bias(self) -> "Tensor | None":
        """The module's bias, of all its rows."""
        return self.module._parameters.get(self.bias_name)

    def shift(self, by: "Tensor") -> "Tensor | None":
        """Add to the bias of this map's rows. A module without one is given one, which is returned: it is new."""
        new = None
        if self.bias is None:
            rows = self.tensor.shape[-1 if self.transposed else -2]
            make: Any = type(self.tensor)  # torch's Parameter, which this room does not import
            new = make(self.tensor.detach().new_zeros(rows), requires_grad=self.tensor.requires_grad)
            self.module.register_parameter(self.bias_name, new)
        whole = self.bias.detach()  # type: ignore[union-attr]
        whole = whole if self.index is None else whole[self.index]
        part = slice(None) if self.part is None else self.part
        whole[part] += by.to(whole.dtype)
        return new

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.read().shape
        return rows, cols

    def __repr__(self) -> str:
        return f"Site({self.name!r}, role={self.role!r}, layer={self.layer})"


@dataclass(frozen=True)
class Change:
    """What a step did at one site: one line of the report.

    `error` is ||(W - W') X||^2 / ||W X||^2 on the calibration inputs where a statistic allows it, else None. `weights` are
    counted before. For one token, by costs measured on a machine like this (0: unknown): `floor` are the seconds that reading
    what is stored takes, `runs` those that it takes to multiply by it, `plain` those of a dense map of eight bits.
    """

    site: str
    step: str
    budget: str
    kept: float
    bytes_before: int
    bytes_after: int
    layout: str = "dense"
    error: float | None = None
    seconds: float = 0.0
    weights: int = 0
    floor: float = 0.0
    runs: float = 0.0
    plain: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
