"""Which role a linear map has, told by its name: one table for all architectures; a new family is a new line."""

from fnmatch import fnmatchcase

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "router", "embed", "head", "other")
GROUPS = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}

# Patterns on ".full.name", first match wins; several roles mean that one module holds several maps, in this order.
TABLE = """
.lm_head .embed_out *.lm_head .classifier .score .cls.predictions.decoder .qa_outputs = head
*.router *.shared_expert_gate *.block_sparse_moe.gate *.router.* *.mlp.gate *.feed_forward.gate *.moe.gate = router
*.mamba.out_proj *.mixer.out_proj *.conv.out_proj = other
*.crossattention.c_attn = k v
*.c_attn *.qkv *.qkv_proj *.query_key_value *.Wqkv *.qkv_lin *.in_proj_weight = q k v
*.gate_up_proj *.mlp.Wi = gate up
*.q_proj *.query *.q *.q_attn *.wq *.to_q *.q_lin *.query_proj *.linear_q *.qproj = q
*.k_proj *.key *.k *.wk *.to_k *.k_lin *.key_proj *.linear_k = k
*.v_proj *.value *.v *.wv *.to_v *.v_lin *.value_proj *.linear_v = v
*.DenseReluDense.wi_0 = gate
*.DenseReluDense.wi_1 *.DenseReluDense.wi = up
*.DenseReluDense.wo = down
*.o_proj *.out_proj *.o *.wo *.to_out *.to_out.0 *.out_lin *.attn.Wo *.linear_out = o
*attn.c_proj *attention.c_proj *attn.proj *attention.proj *attention.dense *attention.output.dense *attn.dense = o
*.gate_proj *.w1 *.wg *.mlp.gate_proj = gate
*.up_proj *.w3 *.c_fc *.fc1 *.fc_in *.lin1 *.linear1 *.dense_h_to_4h *.intermediate.dense *.fc_up *.ffn = up
*.down_proj *.w2 *.fc2 *.fc_out *.lin2 *.linear2 *.dense_4h_to_h *.output.dense *.ffn_output *.mlp.Wo *.mlp.c_proj = down
"""
RULES = [
    (word, tuple(line.partition("=")[2].split()))
    for line in TABLE.split("\n")
    for word in line.partition("=")[0].split()
]


def roles(name: str) -> tuple[str, ...]:
    """The roles of the maps in the module or parameter `name`.

    >>> roles("model.layers.3.self_attn.q_proj"), roles("transformer.h.0.attn.c_attn"), roles("net.0")
    (('q',), ('q', 'k', 'v'), ('other',))
    """
    return next((found for pattern, found in RULES if fnmatchcase("." + name, pattern)), ("other",))
