"""What all scripts here do: learn a TopK dictionary from given rows, and say what each step cost.

`python SCRIPT SETTINGS.json OUT.safetensors`. Settings: rows (a safetensors file), dim, latents, k, batch, steps, rate, seed,
device. Out come encoder, encoder_bias, decoder and decoder_bias, so that pre = x encoder^T + encoder_bias.
"""

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _absent import stand_in
from safetensors.torch import load_file, save_file

stand_in()


@dataclass
class Given:
    dim: int
    latents: int
    k: int
    batch: int
    steps: int
    rate: float
    seed: int = 0
    device: str = "cpu"


Step = Callable[[int, torch.Tensor], object]
Learnt = Callable[[], dict[str, torch.Tensor]]


def run(make: Callable[[Given], tuple[Step, Learnt]]) -> None:
    """`make` gives the step, called with its number and a batch, and what has been learnt in the end."""
    torch.set_num_threads(1)
    settings = json.loads(open(sys.argv[1]).read())
    rows = load_file(settings.pop("rows"))["rows"]
    given = Given(**settings)
    torch.manual_seed(given.seed)
    step, learnt = make(given)
    spent, draw = [], torch.Generator().manual_seed(given.seed)
    for number in range(given.steps):
        batch = rows[torch.randint(len(rows), (given.batch,), generator=draw)].to(given.device)
        begin = time.process_time()
        step(number, batch)
        spent.append(time.process_time() - begin)
    tensors = learnt()
    save_file({name: t.detach().float().cpu().contiguous().clone() for name, t in tensors.items()}, sys.argv[2])
    peak = 1024 * int(re.findall(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[0])
    told = {"least": min(spent[1:]), "median": statistics.median(spent[1:]), "peak_bytes": peak}
    print("spent:", json.dumps({**told, "torch": torch.__version__}))


def folded(
    encoder: torch.Tensor, bias: torch.Tensor, decoder: torch.Tensor, centre: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Of an encoder that hears x - centre; the decoder has a row for each latent."""
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    return dict(zip(names, (encoder, bias - encoder @ centre, decoder, centre), strict=True))
