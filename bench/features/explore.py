"""A page of 16,384 features over a million tokens, or `--tokens`: `python -m bench.features.explore` writes results/explore.json, which
says of how many it is.

Nothing is learnt: the directions are random, and TopK lets 32 of them speak on what the bundled model says after layer 4. So the
index and the page are about as large as a real dictionary's (a third of the latents never speaks). One thread; seconds are the process's own, and the peak is
what the process grew by, model and dictionary not counted.
"""

import argparse
import json
import pathlib
import tempfile
import time

import torch

OUT = pathlib.Path(__file__).parent / "results" / "explore.json"


def dictionary(latents: int, k: int, site: str, dim: int = 256):
    """Random directions of length one, read and written alike."""
    from fewer.core import budget
    from fewer.features import Dictionary
    from fewer.features.top_k import TopK

    w = torch.nn.functional.normalize(torch.randn(latents, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    return Dictionary(
        TopK(), budget(str(k)), w, torch.zeros(latents), w.clone(), torch.zeros(dim), reads=(site,), writes=(site,)
    )


def measured(tokens: int, latents: int, k: int, length: int = 256) -> dict:
    from fewer import data
    from fewer.dictionaries.explore import indexed
    from fewer.dictionaries.facts import facts, unembedding_of
    from fewer.measure.memory import peak_memory
    from fewer.models import find_taps, open_model
    from fewer.report import explorer

    model, tokenizer = open_model("bundled")
    (tap,) = find_taps(model, ["layers.4"])
    one = dictionary(latents, k, str(tap))
    special = tokenizer.all_special_ids
    text = [d for part in ("calibration", "validation", "test") for d in data.stdlib(part)]
    windows = data.every_window(text, tokenizer, length, tokens // length)
    one.encode(torch.randn(8, 256))  # its loops are compiled
    found: dict = {"tokens": windows.numel(), "latents": latents, "k": k}
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)

        def index() -> None:
            indexed(one, model, windows, place / "index", special)

        def page() -> None:
            from fewer.dictionaries.store import open_index

            rows = (f.plain() for f in facts(open_index(place / "index"), one, unembedding_of(model)))
            explorer(place / "page.html", rows, lambda ids: tokenizer.batch_decode([[i] for i in ids]), {}, "features")

        for name, work in (("index", index), ("page", page)):
            begin = time.process_time()
            grew = peak_memory(work)
            found[name] = {"cpu_seconds": round(time.process_time() - begin, 1), "peak_bytes": grew}
            print(name, found[name], flush=True)
        from fewer.dictionaries.store import open_index

        kept = open_index(place / "index")
        found |= {"nonzeros": kept.nonzeros, "bytes_a_nonzero": round(kept.bytes / kept.nonzeros, 2)}
        found |= {"silent": int((kept.counts == 0).sum()), "page_bytes": (place / "page.html").stat().st_size}
    return found


def main() -> None:
    from bench.kernels._measure import machine

    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--tiny", action="store_true", help="a small one: does it run?")
    ask.add_argument("--tokens", type=int, default=1_000_000)
    a = ask.parse_args()
    torch.set_num_threads(1)
    about = {"machine": machine()}
    found = about | (measured(4096, 256, 8) if a.tiny else measured(a.tokens, 16_384, 32))
    print(json.dumps(found, indent=1))
    if not a.tiny:
        OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
