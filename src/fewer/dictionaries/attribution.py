"""Who made this token likely: one run of a model, its MLPs read through transcoders, as a graph of direct effects."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewer import kernels
from fewer.features import Dictionary
from fewer.layout import Codes
from fewer.models import Tap, blocks, find_taps, hooked

from .frozen import frozen
from .graph import EMBEDDING, ERROR, LATENT, LOGIT, Graph, Node


@dataclass(frozen=True, eq=False)
class _Run:
    """One run with everything that a dictionary writes cut off from where it came from."""

    read: Mapping[Tap, Tensor]  # with a gradient to the leaves
    leaf: Mapping[Tap, Tensor]  # embeddings first, then what is written
    scores: Tensor  # before any softcap
    chances: Tensor
    biases: tuple[Tensor, ...]


def attribute(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    transcoders: Sequence[Dictionary],
    errors: Sequence[str] = (),
    share: float = 0.95,
    most: int = 10,
    floor: float = 0.0,
    batch: int = 64,
) -> Graph:
    """The graph of one prompt's last logits, for a model whose MLPs are read through transcoders, one a layer or across layers.

    What a transcoder writes is z W_dec + b + x W_skip^T + error; attention patterns and norms' scales are constants (`frozen`), so
    that all else is linear, and a latent i at position t hears exactly
        pre_i(t) = sum over nodes s of effect(i, s) + bias,   effect(i, s) = d(x_t . W_enc,i)/ds . s,
    where s is a token's embedding, an earlier latent's z_j W_dec,j, or an error. A logit is counted about the mean of all logits.
    Latents of one layer are one batched backward pass each `batch`; layers go from last to first, so that a latent's influence on
    the logits is exact before it is looked into, and one below `floor` keeps what goes out of it but not what comes in.
    Logits: the likeliest tokens that together have `share` of the probability, `most` at most. `inputs` is what the model
    takes, one row, no padding. Sites in `errors` (MLPs without a transcoder) are errors as a whole. Attribution graphs through transcoders are
    from Dunefsky et al. 2024 (2406.11944), with errors, influence and frozen patterns as in Ameisen et al. 2025.

    Differs from the papers: biases are kept apart in `Graph.bias`, so that every row can be checked, and the first position is
    a position like any other. ValueError: a site that is not there; a row that does not add up, because some part of
    the model is neither linear, nor frozen, nor cut out.
    """
    codes, taps = _sites(model, transcoders, errors)
    if len(next(iter(inputs.values()))) != 1:
        raise ValueError(f"{len(next(iter(inputs.values())))} prompts: a graph is of one; give inputs with one row")
    with _biases(model) as biases:
        run = _run(model, inputs, taps, transcoders, codes, biases)
        rows = _Rows(transcoders, codes, run, batch)
        length = next(iter(run.leaf.values())).shape[1]
        ids = inputs["input_ids"][0].tolist() if "input_ids" in inputs else [0] * length
        rows.place(length, *_likely(run.chances, share, most))
        rows.fill(floor)
    return Graph(tuple(rows.nodes), rows.effects, rows.bias, rows.pre, tuple(ids))


def _sites(
    model: nn.Module, transcoders: Sequence[Dictionary], errors: Sequence[str]
) -> tuple[list[tuple[Tap, list[Tap]]], list[Tap]]:
    for d in transcoders:
        d.read_alone("an attribution graph")
        if len(d.reads) != 1 or not d.writes:
            raise ValueError(
                f"a transcoder reads one site and writes some: this one reads {list(d.reads)}, writes {list(d.writes)}"
            )
        if d.skip is not None and len(d.writes) > 1:
            raise ValueError(f"a skip connection to several sites, {list(d.writes)}: one is needed")
    codes = [(find_taps(model, d.reads)[0], find_taps(model, d.writes)) for d in transcoders]
    first = blocks(model)
    if not first:
        raise ValueError("the model has no repeated layers, so it is not known where its embeddings are")
    written = [tap for _, writes in codes for tap in writes]
    return codes, list(dict.fromkeys([Tap(first[0][0], True), *written, *find_taps(model, errors)]))


@contextlib.contextmanager
def _biases(model: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    found = [p for name, p in model.named_parameters() if name.rpartition(".")[2].endswith("bias")]
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(False)
        for p in found:
            p.requires_grad_(True)
        yield tuple(found)
    finally:
        for p, asked in before:
            p.requires_grad_(asked)


def _run(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    cut: list[Tap],
    transcoders: Sequence[Dictionary],
    codes: list[tuple[Tap, list[Tap]]],
    biases: tuple[Tensor, ...],
) -> _Run:
    read: dict[Tap, Tensor] = {}
    leaf: dict[Tap, Tensor] = {}
    said: dict[str, Tensor] = {}
    reads = [tap for tap, _ in codes]
    skips = [(tap, to[0], d.skip) for d, (tap, to) in zip(transcoders, codes, strict=True) if d.skip is not None]

    def hear(tap: Tap, x: Tensor) -> Tensor:
        past = sum(F.linear(read[a], w.to(x.dtype)) for a, b, w in skips if b == tap)  # not cut: it is linear
        if tap in cut:
            leaf[tap] = (x - past).detach().requires_grad_()
            x = leaf[tap] + past
        if tap in reads:
            read[tap] = x
        return x

    def last(x: Tensor) -> Tensor:
        said["scores"] = x[0, -1]
        return x

    names = {id(m): name for name, m in model.named_modules()}
    head = names.get(id(getattr(model, "get_output_embeddings", lambda: None)()))
    if head is None:
        raise ValueError("the model has no output embeddings: attribution needs a language model with logits")
    changes = {tap: lambda x, tap=tap: hear(tap, x) for tap in {*cut, *reads}}
    with torch.enable_grad(), frozen(), hooked(model, {**changes, Tap(head): last}):  # type: ignore[dict-item]
        logits = model(**inputs).logits
    missing = [str(tap) for tap in (*cut, *reads) if tap not in {**leaf, **read}]
    if missing:
        raise ValueError(f"site {missing[0]} was not reached in this run")
    return _Run(read, leaf, said["scores"], logits[0, -1].detach().softmax(-1), biases)


def _likely(chances: Tensor, share: float, most: int) -> tuple[list[int], list[float]]:
    best, order = chances.sort(descending=True)
    n = min(most, 1 + int((best.cumsum(0) < share).sum()))
    return order[:n].tolist(), best[:n].tolist()


class _Rows:
    """The matrix of effects, filled from the logits down."""

    def __init__(
        self, transcoders: Sequence[Dictionary], codes: list[tuple[Tap, list[Tap]]], run: _Run, batch: int
    ) -> None:
        self.run, self.batch, self.taps = run, batch, [writes for _, writes in codes]
        order = {tap: place for place, tap in enumerate(run.read)}
        self.order = sorted(range(len(codes)), key=lambda m: -order[codes[m][0]])  # last read first
        self.x = [run.read[reads] for reads, _ in codes]
        self.transcoders = [d.to(x.dtype) for d, x in zip(transcoders, self.x, strict=True)]
        self.codes = [d.encode(x.detach()[0]) for d, x in zip(self.transcoders, self.x, strict=True)]
        self.numbers = _numbers([str(reads) for reads, _ in codes])
        self.atoms: list[dict[Tap, Tensor]] = []
        self.given = {tap: x.detach()[0].clone() for tap, x in run.leaf.items()}  # what is left is the error
        self.offset = {tap: torch.zeros_like(x[0, 0]) for tap, x in run.leaf.items()}
        for d, c, taps in zip(self.transcoders, self.codes, self.taps, strict=True):
            self._read(d, c, taps)

    def _read(self, d: Dictionary, codes: Codes, taps: list[Tap]) -> None:
        sizes = [self.given[tap].shape[-1] for tap in taps]
        if sum(sizes) != d.decoder.shape[1]:
            raise ValueError(
                f"the dictionary writes {d.decoder.shape[1]} numbers, its sites {list(map(str, taps))} take {sizes}"
            )
        self.atoms.append({})
        for tap, atoms, bias in zip(taps, d.decoder.split(sizes, 1), d.decoder_bias.split(sizes), strict=True):
            self.atoms[-1][tap] = atoms.contiguous()
            self.given[tap] -= kernels.decode(codes, self.atoms[-1][tap]) + bias
            self.offset[tap] += bias

    def place(self, length: int, tokens: list[int], chances: list[float]) -> None:
        """Give every node its row: latents, errors, embeddings, logits."""
        nodes: list[Node] = []
        self.of: list[slice] = []
        for m, c in enumerate(self.codes):
            at = (c.value != 0).nonzero()
            index, value = c.index[at[:, 0], at[:, 1]].tolist(), c.value[at[:, 0], at[:, 1]].tolist()
            self.of.append(slice(len(nodes), len(nodes) + len(index)))
            rows = zip(at[:, 0].tolist(), index, value, strict=True)
            nodes += [Node(LATENT, t, self.numbers[m], i, v) for t, i, v in rows]
        self.free = len(nodes)
        home, *others = self.given
        for number, _ in zip(_numbers([tap.path for tap in others]), others, strict=True):
            nodes += [Node(ERROR, t, number) for t in range(length)]
        nodes += [Node(EMBEDDING, t) for t in range(length)]
        self.logits = slice(len(nodes), len(nodes) + len(tokens))
        nodes += [Node(LOGIT, length - 1, index=i, value=v) for i, v in zip(tokens, chances, strict=True)]
        self.ends = torch.stack([*(self.given[tap] for tap in others), self.given[home]])
        self.nodes, self.names = nodes, [*others, home]
        self.effects = self.ends.new_zeros(len(nodes), len(nodes))
        self.bias, self.pre = self.ends.new_zeros(2, len(nodes))

    def fill(self, floor: float) -> None:
        """Every row that is wanted, and the test that it adds up."""
        out = self.run.scores
        rows = torch.arange(self.logits.start, self.logits.stop, device=out.device)
        seeds = out.new_full((len(rows), len(out)), -1 / len(out))
        seeds[range(len(rows)), [self.nodes[i].index for i in rows.tolist()]] += 1
        self._rows(rows, out, seeds)
        flow = torch.zeros_like(self.bias)
        flow[rows] = torch.tensor([self.nodes[i].value for i in rows.tolist()]).to(flow)
        flow = self._onward(flow, rows)
        for m in self.order:
            own = self.of[m]
            rows = torch.arange(own.start, own.stop, device=out.device)
            rows = rows[flow[rows] >= floor]
            for part in rows.split(self.batch):
                at = [self.nodes[i] for i in part.tolist()]
                seeds = self.x[m].new_zeros(len(part), *self.x[m].shape)
                which = torch.tensor([n.index for n in at], device=out.device)
                seeds[range(len(part)), 0, [n.position for n in at]] = self.transcoders[m].encoder[which]
                self._rows(part, self.x[m], seeds)
                self.bias[part] += self.transcoders[m].encoder_bias[which]
                self.pre[part] += self.transcoders[m].encoder_bias[which]
            flow = self._onward(flow, rows)
            self._add_up(rows)

    def _onward(self, flow: Tensor, rows: Tensor) -> Tensor:
        size = self.effects[rows].abs()
        return flow + flow[rows] @ (size / size.sum(1, keepdim=True).clamp(min=1e-10))

    def _rows(self, rows: Tensor, out: Tensor, seeds: Tensor) -> None:
        inputs = [*(self.run.leaf[tap] for tap in self.names), *self.run.biases]
        grads = torch.autograd.grad(out, inputs, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True)
        self.pre[rows] += (seeds * out.detach()).flatten(1).sum(1)
        at = self.free
        for tap, end, g in zip(self.names, self.ends, grads[: len(self.names)], strict=True):
            if g is not None:
                g = g[:, 0]
                self.effects[rows, at : at + len(end)] = (g * end).sum(-1)
                self.bias[rows] += (g @ self.offset[tap]).sum(-1)
                self._latents(rows, tap, g)
            at += len(end)
        for bias, g in zip(self.run.biases, grads[len(self.names) :], strict=True):
            if g is not None:
                self.bias[rows] += (g * bias.detach()).flatten(1).sum(1)

    def _latents(self, rows: Tensor, tap: Tap, g: Tensor) -> None:
        for c, own, atoms in zip(self.codes, self.of, self.atoms, strict=True):
            if tap in atoms and c.index.shape[1]:
                index = c.index.expand(len(rows), *c.index.shape).flatten(0, 1)
                heard = kernels.correlate(g.flatten(0, 1).contiguous(), atoms[tap], index).view(
                    len(rows), *c.index.shape
                )
                self.effects[rows, own] += (heard * c.value)[:, c.value != 0]

    def _add_up(self, rows: Tensor) -> None:
        missed = (self.effects[rows].sum(1) + self.bias[rows] - self.pre[rows]).abs()
        size = self.effects[rows].abs().sum(1) + self.bias[rows].abs() + self.pre[rows].abs()
        wrong = (missed > 1e-2 * size).nonzero()
        if len(wrong):
            node = self.nodes[int(rows[wrong[0, 0]])]
            raise ValueError(
                f"latent {node.index} of layer {node.layer} at position {node.position} hears {float(self.pre[rows[wrong[0, 0]]]):.4g}, "
                "but its parts do not add up to that: a part of the model before it is neither linear nor replaced by a transcoder; "
                "name its sites in `errors`"
            )


def _numbers(paths: Sequence[str]) -> list[int]:
    """The layers' numbers as the paths say them; places, if they do not tell the sites apart."""
    found = [next((int(p) for p in path.split(":")[0].split(".")[::-1] if p.isdigit()), -1) for path in paths]
    rising = len(set(found)) == len(found) and -1 not in found
    return found if rising else list(range(len(paths)))
