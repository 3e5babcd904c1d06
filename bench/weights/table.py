"""The table of bench/weights/README.md from results: `python -m bench.weights.table`."""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
HEAD = "| model | method | KL ours | KL theirs | masks differ at | CPU-s ours | theirs | times | peak memory ours | theirs |"


def rows(found: dict) -> list[str]:
    """A line for each case: the fastest round of each side."""
    out = []
    for case in found["cases"]:
        cpu = {who: min(r["cpu"] for r in rounds) for who, rounds in case["spent"].items()}
        peak = {who: min(r["peak"] for r in rounds) / 1e6 for who, rounds in case["spent"].items()}
        masks, kl = case["masks"], case["kl"]
        cells = [found["model"], f"{case['method']} {case['pattern']}", f"{kl['ours']:.5f}", f"{kl['theirs']:.5f}"]
        cells += [f"{masks['differ']} of {masks['weights']}", f"{cpu['ours']:.1f}", f"{cpu['theirs']:.1f}"]
        cells += [f"{cpu['ours'] / cpu['theirs']:.2f}", f"{peak['ours']:.0f} MB", f"{peak['theirs']:.0f} MB"]
        out.append(f"| {' | '.join(cells)} |")
    return out


def main() -> None:
    """Put the table between its markers."""
    files = sorted((HERE / "results").glob("parity-*.json"))
    found = [json.loads(file.read_text()) for file in files]
    about = dict.fromkeys(f"{f['peer']}, torch {f['torch']}, {f['cpu']}, {f['threads']} thread" for f in found)
    lines = [
        "; ".join(about),
        "",
        HEAD,
        "|" + "---|" * HEAD.count(" | ") + "---|",
        *(r for f in found for r in rows(f)),
    ]
    page = HERE / "README.md"
    text = re.sub(
        r"(?s)(<!-- begin -->\n).*(<!-- end -->)", lambda m: m[1] + "\n".join(lines) + "\n" + m[2], page.read_text()
    )
    page.write_text(text)


if __name__ == "__main__":
    main()
