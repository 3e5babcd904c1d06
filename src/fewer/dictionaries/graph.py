"""A graph of direct effects between the parts of one run: what matters in it, and as a file that graph viewers open."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EMBEDDING, LATENT, ERROR, LOGIT = "embedding", "cross layer transcoder", "mlp reconstruction error", "logit"


@dataclass(frozen=True)
class Node:
    """A part of one run: a latent, what a dictionary missed, a token's embedding, or a logit.

    `layer` is the place of the dictionary in the list that was given, `index` the latent or the token, `value` the latent's
    code or the logit's probability.
    """

    kind: str
    position: int
    layer: int = -1
    index: int = -1
    value: float = 0.0


@dataclass(frozen=True, eq=False)
class Graph:
    """`effects[t, s]` is how much of t's pre-activation (or logit) comes straight from s; `bias[t]` comes from no node.

    Rows without a target (embeddings, errors) are zero, and so are rows of latents in `left_out`. For every other,
    effects[t].sum() + bias[t] = pre[t].

    >>> nodes = Node(EMBEDDING, 0), Node(ERROR, 0, 0), Node(LATENT, 0, 0, 7, 4.0), Node(LOGIT, 0, index=5, value=1.0)
    >>> effects = torch.zeros(4, 4)
    >>> effects[2, :2] = torch.tensor([3.0, 1.0])  # the latent hears 3 from the token, 1 from the error
    >>> effects[3] = torch.tensor([1.0, 0.0, -1.0, 0.0])  # the logit hears the token, and, as much, the latent
    >>> g = Graph(nodes, effects, torch.zeros(4), effects.sum(1), (5,))
    >>> g.influence()  # token: 1/2 + 1/2 . 3/4
    tensor([0.8750, 0.1250, 0.5000, 0.0000])
    >>> g.replacement(), round(g.completeness(), 4)  # 1 - 1/4 . 1/2 of 3 (token 7/8, error 1/8, latent 1/2, logit 1)
    (0.875, 0.95)
    """

    nodes: tuple[Node, ...]
    effects: Float[Tensor, "nodes nodes"]
    bias: Float[Tensor, " nodes"]
    pre: Float[Tensor, " nodes"]
    tokens: tuple[int, ...]

    def of(self, *kinds: str) -> Bool[Tensor, " nodes"]:
        """Which nodes are of one of these kinds."""
        return torch.tensor([n.kind in kinds for n in self.nodes], device=self.effects.device)

    @property
    def weights(self) -> Float[Tensor, " nodes"]:
        """The logits' probabilities, 0 elsewhere: what influence is counted on."""
        return torch.tensor([n.value if n.kind == LOGIT else 0.0 for n in self.nodes]).to(self.effects)

    def influence(self) -> Float[Tensor, " nodes"]:
        """How much of the logits goes through each node: w (A + A^2 + ...), with A the sizes of effects by their row's sum."""
        return _influence(_shares(self.effects), self.weights)

    def replacement(self) -> float:
        """Of the influence that starts somewhere, the share that starts at tokens and not at errors. 1 is best."""
        flow = self.influence()
        start, missed = flow[self.of(EMBEDDING)].sum(), flow[self.of(ERROR)].sum()
        return float(start / (start + missed))

    def completeness(self) -> float:
        """The share of what nodes hear that does not come from errors, weighted by the nodes' influence. 1 is best."""
        shares = _shares(self.effects)
        flow = _influence(shares, self.weights) + self.weights
        return float(((1 - shares[:, self.of(ERROR)].sum(1)) * flow).sum() / flow.sum())

    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> "Graph":
        """The nodes, then the edges, that hold these shares of the influence; tokens and logits stay.

        A latent or an error that nothing goes out of, and a latent that nothing comes into, goes too. ValueError: a share that is not in [0, 1].
        """
        for name, share in (("nodes", nodes), ("edges", edges)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: expected a share of the influence, from 0 to 1")
        ends, latents = self.of(EMBEDDING, LOGIT), self.of(LATENT)
        keep = _most(self.influence(), nodes) | ends
        inside = self.effects * keep[:, None] * keep
        shares = _shares(inside)
        score = shares * (_influence(shares, self.weights) + self.weights)[:, None]
        linked = _most(score.flatten(), edges).view_as(score) & (score > 0)
        before = -1
        while before != int(keep.sum()):
            before = int(keep.sum())
            linked &= keep[:, None] & keep
            keep &= ends | (linked.any(0) & (linked.any(1) | ~latents))
        at = keep.nonzero()[:, 0]
        return replace(
            self,
            nodes=tuple(self.nodes[i] for i in at.tolist()),
            effects=(inside * linked)[at][:, at],
            bias=self.bias[at],
            pre=self.pre[at],
        )


def _shares(effects: Tensor) -> Tensor:
    size = effects.abs()
    return size / size.sum(1, keepdim=True).clamp(min=1e-10)


def _influence(shares: Tensor, weights: Tensor) -> Tensor:
    flow, total = weights @ shares, torch.zeros_like(weights)
    for _ in range(len(weights)):  # no path is longer: the graph has no cycles
        if not flow.any():
            break
        total, flow = total + flow, flow @ shares
    return total


def _most(score: Tensor, share: float) -> Tensor:
    """The highest scores that together are `share` of all."""
    best, order = score.sort(descending=True, stable=True)
    before = best.cumsum(0) - best
    keep = torch.zeros_like(score, dtype=torch.bool)
    keep[order] = before < share * best.sum()
    return keep


def write_graph(
    graph: Graph,
    path: str | Path,
    words: Sequence[str],
    scan: str,
    logits: Mapping[int, str] | None = None,
    threshold: float | None = None,
) -> None:
    """The graph as the JSON that Neuronpedia and circuit-tracer show; `words` are the prompt's tokens as text, `scan` names the dictionaries.

    Node ids are `layer_latent_position`, a latent's `feature` is the Cantor pairing of layer and latent. Numbers that pair
    must match the layers of the model for the viewer to find its pages: give a dictionary for every layer, or none is found.
    """
    if len(words) != len(graph.tokens):
        raise ValueError(f"{len(words)} words for a prompt of {len(graph.tokens)} tokens: give one text for each token")
    layers = 1 + max((n.layer for n in graph.nodes), default=-1)
    flow = graph.influence()
    order = flow.argsort(descending=True)
    reached = torch.empty_like(flow)
    reached[order] = flow[order].cumsum(0) / flow.sum()
    rank = sorted((n for n in graph.nodes if n.kind == LOGIT), key=lambda n: -n.value)
    said = [_written(n, layers, graph, logits or {}, n in rank[:1]) for n in graph.nodes]
    for node, one, share in zip(graph.nodes, said, reached.tolist(), strict=True):
        if node.kind != LOGIT:
            one["influence"] = share
    links = [
        {"source": said[s]["node_id"], "target": said[t]["node_id"], "weight": float(graph.effects[t, s])}
        for t, s in graph.effects.nonzero().tolist()
    ]
    name = Path(path).stem
    about = {"slug": name, "scan": scan, "transcoder_list": [], "prompt_tokens": list(words), "prompt": "".join(words)}
    about |= {"schema_version": 1} | ({} if threshold is None else {"node_threshold": threshold})
    empty = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    _put(Path(path), {"metadata": about, "qParams": empty, "nodes": said, "links": links})


def _written(node: Node, layers: int, graph: Graph, logits: Mapping[int, str], target: bool) -> dict[str, Any]:
    i, at = node.index, node.position
    token = graph.tokens[at] if node.kind == EMBEDDING else -1
    top = layers + 1  # where viewers put logits
    names: dict[str, tuple[str, str, int, str]] = {  # id, id in scripts, feature, layer
        LATENT: (f"{node.layer}_{i}_{at}", f"{node.layer}_{i}-0", _pair(node.layer, i), str(node.layer)),
        ERROR: (f"{node.layer}_-1_{at}", f"{node.layer}_-1-{at}", -1, str(node.layer)),
        EMBEDDING: (f"E_{token}_{at}", f"E_{token}-{at}", at, "E"),
        LOGIT: (f"{top}_{i}_{at}", f"L_{i}-{at}", i, str(top)),
    }
    identity, script, feature, layer = names[node.kind]
    is_logit = node.kind == LOGIT
    clerp = f'Output "{logits.get(i, i)}" (p={node.value:.3f})' if is_logit else ""
    return {
        "node_id": identity,
        "feature": feature,
        "layer": layer,
        "ctx_idx": at,
        "feature_type": node.kind,
        "token_prob": node.value if is_logit else 0.0,
        "is_target_logit": target,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": script,
        "clerp": clerp,
        "influence": None,
        "activation": node.value if node.kind == LATENT else None,
    }


def _pair(a: int, b: int) -> int:
    return (a + b) * (a + b + 1) // 2 + b


def _put(path: Path, content: dict[str, Any]) -> None:
    file, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(file, "w", encoding="utf-8") as out:
            json.dump(content, out, allow_nan=False)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
