"""In which order rows are read: all of them mixed in each pass, each batch told by its number, and a disk not made to jump for every row."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True)
class Order:
    """Which rows each batch holds: a function of `seed`, the pass and the batch's number alone.

    `run` neighbours are read together. Runs come from anywhere, in a new order each pass; as many as hold about `pool` rows
    are in memory at once and mixed before they are cut into batches. Runs begin elsewhere in each pass, and what fills
    neither a run nor a batch is left out of it. With runs of one row every order is as likely as any other, and there is
    nothing to mix.

    >>> [batch.tolist() for pool in itertools.islice(Order(6, 2, run=2, pool=4).since(0), 2) for batch in pool.reshape(-1, 2)]
    [[0, 4], [5, 1], [3, 2]]
    """

    rows: int
    batch: int
    seed: int = 0
    run: int = 1
    pool: int = 1 << 15

    def __post_init__(self) -> None:
        if self.batch < 1 or self.run < 1:
            raise ValueError(f"batches of {self.batch} rows, read {self.run} at a time: write at least 1 of each")
        if not self.each:
            raise ValueError(f"{self.rows} rows, read {self.run} at a time, do not fill one batch of {self.batch}")

    @property
    def each(self) -> int:
        """Batches in a pass."""
        return self.rows // self.run * self.run // self.batch

    @property
    def held(self) -> int:
        """Rows in memory at once: whole runs and whole batches."""
        least = math.lcm(self.batch, self.run)
        return least if self.run == 1 else least * max(1, self.pool // least)

    def since(self, number: int) -> Iterator[Int64[np.ndarray, " rows"]]:
        """The rows of all batches from that number on, in their order, some batches at a time."""
        first = number % self.each * self.batch
        for epoch in itertools.count(number // self.each):
            draw = np.random.default_rng((self.seed, epoch))
            runs, shift = draw.permutation(self.rows // self.run), draw.integers(self.run)
            for pool in range(first // self.held, -(-self.each * self.batch // self.held)):
                begin = pool * self.held
                some = runs[begin // self.run : (begin + self.held) // self.run]
                places = ((some[:, None] * self.run + np.arange(self.run) + shift) % self.rows).reshape(-1)
                if self.run > 1:
                    places = np.random.default_rng((self.seed, epoch, pool)).permutation(places)
                yield places[max(0, first - begin) : self.each * self.batch - begin]
            first = 0
