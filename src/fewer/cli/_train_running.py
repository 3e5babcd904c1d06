"""fewer train attention/... and activations/...: what is read or computed, from what the frozen model does, or how, through its loss."""

from ._bar import Bar
from ._train_job import Job


def running(job: Job, whole: bool, acts: str | None) -> None:
    """Learn and write it, and say what to write in a step then.

    With `whole` the model learns too, as it does for a gate that is no predictor; `acts` is the activation to put into its MLPs first.
    """
    from fewer.activations import Gate, Predictor
    from fewer.attention import Mixer
    from fewer.models import locate, tokenizer_of
    from fewer.models.activation import put_activation
    from fewer.recipe import apply
    from fewer.train import Tuned, learner_of

    whole = whole or (isinstance(job.pupil, Gate) and not isinstance(job.pupil, Predictor))
    teacher = None if whole or isinstance(job.pupil, Mixer) else learner_of(type(job.pupil))
    if (job.out.suffix == ".safetensors") == whole:
        wanted = "a model is learnt, name a directory" if whole else "its name must end in .safetensors"
        raise ValueError(f"{job.out}: {wanted}")
    if acts and not whole:
        raise ValueError(f"--activation {acts}: another activation is learnt with the model's weights; write --whole")
    with Bar(job.json) as bar:
        told = job.told(bar)
        dense, tokens = job.opened()
        if acts:
            put_activation(dense, acts)
        if teacher:
            learner = teacher(dense.float(), job.out, job.where, job.how, told, job.force)
        else:
            learner = Tuned(dense, job.out, apply, job.where, job.how, whole, told=told, force=job.force)
        learnt = learner.fit(job.pupil, job.kept, list(tokens.split(job.batch)))
    if whole:
        tokenizer_of(locate(job.model)).save_pretrained(job.out)
    job.written(learnt, whole)
