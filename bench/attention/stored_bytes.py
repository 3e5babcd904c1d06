"""What a cache takes after forgetting, places and tables included, as a share of dense: `python -m bench.attention.stored_bytes`.

The bundled model reads 8192 tokens of standard-library text that it has not seen, under steps that leave a quarter of them, and then a second
text of 256. Bytes are those of the pools that are held, rooms for more included, after the first text and after the second. The context is
longer than the bundled model was trained on: bytes do not care. Writes results/stored_bytes.json.
"""

import argparse
import inspect
import json
import pathlib
import time

import torch
from transformers import DynamicCache

import fewer
from fewer.data import corpus, windows
from fewer.models import open_model

OUT = pathlib.Path(__file__).parent / "results" / "stored_bytes.json"
STEPS = (
    "cache/key_norm 100%",
    "cache/random 25%",
    "cache/key_norm 25%",
    "cache/key_norm 25% by ada",
    "cache/snap_kv 25%",
    "cache/snap_kv 25% by ada",
    "cache/snap_kv 25% by pyramid",
    "cache/expected_attention 25% by ada",
)


def held(applied) -> dict[str, float]:
    """Of all modules: the bytes over those of dense keys and values, the share of tokens, and that of the fullest head."""
    changes, stores = applied.attending.changes(), [m.store for m in applied.attending.made]
    before, after = sum(c.bytes_before for c in changes), sum(c.bytes_after for c in changes)
    rest = sum(s.table.numel() * s.table.element_size() + s.at.numel() * s.at.element_size() for s in stores)
    return {
        "bytes": after / before,
        "tables_and_places": rest / before,
        "kept": sum(c.kept for c in changes) / len(changes),
    }


def name_of(model) -> str:
    """What transformers calls a cache; it was `past_key_values` until 5.23."""
    return next(n for n in ("cache", "past_key_values") if n in inspect.signature(model.forward).parameters)


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--length", type=int, default=8192)
    said.add_argument("--out", type=pathlib.Path, default=OUT)
    a = said.parse_args()
    model, tokenizer = open_model("bundled")
    text = windows(corpus("stdlib", "test"), tokenizer, a.length + 256, 1, 0)
    rows = []
    for step in STEPS:
        began = time.perf_counter()
        with fewer.apply(model, step) as applied, torch.no_grad():
            cache = DynamicCache(config=model.config)
            found = {}
            for name, part in (("first", text[:, : a.length]), ("second", text[:, a.length :])):
                model(part, use_cache=True, logits_to_keep=1, **{name_of(model): cache})
                found[name] = held(applied)
        rows.append({"step": step, **found})
        first, second = (found[n]["bytes"] for n in ("first", "second"))
        print(f"{step:40} {first:.4f} of dense, then {second:.4f}; {time.perf_counter() - began:.0f} s", flush=True)
    config = model.config
    about = {
        "model": "bundled",
        "length": a.length,
        "second": 256,
        "dtype": str(model.dtype),
        "torch": torch.__version__,
    }
    about |= {"layers": config.num_hidden_layers, "kv_heads": config.num_key_value_heads, "dim": config.head_dim}
    a.out.parent.mkdir(exist_ok=True)
    a.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
