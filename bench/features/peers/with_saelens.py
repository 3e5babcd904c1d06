"""SAELens 6.54.12: `SAETrainer.step` of a TopK autoencoder, as it is shipped; or with its two ways to be faster."""

import torch
from _learn import Given, folded, run
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer


def make(given: Given, autocast: bool = False, compiled: bool = False):
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=given.dim, d_sae=given.latents, k=given.k, device=given.device))
    if compiled:  # as its runner does with `compile_sae`
        sae.training_forward_pass = torch.compile(sae.training_forward_pass, mode="default")
    how = SAETrainerConfig(
        total_training_samples=given.steps * given.batch,
        train_batch_size_samples=given.batch,
        lr=given.rate,
        lr_end=given.rate,
        device=given.device,
        autocast=autocast,
    )
    trainer = SAETrainer(how, sae, data_provider=iter(()))

    def step(number: int, x: torch.Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    def learnt() -> dict[str, torch.Tensor]:
        """Its latents are ranked by pre-activation times the length of their row."""
        size = sae.W_dec.norm(dim=1, keepdim=True)
        centre = sae.b_dec if sae.cfg.apply_b_dec_to_input else torch.zeros_like(sae.b_dec)
        out = folded(sae.W_enc.mT * size, sae.b_enc * size[:, 0], sae.W_dec / size, centre)
        return {**out, "decoder_bias": sae.b_dec}

    return step, learnt


if __name__ == "__main__":
    run(make)
