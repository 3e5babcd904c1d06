"""TransformerLens' names of places and the paths of modules in transformers, for the families that its users have.

`ln2.hook_normalized` has no path: it is the norm's output before its weight, which no module passes on.
"""

import re
from collections.abc import Mapping

# what follows the number of the block -> what follows it in a path of transformers
GPT2 = {
    "hook_resid_pre": ":in",
    "hook_resid_mid": ".ln_2:in",
    "hook_resid_post": "",
    "hook_attn_out": ".attn",
    "hook_mlp_out": ".mlp",
    "attn.hook_z": ".attn.c_proj:in",
    "mlp.hook_post": ".mlp.c_proj:in",
    "mlp.hook_in": ".mlp:in",
}
NEOX = {  # attention and MLP side by side: there is no middle of the residual stream
    "hook_resid_pre": ":in",
    "hook_resid_post": "",
    "hook_attn_out": ".attention",
    "hook_mlp_out": ".mlp",
    "attn.hook_z": ".attention.dense:in",
    "mlp.hook_post": ".mlp.dense_4h_to_h:in",
    "mlp.hook_in": ".mlp:in",
}
LLAMA = {
    "hook_resid_pre": ":in",
    "hook_resid_mid": ".post_attention_layernorm:in",
    "hook_resid_post": "",
    "hook_attn_out": ".self_attn",
    "hook_mlp_out": ".mlp",
    "attn.hook_z": ".self_attn.o_proj:in",
    "mlp.hook_in": ".mlp:in",
    "mlp.hook_out": ".mlp",
}
GEMMA = LLAMA | {  # of version 2 and 3: what attention and MLP say is normed before it is added
    "hook_resid_mid": ".pre_feedforward_layernorm:in",
    "hook_attn_out": ".post_attention_layernorm",
    "hook_mlp_out": ".post_feedforward_layernorm",
}
# a word in the model's name -> where its blocks are, and the table; the first that is found
FAMILIES: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    (r"gpt2|gpt-2", "transformer.h", GPT2),
    (r"pythia|neox", "gpt_neox.layers", NEOX),
    (r"gemma-?[23]", "model.layers", GEMMA),
    (r"", "model.layers", LLAMA),
)


def path_of(hook: str, model: str = "") -> str | None:
    """The site of a TransformerLens name in the model of that name; None for a place that no module passes on.

    >>> path_of("blocks.8.hook_resid_post", "gpt2"), path_of("blocks.3.attn.hook_z", "google/gemma-2-2b")
    ('transformer.h.8', 'model.layers.3.self_attn.o_proj:in')
    >>> path_of("blocks.3.hook_mlp_out", "gemma-2-2b"), path_of("blocks.3.ln2.hook_normalized", "gemma-2-2b")
    ('model.layers.3.post_feedforward_layernorm', None)
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    home, table = next((home, table) for word, home, table in FAMILIES if re.search(word, model.lower()))
    return f"{home}.{found[1]}{table[found[2]]}" if found and found[2] in table else None


def site_of(hook: object, model: object = "") -> str | None:
    """The path if it can be told, else the name itself; None if there is no name.

    >>> site_of("blocks.3.ln2.hook_normalized", "gpt2"), site_of(None)
    ('blocks.3.ln2.hook_normalized', None)
    """
    return (path_of(hook, str(model or "")) or hook) if isinstance(hook, str) and hook else None


def hook_of(path: str, model: str = "") -> str:
    """The TransformerLens name of a site, or the site itself where there is none.

    >>> hook_of("model.layers.4"), hook_of("gpt_neox.layers.2.mlp"), hook_of("encoder.pooler")
    ('blocks.4.hook_resid_post', 'blocks.2.hook_mlp_out', 'encoder.pooler')
    >>> hook_of("model.layers.4.mlp", "gemma-2-2b")  # before its norm: another place than their hook_mlp_out
    'blocks.4.mlp.hook_out'
    """
    home = re.match(r"(.*?)\.\d", path)
    for word, place, table in FAMILIES:
        if home and home[1] == place and re.search(word, model.lower() if place == "model.layers" else word):
            number, rest = re.fullmatch(rf"{re.escape(place)}\.(\d+)(.*)", path).groups()  # type: ignore[union-attr]
            for name, end in table.items():
                if end == rest:
                    return f"blocks.{number}.{name}"
    return path


def layer_of(path: str) -> int | None:
    """The first number in a path: the block.

    >>> layer_of("transformer.h.8.mlp"), layer_of("pooler")
    (8, None)
    """
    found = re.search(r"\.(\d+)(?=[.:]|$)", path)
    return int(found[1]) if found else None
