"""Gradients of Triton's kernels beside those of the reference in float64, watched in the interpreter where there is no GPU."""

import torch

from fewer import kernels
from fewer.kernels._dispatch import tensors_of

GPU = torch.cuda.is_available()


def gradients(do, args, weights):
    """The results, and for all floating tensors among the arguments the gradients of a weighted sum of the results."""
    given = [a.detach().clone().to(torch.promote_types(a.dtype, weights[0].dtype)) if floats(a) else a for a in args]
    leaves = [a.requires_grad_() for a in given if floats(a)]
    out = do(*given)
    out = out if isinstance(out, tuple) else (out,)
    total = sum(  # who reads nothing has no slope
        (torch.where(o.isfinite(), o, 0) * w.to(o.dtype)).sum() for o, w in zip(out, weights, strict=False)
    )
    return out[0], torch.autograd.grad(total, leaves)


def floats(a):
    return isinstance(a, torch.Tensor) and a.is_floating_point()


def compare(op, args, dtype, do=None):
    """`do`, the GPU's kernel if none is given, against the reference in float64."""
    make = torch.Generator().manual_seed(1)
    q, v = args[0], args[2]
    weights = [torch.randn(*q.shape[:3], n, generator=make).to(q.device) for n in (v.shape[-1], 1)]
    weights[1] = weights[1].squeeze(-1)
    given = [w.to(dtype).double() for w in weights]
    truth_out, truth = gradients(kernels.load(op, "ref"), args, given)
    weights, do = [given[0].to(dtype), given[1].float()], do or kernels.load(op, "gpu")
    if GPU:
        out, found = gradients(do, args, weights)
    else:
        from fewer.testing.interpret import watch

        with watch(*tensors_of(args), *weights):
            out, found = gradients(do, args, weights)
    limit = 2e-5 if dtype == torch.float32 else 2e-2
    for mine, wanted in zip((out, *found), (truth_out, *truth), strict=True):
        assert mine.dtype == (dtype if mine.dim() > 1 else torch.float32) and mine.shape == wanted.shape
        assert (mine.double() - wanted).norm() <= limit * wanted.norm() + 1e-12
    return out, found
