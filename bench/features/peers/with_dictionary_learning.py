"""dictionary-learning 0.1.0: `TopKTrainer.update`, without its thousand steps of warming up."""

import torch
from _learn import Given, folded, run
from dictionary_learning.trainers.top_k import TopKTrainer


def make(given: Given):
    trainer = TopKTrainer(
        steps=given.steps,
        activation_dim=given.dim,
        dict_size=given.latents,
        k=given.k,
        layer=0,
        lm_name="",
        lr=given.rate,
        warmup_steps=0,
        seed=given.seed,
        device=given.device,
    )

    def learnt() -> dict[str, torch.Tensor]:
        ae = trainer.ae
        return folded(ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.mT, ae.b_dec)

    return trainer.update, learnt


if __name__ == "__main__":
    run(make)
