"""The tables of bench/weights/README.md from results: `python -m bench.weights.table`."""

import json
from pathlib import Path

from bench.kernels.table import put

HERE = Path(__file__).parent
HEAD = "| model | method | KL ours | KL theirs | weights kept by one alone, block 0 | all blocks | CPU-s ours | theirs | times | peak memory ours | theirs |"


def rows(found: dict) -> list[str]:
    """A line for each case: the fastest round of each side."""
    out = []
    for case in found["cases"]:
        cpu = {who: min(r["cpu"] for r in rounds) for who, rounds in case["spent"].items()}
        peak = {who: min(r["peak"] for r in rounds) / 1e6 for who, rounds in case["spent"].items()}
        masks, kl = case["masks"], case["kl"]
        cells = [found["model"], f"{case['method']} {case['pattern']}", f"{kl['ours']:.5f}", f"{kl['theirs']:.5f}"]
        cells += [
            str(masks["by block"][0]),
            f"{masks['differ']} of {masks['weights']}",
            f"{cpu['ours']:.1f}",
            f"{cpu['theirs']:.1f}",
        ]
        cells += [f"{cpu['ours'] / cpu['theirs']:.2f}", f"{peak['ours']:.0f} MB", f"{peak['theirs']:.0f} MB"]
        out.append(f"| {' | '.join(cells)} |")
    return out


def notes(found: dict) -> list[str]:
    """What a row has no room for."""
    out = []
    for case in found["cases"]:
        if "gap" in case["masks"]:
            out.append(
                f"- {found['model']}, {case['method']} {case['pattern']}: the weights of block 0 that one alone keeps have "
                f"scores that are equal to {case['masks']['gap']:.1e} of themselves, in float64; block by block their number is "
                f"{', '.join(map(str, case['masks']['by block']))}."
            )
    if other := found.get("modelopt"):
        ours = next(c["kl"]["ours"] for c in found["cases"] if (c["method"], c["pattern"]) == ("sparse_gpt", "2:4"))
        out.append(
            f"- {found['model']}, ModelOpt's SparseGPT 2:4: KL {other['kl']:.5f}, ours is {ours / other['kl']:.2f} of it; of the "
            f"weights that it keeps {other['kept and moved']} are not what they were."
        )
    return out


def generated(found: dict) -> list[str]:
    """Tokens a second of a model of a billion weights, one line for each way of storing it."""
    here, rows = found["machine"], found["rows"]
    base = rows["torch bfloat16"]["tokens_a_second"]
    out = [
        f"{here['cpu']} ({here['vectors']}), {here['threads']} threads, torch {here['torch']}, reading {here['read_bytes_per_second'] / 1e9:.0f} GB/s; median [quartiles]",
        "",
        "| stored as | GB | tokens a second | times torch bfloat16 | if its bytes were all |",
        "|---|---|---|---|---|",
    ]
    for way, r in rows.items():
        rate = f"{r['tokens_a_second']:.2f} [{r['q25']:.2f}, {r['q75']:.2f}]"
        out.append(
            f"| {way} | {r['bytes'] / 1e9:.2f} | {rate} | {r['tokens_a_second'] / base:.2f} | {r['bound']:.1f} |"
        )
    return out


def main() -> None:
    """Put the tables between their markers."""
    files = sorted((HERE / "results").glob("parity-*.json"))
    found = [json.loads(file.read_text()) for file in files]
    about = dict.fromkeys(f"{f['peer']}, torch {f['torch']}, {f['cpu']}, {f['threads']} thread" for f in found)
    head = ["; ".join(about), "", HEAD, "|" + "---|" * HEAD.count(" | ") + "---|"]
    lines = [*head, *(r for f in found for r in rows(f)), "", *(n for f in found for n in notes(f))]
    page = HERE / "README.md"
    text = put(page.read_text(), "parity", "\n".join(lines))
    rates = generated(json.loads((HERE / "results" / "generate-cpu.json").read_text()))
    text = put(text, "generate", "\n".join(rates))
    page.write_text(text)


if __name__ == "__main__":
    main()
