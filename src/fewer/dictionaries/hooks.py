"""TransformerLens' names of places and the paths of modules in transformers, for the four families that its users have."""

import re
from collections.abc import Mapping
from typing import Any

# what follows the number of the block -> what follows it in a path of transformers, by family of model
LLAMA = {"hook_resid_post": "", "hook_resid_pre": ":in", "hook_mlp_out": ".mlp", "hook_attn_out": ".self_attn", "attn.hook_z": ".self_attn.o_proj:in", "ln2.hook_normalized": ".mlp:in"}  # fmt: skip
GPT2 = {"hook_resid_post": "", "hook_resid_pre": ":in", "hook_mlp_out": ".mlp", "hook_attn_out": ".attn", "attn.hook_z": ".attn.c_proj:in", "ln2.hook_normalized": ".mlp:in"}  # fmt: skip
NEOX = {"hook_resid_post": "", "hook_resid_pre": ":in", "hook_mlp_out": ".mlp", "hook_attn_out": ".attention", "attn.hook_z": ".attention.dense:in", "ln2.hook_normalized": ".mlp:in"}  # fmt: skip
FAMILIES = {"transformer.h": GPT2, "gpt_neox.layers": NEOX, "model.layers": LLAMA}


def path_of(hook: str, model: str = "") -> str | None:
    """The site of a TransformerLens name in the model of that name; None for a place that no module passes on.

    >>> path_of("blocks.8.hook_resid_post", "gpt2"), path_of("blocks.3.attn.hook_z", "google/gemma-2-2b")
    ('transformer.h.8', 'model.layers.3.self_attn.o_proj:in')
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    home = (
        "transformer.h"
        if "gpt2" in model.lower()
        else "gpt_neox.layers"
        if "pythia" in model.lower()
        else "model.layers"
    )
    if not found or found[2] not in FAMILIES[home]:
        return None
    return f"{home}.{found[1]}{FAMILIES[home][found[2]]}"


def hook_of(path: str) -> str:
    """The TransformerLens name of a site, or the site itself where there is none.

    >>> hook_of("model.layers.4"), hook_of("encoder.pooler")
    ('blocks.4.hook_resid_post', 'encoder.pooler')
    """
    for home, table in FAMILIES.items():
        found = re.fullmatch(rf"{re.escape(home)}\.(\d+)(.*)", path)
        names = {rest: name for name, rest in table.items()}
        if found and found[2] in names:
            return f"blocks.{found[1]}.{names[found[2]]}"
    return path


def site_of(cfg: Mapping[str, Any]) -> str | None:
    """What a SAELens configuration says of its place: a module's path if it can be told, else its own word."""
    known = {**cfg, **(cfg.get("metadata") or {})}
    hook = known.get("hook_name")
    return None if not isinstance(hook, str) else path_of(hook, str(known.get("model_name") or "")) or hook
