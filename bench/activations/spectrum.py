"""How much of a weight its best low-rank part holds, when that may have some numbers: `python -m bench.activations.spectrum --model DIR`."""

import argparse

import torch

from fewer.models import open_model, sites


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--model", default="bundled")
    ask.add_argument("--share", type=float, nargs="*", default=[0.1, 0.04], help="Of the weight's numbers.")
    args = ask.parse_args()
    model, _ = open_model(args.model)
    for share in args.share:
        held = []
        for site in sites(model):
            w = site.read().float()
            energy = torch.linalg.svdvals(w).square()
            held.append((energy[: int(share * w.numel()) // sum(w.shape)].sum() / energy.sum()).item())
        print(
            f"{share:.0%} of the numbers: {sum(held) / len(held):.0%} of the energy, {min(held):.0%} to {max(held):.0%}"
        )


if __name__ == "__main__":
    main()
