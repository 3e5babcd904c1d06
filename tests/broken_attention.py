"""Broken patterns and evictors: each must be caught by the check that is named."""

from dataclasses import replace
from fractions import Fraction

import torch
from broken import broken

from fewer import attention, cache
from fewer.core import Budget
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


@broken("attention", "check_never_above_the_budget")
class TakesMassForLeave(attention.Pattern):
    """Read on beyond the budget until the share of the mass is reached."""

    p: float = 0.9

    def attend(self, q, k, budget):
        score = attention.in_blocks(q @ k.repeat_interleave(2, 1).mT, self.rows, -torch.inf).amax(3)
        score = attention.in_blocks(score.mT, self.block, -torch.inf).amax(3).mT
        enough = Budget(Fraction(1)) if self.p < 1 else budget
        return attention.reads(score, q, k.shape[1:3], enough, self)


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


@broken("cache", "check_a_budget_for_each_head")
class SharesTheBudget(cache.ByScore):
    """Keep the shortest keys of all heads together."""

    def score(self, past):
        return -past.k.norm(dim=-1)

    def evict(self, past, counts):
        score = self.score(past).masked_fill(~past.real, -torch.inf)
        return top_k(score, counts.float().mean(-1, keepdim=True).long().expand_as(counts))


@broken("cache", "check_rows_do_not_mix")
class LooksAtTheRowBeside(cache.ByScore):
    """Hold each key against the mean of the whole batch."""

    def score(self, past):
        return -(past.k * past.k.mean((0, 1, 2))).sum(-1)


@broken("cache", "check_the_total_stays")
class GivesMoreThanThereIs(cache.Allocator):
    """Double every budget."""

    def allocate(self, score, counts, layer, layers):
        return (2 * counts).clamp(max=score.shape[-1])


@broken("cache", "check_empty_slots_get_nothing")
class GivesToTheEmpty(cache.Allocator):
    """Leave budgets as they are."""

    def allocate(self, score, counts, layer, layers):
        return counts


@broken("cache", "check_what_all_stays_is_unchanged")
class SmoothsAlways(cache.Corrector):
    """Mix every value with the mean."""

    def correct(self, past, keep):
        return replace(past, v=(past.v + past.v.mean(2, keepdim=True)) / 2)


@broken("cache", "check_the_empty_change_nothing")
class MergesTheEmpty(cache.Corrector):
    """Add the mean of all that goes, empty slots too, to what stays."""

    def correct(self, past, keep):
        gone = (past.v * ~keep[..., None]).sum(2, keepdim=True)
        return past if keep[past.real].all() else replace(past, v=past.v + gone)


class AsItIs(cache.Form):
    def write(self, k, v, learnt=()):
        return k, v

    def read(self, stored, dims, learnt=()):
        return stored


@broken("cache", "check_what_is_read_is_near")
class ReadsZeros(AsItIs):
    """Store pages, and read nothing out of them."""

    def read(self, stored, dims, learnt=()):
        return stored[0] * 0, stored[1] * 0


@broken("cache", "check_a_page_is_stored_by_itself")
class ScalesTogether(AsItIs):
    """Divide all pages by their largest number, and let that stand in each."""

    def write(self, k, v, learnt=()):
        return k / k.abs().max(), v, k.abs().max().expand(len(k))

    def read(self, stored, dims, learnt=()):
        return stored[0] * stored[2][:, None, None], stored[1]


@broken("cache", "check_takes_less_or_lies_elsewhere")
class TakesTwice(AsItIs):
    """Store everything twice."""

    def write(self, k, v, learnt=()):
        return k, v, k, v

    def read(self, stored, dims, learnt=()):
        return stored[:2]


@broken("cache", "check_a_form_is_pure")
class Halves(AsItIs):
    """Store halves, where the pages were."""

    def write(self, k, v, learnt=()):
        return k.mul_(0.9), v


@broken("attention", "check_who_reads_like_the_last_gets_like_it")
class CorrectsHalf(attention.Corrector):
    """Add half of what was missed."""

    def correct(self, got, near, full):
        return tuple(x + (z - y) / 2 for x, y, z in zip(got, near, full, strict=True))


@broken("attention", "check_where_nothing_was_missed_nothing_changes")
class TakesTheLast(attention.Corrector):
    """Say what the last said."""

    def correct(self, got, near, full):
        return full


@broken("attention", "check_rows_are_corrected_each_by_itself")
class CorrectsByTheMean(attention.Corrector):
    """Add what was missed on average."""

    def correct(self, got, near, full):
        missed = [(z - y) for y, z in zip(near, full, strict=True)]
        if got[0] is near[0]:
            return full
        return got[0] + missed[0].mean(2, keepdim=True), got[1] + missed[1]


def softly(r, may=None, whole=True):
    """Softmax attention by a mask that may be wrong; not `whole`, who reads nothing gets NaN."""
    score = r.scores().masked_fill(~(r.may() if may is None else may), -torch.inf)
    weight = score.softmax(-1).nan_to_num(0.0) if whole else score.softmax(-1)
    return (weight @ r.v.float()[:, :, None]).flatten(1, 2).to(r.q.dtype)


@broken("attention", "check_parts_are_the_same_each_time")
class BeginsAnew(attention.Mixer):
    """Draw parts from the chance of all."""

    def begin(self, shape, make):
        return {"gain": torch.randn(3)}

    def mix(self, r, budget):
        return softly(r) * r.parts["gain"].mean()


@broken("attention", "check_rows_and_padding")
class ReadsPadding(attention.Mixer):
    """Read what lies before each slot, tokens or not."""

    def mix(self, r, budget):
        n = r.k.shape[2]
        return softly(r, torch.ones(n, n).tril().bool()[None, None, None, n - r.q.shape[2] :])


@broken("attention", "check_chunks")
class CountsQueries(attention.Mixer):
    """Weaken each query by its number among those asked."""

    def mix(self, r, budget):
        return softly(r) / (torch.arange(r.q.shape[2]) + 1.0)[:, None]


@broken("attention", "check_causal")
class MixesAhead(attention.Mixer):
    """Read what there is, the future too."""

    def mix(self, r, budget):
        return softly(r, (r.at >= 0)[:, :, None, None])


@broken("attention", "check_window")
class ForgetsTheWindow(attention.Mixer):
    """Read the whole past."""

    def mix(self, r, budget):
        return softly(replace(r, window=0))


@broken("attention", "check_gradient")
class DividesByNothing(attention.Mixer):
    """Hide a NaN, and leave it in the gradient."""

    def mix(self, r, budget):
        out = softly(r, whole=False)
        return torch.where(out.isnan(), 0.0, out)


@broken("attention", "check_dtype")
class AddsUpInHalves(attention.Mixer):
    """Give float32, whatever came in."""

    def mix(self, r, budget):
        return softly(r).float()


@broken("attention", "check_pure")
class ScalesInPlace(attention.Mixer):
    """Scale the queries where they lie."""

    def mix(self, r, budget):
        return softly(replace(r, q=r.q.mul_(0.5)))


@broken("attention", "check_no_more_is_said_again_than_there_was")
class SaysTheSameAgain(attention.Refresher):
    """Say 8 tokens again after each."""

    def due(self, step):
        return 8
