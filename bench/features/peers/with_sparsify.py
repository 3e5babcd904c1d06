"""eai-sparsify 1.3.3: the body of its `Trainer.fit`, with Adam and its loss for the dead."""

import torch
from _learn import Given, folded, run
from sparsify.config import SparseCoderConfig
from sparsify.sparse_coder import SparseCoder


def make(given: Given):
    coder = SparseCoder(given.dim, SparseCoderConfig(num_latents=given.latents, k=given.k), given.device)
    optimizer = torch.optim.Adam(coder.parameters(), given.rate)
    silent = torch.zeros(given.latents, dtype=torch.long, device=given.device)

    def step(number: int, x: torch.Tensor) -> None:
        if number == 0:
            coder.b_dec.data = x.mean(0)
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=silent > 10_000_000)
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent.add_(len(x))
        silent[out.latent_indices.flatten()] = 0

    def learnt() -> dict[str, torch.Tensor]:
        coder.set_decoder_norm_to_unit_norm()
        return folded(coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)

    return step, learnt


if __name__ == "__main__":
    run(make)
