"""Maps of a model that share an inner dimension, so that a piece of it leaves all of them together."""

from dataclasses import dataclass

from .site import Site


@dataclass(frozen=True, eq=False)
class Group:
    """`units` pieces that several maps share: channels of an MLP, key-value heads (with their queries) of attention.

    The `writers` make what a unit holds: unit u owns the u-th of `units` equal runs of rows in each of them (and of their
    biases). The `reader` reads it: unit u owns the u-th run of its columns.
    """

    name: str  # of the module that holds them all: "model.layers.0.mlp"
    writers: tuple[Site, ...]
    reader: Site
    units: int

    @property
    def layer(self) -> int | None:
        """The number of the block it lies in."""
        return self.reader.layer

    @property
    def sites(self) -> tuple[Site, ...]:
        return (*self.writers, self.reader)

    def __repr__(self) -> str:
        return f"Group({self.name!r}, units={self.units}, {', '.join(s.role for s in self.sites)})"
