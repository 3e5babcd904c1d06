"""Broken patterns and evictors: each must be caught by the check that is named."""

import torch
from broken import broken

from fewer import attention, cache
from fewer.kernels import top_k


@broken("attention", "check_causal")
class Clairvoyant(attention.Pattern):
    """Read the future."""

    def attend(self, q, k, budget):
        b, h, n, _ = q.shape
        return torch.ones(b, h, -(-n // self.rows), -(-k.shape[2] // self.block), dtype=torch.bool)


@broken("attention", "check_decoding")
class CountsFromTheFront(attention.ByPlace):
    """Score by the row's number, so one query at the end is taken for the first."""

    def score_places(self, now, blocks, heads):
        return (torch.arange(blocks) - torch.arange(len(now))[:, None]).abs().float()[None, None]


@broken("attention", "check_a_digest_is_made_block_by_block")
class RemembersTheWhole(attention.ByScore):
    """Hold each block against the mean of all."""

    def digest(self, k):
        return (attention.in_blocks(k - k.mean(2, keepdim=True), self.block).mean(3),)

    def score(self, q, digest):
        mean = digest[0].repeat_interleave(q.shape[1] // digest[0].shape[1], 1)
        return attention.in_blocks(q @ mean.mT, self.rows, -torch.inf).amax(3)


@broken("cache", "check_empty_slots_do_not_stay")
class KeepsPadding(cache.Evictor):
    """Keep the longest keys, tokens or not."""

    def evict(self, past, counts):
        return top_k(past.k.norm(dim=-1), counts)


@broken("cache", "check_budget")
class KeepsOneMore(cache.ByScore):
    """Keep the shortest keys and the newest."""

    def score(self, past):
        return -past.k.norm(dim=-1)

    def evict(self, past, counts):
        return super().evict(past, counts) | (past.at == past.at.amax(-1, keepdim=True))
