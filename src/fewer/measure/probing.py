"""What a few latents tell of a label: k-sparse probes, and classifiers on codes pooled over a text."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .estimate import Score, jackknife, share


def contrast(z: Float[Tensor, "n latents"], label: Int[Tensor, " n"]) -> Float[Tensor, " latents"]:
    """How far apart the two classes' means lie for each latent: mean of z where the label is 1, less where it is 0.

    >>> contrast(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([0, 1])).tolist()
    [2.0, 0.0]
    """
    if not ((label == 0) | (label == 1)).all() or label.sum() in (0, len(label)):
        raise ValueError("labels must be 0 and 1, and there must be some of each")
    return z[label == 1].mean(0) - z[label == 0].mean(0)


def sparse_probe(
    train: Float[Tensor, "n latents"],
    label: Int[Tensor, " n"],
    test: Float[Tensor, "m latents"],
    truth: Int[Tensor, " m"],
    k: int = 1,
) -> Score:
    """Accuracy on `test` of a logistic probe that sees the `k` latents whose class means differ most. Higher is better.

    Gurnee et al. 2023 (2305.01610), with their mean-difference choice, as in SAEBench (2503.09532). Chosen and fitted on
    `train` alone; chance is the larger class. Wilson's interval over the rows of `test`.
    """
    best = contrast(train, label).abs().topk(min(k, train.shape[1])).indices
    probe = logistic(train[:, best], label)
    right = torch.from_numpy(probe.predict(test[:, best].double().cpu().numpy())) == truth.cpu()
    return Score(f"sparse_probe_{k}", share(int(right.sum()), len(truth)), higher_is_better=True)


def logistic(x: Float[Tensor, "n dim"], label: Int[Tensor, " n"]) -> Any:
    """scikit-learn's logistic regression on standardised columns, fitted; `predict` takes float64 rows as numpy."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as e:
        raise ImportError("probes need scikit-learn: pip install 'fewer[judge]'") from e
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(x.double().cpu().numpy(), label.cpu().numpy())


def direction(x: Float[Tensor, "n dim"], label: Int[Tensor, " n"]) -> tuple[Float[Tensor, " dim"], float]:
    """The logistic probe as one direction and a bias, in the units of `x`: label 1 where x . w + b > 0."""
    scaler, probe = (step for _, step in logistic(x, label).steps)
    w = probe.coef_[0] / scaler.scale_
    return torch.from_numpy(w).to(x), float(probe.intercept_[0] - w @ scaler.mean_)


def pooled(
    z: Float[Tensor, "tokens latents"], text: Int[Tensor, " tokens"], reduce: str = "amax", above: float | None = None
) -> Float[Tensor, "texts latents"]:
    """The codes of each text's tokens as one row: `sum`, `mean` or `amax` (torch's words); with `above`, 1 where more, else 0.

    Gallifant et al. 2025 (2502.11367). `text` says to which text a token belongs, 0 to texts - 1.

    >>> pooled(torch.tensor([[1.0, 0.0], [3.0, 0.5], [0.0, 2.0]]), torch.tensor([0, 0, 1]), above=0.9).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    out = z.new_zeros(int(text.max()) + 1, z.shape[1])
    out.scatter_reduce_(0, text[:, None].expand_as(z).long(), z, reduce, include_self=False)
    return out if above is None else (out > above).to(z)


def classify(
    train: Float[Tensor, "n dim"],
    label: Int[Tensor, " n"],
    test: Float[Tensor, "m dim"],
    truth: Int[Tensor, " m"],
) -> Score:
    """Macro F1 on `test` of a logistic classifier fitted on `train`. Higher is better.

    Pooled codes beside pooled hidden states and bags of words is the comparison of Gallifant et al. 2025 (2502.11367);
    `test` from another language, or from another model through matched latents, is their transfer. A class's F1 is
    2 hits / (said + true). Jackknife over the rows of `test`.
    """
    said = torch.from_numpy(logistic(train, label).predict(test.double().cpu().numpy()))
    truth = truth.cpu()
    return Score("macro_f1", jackknife(lambda rows: macro_f1(said[rows], truth[rows]), len(truth)), True)


def macro_f1(said: Int[Tensor, " n"], truth: Int[Tensor, " n"]) -> float:
    """The mean F1 over the classes that are said or true.

    >>> macro_f1(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))  # 2/3 and 2/3
    0.666...
    """
    each = [
        2 * ((said == c) & (truth == c)).double().sum() / ((said == c).sum() + (truth == c).sum())
        for c in torch.cat([said, truth]).unique()
    ]
    return torch.stack(each).double().mean().item()
