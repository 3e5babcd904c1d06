"""A dictionary in a running model: what a site says becomes what the dictionary makes of it, and nothing stays behind."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.layout import Codes
from fewer.measure.quality import device_of
from fewer.models.rewritten import Masked, rewritten
from fewer.models.tap import Tap, Where, find_taps, hooked

Edit = Callable[[Codes], Codes]


@contextlib.contextmanager
def spliced(
    model: nn.Module, dictionary: Dictionary, error: bool = False, where: Where | None = None, edit: Edit | None = None
) -> Iterator[None]:
    """While this is open, the model goes on with what `dictionary` writes at its sites instead of what they say.

    An autoencoder reads and writes the same site; a transcoder reads one and writes another, later one. `edit` changes
    the codes between. With `error`, what the dictionary misses is kept:

        said = x_hat(edit(z)) + (x - x_hat(z)),  computed as  x + (x_hat(edit(z)) - x_hat(z)),

    so that an edit that changes nothing changes no bit (Marks et al. 2024, 2403.19647, eq. 1). `where` takes the token
    ids of a run and is True where the dictionary speaks; elsewhere the model's own words stay. Steps of `generate`
    with a cache are runs of one token.

    ValueError: no such site, another width, or a site that is written before all that is read was heard.
    """
    if not dictionary.reads or not dictionary.writes:
        raise ValueError("this dictionary names no sites: give `reads` and `writes`, as in replace(d, reads=...)")
    reads, writes = (tuple(find_taps(model, names)) for names in (dictionary.reads, dictionary.writes))
    if len(dictionary.decoder_bias) % len(writes):
        raise ValueError(f"{len(dictionary.decoder_bias)} numbers cannot be dealt out to {len(writes)} sites")
    d = dictionary.to(device_of(model))
    with rewritten(model, reads, writes, lambda x: _said(d, x, error, edit), where, added=error):
        yield


def _said(d: Dictionary, x: Tensor, error: bool, edit: Edit | None) -> Tensor:
    """What the dictionary says of x, or with `error` by how much it says something else now."""
    if x.shape[-1] != d.encoder.shape[1]:
        raise ValueError(f"the dictionary reads {d.encoder.shape[1]} numbers a token, its sites say {x.shape[-1]}")
    rows = x.reshape(-1, x.shape[-1]).to(d.encoder.dtype)
    codes = d.encode(rows)
    out = d.decode(edit(codes) if edit else codes, rows)
    if error:
        out = torch.zeros_like(out) if edit is None else out - d.decode(codes, rows)
    return out.view(*x.shape[:-1], -1)


@contextlib.contextmanager
def replaced(model: nn.Module, by: Mapping[Tap, Tensor], where: Where | None = None) -> Iterator[None]:
    """While this is open, each tap says the same vector for every token: zero and mean ablation.

    `where` as in `spliced`. ValueError: a vector of another width than the site.
    """
    seen = Masked(where)

    def put(tap: Tap, x: Tensor) -> Tensor:
        if x.shape[-1] != by[tap].shape[-1]:
            raise ValueError(f"site {tap} says {x.shape[-1]} numbers a token, not {by[tap].shape[-1]}")
        return seen.only(tap, by[tap].to(x).expand_as(x), x)

    first = model.register_forward_pre_hook(seen.begin, with_kwargs=True, prepend=True)
    try:
        with hooked(model, {tap: lambda x, tap=tap: put(tap, x) for tap in by}):  # type: ignore[misc]
            yield
    finally:
        first.remove()
