"""Which blocks of keys each block of queries reads, as FlexAttention's BlockMask has it."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int32, Shaped, UInt8
from torch import Tensor

from ._base import Layout, layout
from ._bits import same_shape

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask, _mask_mod_signature

PARTLY, WHOLLY = 1, 2


@layout
class Blocks(Layout):
    """Right for attention: a matrix of blocks, 0 not read, 1 read in part (a mask function decides), 2 read whole.

    For each block of queries, `kv_indices` lists first the `kv_num_blocks` blocks of keys that it reads in part, then
    the rest; the `full_` pair those that it reads whole. `block` is (queries, keys) per block, `lengths` (queries,
    keys) in all. Leading dimensions are (batch, heads), either may be 1.

    Bytes: 8 · grid + 8 · grid / key blocks, with grid = batch · heads · query blocks · key blocks.

    >>> import torch
    >>> causal = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    >>> b = Blocks.of_tokens(causal, block=(2, 2))
    >>> b.dense()[0, 0].tolist()
    [[1, 0], [2, 1]]
    >>> b.kv_num_blocks.tolist(), b.kv_indices.tolist()
    ([[[1, 1]]], [[[[0, 1], [1, 0]]]])
    >>> b.full_kv_num_blocks.tolist(), b.bytes      # 8 · 4 + 8 · 2
    ([[[0, 1]]], 48)
    """

    kv_num_blocks: Int32[Tensor, "batch heads queries"]
    kv_indices: Int32[Tensor, "batch heads queries keys"]
    full_kv_num_blocks: Int32[Tensor, "batch heads queries"]
    full_kv_indices: Int32[Tensor, "batch heads queries keys"]
    block: tuple[int, int]
    lengths: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.kv_indices.shape)

    @classmethod
    def pack(
        cls,
        x: Shaped[Tensor, "batch heads queries keys"],
        keep: Bool[Tensor, "batch heads queries keys"],
        block: tuple[int, int] = (128, 128),
        lengths: tuple[int, int] | None = None,
    ) -> "Blocks":
        """`x` tells for each block 1 or 2 (a Bool: read whole), `keep` whether it is read at all."""
        same_shape(x, keep)
        x = x * WHOLLY if x.dtype is torch.bool else x
        if bool((keep & (x != PARTLY) & (x != WHOLLY)).any()):
            raise ValueError(f"a block that is read is {PARTLY} (in part) or {WHOLLY} (whole); give those, or a Bool")
        queries, keys = x.shape[2:]
        lengths = lengths or (queries * block[0], keys * block[1])
        if (queries, keys) != (-(-lengths[0] // block[0]), -(-lengths[1] // block[1])):
            raise ValueError(
                f"{lengths} tokens in blocks of {block} are not {queries} x {keys} blocks; check the lengths"
            )
        return cls(*_order(keep & (x == PARTLY)), *_order(keep & (x == WHOLLY)), block, lengths)

    @classmethod
    def of_tokens(cls, mask: Bool[Tensor, "batch heads q k"], block: tuple[int, int] = (128, 128)) -> "Blocks":
        """From the mask of tokens: a block is read whole if all of it is, in part if some; a last short one in part."""
        q, k = mask.shape[2:]
        padded = torch.nn.functional.pad(mask, (0, -k % block[1], 0, -q % block[0]))
        grid = padded.unflatten(-1, (-1, block[1])).unflatten(-3, (-1, block[0])).transpose(-3, -2)
        some, every = grid.flatten(-2).any(-1), grid.flatten(-2).all(-1)
        return cls.pack(some.byte() + every.byte(), some, block, (q, k))

    def dense(self) -> UInt8[Tensor, "batch heads queries keys"]:
        partly, wholly = self._read(self.kv_num_blocks, self.kv_indices), self._full()
        return partly.byte() * PARTLY + wholly.byte() * WHOLLY

    def keep(self) -> Bool[Tensor, "batch heads queries keys"]:
        return self._read(self.kv_num_blocks, self.kv_indices) | self._full()

    def tokens(self) -> Bool[Tensor, "batch heads q k"]:
        """Every token of every block that is read, in part or whole."""
        (h, w), (q, k) = self.block, self.lengths
        return self.keep().repeat_interleave(h, 2).repeat_interleave(w, 3)[..., :q, :k]

    def block_mask(self, mask_mod: "_mask_mod_signature | None" = None) -> "BlockMask":
        """What `flex_attention` takes. `mask_mod(b, h, q, k)` decides inside the blocks that are read in part."""
        from torch.nn.attention.flex_attention import BlockMask

        return BlockMask.from_kv_blocks(
            self.kv_num_blocks,
            self.kv_indices,
            self.full_kv_num_blocks,
            self.full_kv_indices,
            BLOCK_SIZE=self.block,
            mask_mod=mask_mod,
            seq_lengths=self.lengths,
        )

    @classmethod
    def of_block_mask(cls, mask: "BlockMask") -> "Blocks":
        """From a BlockMask; its mask function is not stored."""
        count, index = mask.full_kv_num_blocks, mask.full_kv_indices
        if count is None or index is None:
            count, index = _order(torch.zeros_like(mask.kv_indices, dtype=torch.bool))
        block, lengths = mask.BLOCK_SIZE, mask.seq_lengths
        return cls(mask.kv_num_blocks, mask.kv_indices, count, index, (block[0], block[1]), (lengths[0], lengths[1]))

    def _full(self) -> Bool[Tensor, "batch heads queries keys"]:
        return self._read(self.full_kv_num_blocks, self.full_kv_indices)

    def _read(self, count: Tensor, index: Tensor) -> Bool[Tensor, "batch heads queries keys"]:
        first = torch.arange(index.shape[-1], device=index.device) < count[..., None]
        return torch.zeros_like(first).scatter_(-1, index.long(), first)


def _order(read: Bool[Tensor, "*rows keys"]) -> tuple[Int32[Tensor, "*rows"], Int32[Tensor, "*rows keys"]]:
    """How many, and which: those that are read first, each part ascending."""
    index = read.byte().argsort(descending=True, stable=True)
    return read.sum(-1, dtype=torch.int32), index.to(torch.int32)
