"""Which maps of a model share an inner dimension: told by roles, for every architecture that `sites` knows."""

from collections.abc import Iterator, Sequence

from torch import nn

from fewer.core import Group, Site

from .packed import SparseLinear
from .sites import sites

READS = {"down": ("gate", "up"), "o": ("q", "k", "v")}  # a reader, and who writes what it reads
HEAD = ("head_dim", "head_size", "attention_head_size", "d_head", "kv_channels")


def groups(model: nn.Module, where: str = "*") -> list[Group]:
    """The groups of `model` all of whose maps `where` names, in the model's order.

    An MLP's channels are units: rows of gate and up, columns of down. In attention a unit is a key-value head with all
    queries that read it: rows of q, k and v, columns of o. Fused and transposed maps are no different, nor are biases.

    ValueError: `where` names a part of a group only, or maps that no group has (experts in one 3-D parameter, latent
    attention, maps already packed), or attention in which something else ties the heads together.

    >>> names = nn.ModuleDict({"fc1": nn.Linear(4, 6), "fc2": nn.Linear(6, 4)})
    >>> groups(names)
    [Group('', units=6, up, down)]
    """
    chosen = sites(model, where)
    names = {s.name for s in chosen}
    out: list[Group] = []
    grouped: set[str] = set()
    for group in every_group(model):
        hit = [s.name for s in group.sites if s.name in names]
        if hit and len(hit) < len(group.sites):
            rest = [s.name for s in group.sites if s.name not in hit]
            raise ValueError(
                f"{hit[0]} cannot become narrower alone: it shares {group.name or 'its channels'} with {', '.join(rest)}; "
                "name all of them, '@ mlp' or '@ attention'"
            )
        if hit:
            _check(model, group)
            grouped |= set(hit)
            out.append(group)
    if alone := [s for s in chosen if s.name not in grouped]:
        why = "all its experts lie in one tensor" if alone[0].index is not None else "nothing here shares its channels"
        raise ValueError(
            f"{alone[0].name} cannot become narrower: {why}; leave it out of the pattern, as in '@ mlp,!{alone[0].name}'"
        )
    return out


def mlps(model: nn.Module, where: str = "*") -> list[Group]:
    """The groups that are MLPs and of which `where` names a map; there may be none."""
    names = {s.name for s in sites(model, where)}
    return [g for g in every_group(model) if g.reader.role == "down" and names & {s.name for s in g.sites}]


def every_group(model: nn.Module) -> Iterator[Group]:
    """All groups inside the blocks, whether their heads may leave or not."""
    found = sites(model)
    plain = [s for s in found if s.index is None and s.param == "weight" and not isinstance(s.module, SparseLinear)]
    for reader in plain:
        if reader.role in READS and (group := _around(model, reader, plain)):
            yield group


def _around(model: nn.Module, reader: Site, found: Sequence[Site]) -> Group | None:
    """The group that a reader closes: with the writers in the smallest module that holds them."""
    roles, home = READS[reader.role], reader.name
    while home:
        home = home.rpartition(".")[0]
        near = [s for s in found if s.role in roles and s.name.startswith(f"{home}." if home else "")]
        if near:
            break
    names = [s.role for s in near]
    whole = set(names) >= set(roles) - {"gate"} and len(names) == len(set(names))
    units = _units(model, home, reader, near) if whole else None
    return None if units is None else Group(home, tuple(near), reader, units)


def _units(model: nn.Module, home: str, reader: Site, writers: Sequence[Site]) -> int | None:
    """How many units the maps share; None if their shapes do not say so."""
    rows, inner = {s.role: s.shape[0] for s in writers}, reader.shape[1]
    if reader.role == "down":
        return inner if set(rows.values()) == {inner} else None
    head = head_size(model, model.get_submodule(home))
    if head is None or rows["k"] % head or rows["k"] != rows["v"] or rows["q"] != inner or inner % rows["k"]:
        return None
    return rows["k"] // head


def head_size(model: nn.Module, home: nn.Module) -> int | None:
    """The width of a head: the attention module says so, or its parts do, or the configuration."""
    config = getattr(model, "config", None)
    for place in (*home.modules(), config):
        found = next((n for n in (getattr(place, word, None) for word in HEAD) if isinstance(n, int)), None)
        if found:
            return found
    heads, width = (getattr(config, word, None) for word in ("num_attention_heads", "hidden_size"))
    return width // heads if heads and width else None


def _check(model: nn.Module, group: Group) -> None:
    """Heads can leave one by one only if nothing else in the attention ties them together."""
    if group.reader.role != "o":
        return
    home = model.get_submodule(group.name)
    mine = {id(p) for s in group.sites for p in s.module.parameters(recurse=False)}
    head, outer = head_size(model, home), group.reader.shape[0]
    fits = {head} | ({outer} if outer != group.reader.shape[1] else set())
    tied = [n for n, p in home.named_parameters() if id(p) not in mine and not _apart(n, p.numel(), fits, outer)]
    config = getattr(model, "config", None)
    if getattr(config, "alibi", False) or getattr(config, "model_type", "") == "bloom":
        tied.append("the slopes of ALiBi")
    if tied:
        raise ValueError(
            f"{group.name}: {tied[0]} ties its heads together, so none can leave; write '@ mlp' to leave attention whole"
        )


def _apart(name: str, size: int, fits: set, outer: int) -> bool:
    """Whether a parameter beside the maps is the same for each head, or belongs to what comes after them."""
    before = any(part.startswith(("q", "k")) and "norm" in part for part in name.lower().split("."))
    after = "norm" in name.lower() and not before
    return size in fits if before else after and size == outer
