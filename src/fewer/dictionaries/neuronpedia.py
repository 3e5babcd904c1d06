"""Facts as Neuronpedia takes them from SAEDashboard: `batch-{i}.json`."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from fewer.features import Dictionary

from .facts import Example, Facts
from .store import Index

BATCH = 128  # features in a file
ALIGNED = 3  # neurons that are named of each


@dataclass(frozen=True)
class Source:
    """What Neuronpedia calls a source: `{layer}-{sae_set}` of a model, with an optional suffix."""

    model_id: str
    layer: int
    sae_set: str
    suffix: str | None = None
    dataset: str = ""


def to_neuronpedia(
    index: Index,
    dictionary: Dictionary,
    facts: Iterable[Facts],
    words: Callable[[Sequence[int]], Sequence[str]],
    out: str | Path,
    source: Source,
) -> Path:
    """Write OUT/batch-0.json and so on, 128 features each, as they come; `words` spells tokens by their numbers.

    Each group of examples is one stretch of the ranking of windows: `bin_min` and `bin_max` are its quietest and loudest
    peak (-1 to the maximum for the loudest group, as SAEDashboard marks it), `bin_contains` the share of all activations
    between the two. `frac_nonzero` counts the tokens that were coded. Neurons are aligned by the decoder's row;
    correlations with neurons would need the activations themselves, and are left empty.
    """
    out = Path(out)
    part = out.with_name(f"{out.name}.partial")
    if out.exists():
        raise ValueError(f"{out} exists; choose another name, or remove it first")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    coming, numbers = iter(facts), count()
    head = {"model_id": source.model_id, "layer": source.layer, "sae_set": source.sae_set}
    while some := list(islice(coming, BATCH)):
        rows = [_feature(index, dictionary, f, words, source) for f in some]
        text = json.dumps({**head, "sae_id_suffix": source.suffix, "features": rows}, ensure_ascii=False)
        (part / f"batch-{next(numbers)}.json").write_text(text, encoding="utf-8")
    os.replace(part, out)
    return out


def _feature(index: Index, dictionary: Dictionary, f: Facts, words: Any, source: Source) -> dict[str, Any]:
    windows, length = index.tokens.shape
    row = dictionary.decoder[f.feature].float().abs()
    share, aligned = (row / row.sum().clamp(min=1e-30)).topk(min(ALIGNED, len(row)))
    heights, low, high = f.logits
    return {
        "feature_index": f.feature,
        "neuron_alignment_indices": aligned.tolist(),
        "neuron_alignment_values": _round(dictionary.decoder[f.feature][aligned].tolist()),
        "neuron_alignment_l1": _round(share.tolist()),
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [g for g, _, _, _ in f.together],
        "correlated_features_l1": _round([cosine for _, _, cosine, _ in f.together]),
        "correlated_features_pearson": _round([r for _, r, _, _ in f.together]),
        "neg_str": list(words([t for t, _ in f.suppressed])),
        "neg_values": _round([x for _, x in f.suppressed]),
        "pos_str": list(words([t for t, _ in f.promoted])),
        "pos_values": _round([x for _, x in f.promoted]),
        "frac_nonzero": f.frequency,
        "freq_hist_data_bar_values": _middles(len(f.histogram), f.low, f.high),
        "freq_hist_data_bar_heights": list(f.histogram),
        "logits_hist_data_bar_heights": list(heights),
        "logits_hist_data_bar_values": _middles(len(heights), low, high),
        "n_prompts_total": windows,
        "n_tokens_in_prompt": length,
        "dataset": source.dataset,
        "decoder_weights_dist": [],
        "activations": _activations(index, f, words),
        "vector": [],
    }


def _activations(index: Index, f: Facts, words: Any) -> list[dict[str, Any]]:
    groups: dict[float, list[Example]] = {}
    for example in f.examples:
        groups.setdefault(example.quantile, []).append(example)
    values, out = np.abs(index.of(f.feature)[1]), []
    for quantile, group in groups.items():
        peaks = [abs(e.values[e.place - e.first]) for e in group]
        low, high = min(peaks), max(peaks)
        share = float(((values >= low) & (values <= high)).mean())
        top = quantile == 1
        ends = {"bin_min": -1 if top else low, "bin_max": high, "bin_contains": -1 if top else share}
        out += [
            {
                **ends,
                "tokens": list(words(e.tokens)),
                "values": _round(e.values),
                "qualifying_token_index": e.place - e.first,
            }
            for e in group
        ]
    return out


def _middles(bins: int, low: float, high: float) -> list[float]:
    return _round([low + (high - low) * (i + 0.5) / bins for i in range(bins)])


def _round(values: Sequence[float]) -> list[float]:
    """Three decimals, as SAEDashboard writes them."""
    return [round(float(x), 3) for x in values]
