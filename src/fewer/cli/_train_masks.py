"""fewer train weights/...: masks, learnt through the loss of the whole model."""

from typing import Any

from ._bar import Bar
from ._print import note
from ._train_job import Job


def masks(job: Job, prior: str | None) -> None:
    """Learn and write them, near those of the step `prior` if there is one, and say what to write in a step then."""
    from fewer.recipe import step
    from fewer.train import learner_of

    teacher, first = learner_of(type(job.pupil)), prior and step(prior)
    if job.out.suffix != ".npz":
        raise ValueError(f"{job.out}: its name must end in .npz")
    with Bar(job.json) as bar:
        told = job.told(bar)
        dense, tokens = job.opened()
        known = _known(dense, first, job.where, tokens) if first else None
        learner = teacher(dense, job.out, job.where, job.how, known, told=told, force=job.force)
        learnt = learner.fit(job.pupil, job.kept, list(tokens.split(job.batch)))
    job.written(learnt)


def _known(model: Any, first: Any, where: str, tokens: Any) -> dict[str, Any]:
    """The masks of a step, by site; the model is dense again afterwards."""
    from fewer.models import sites
    from fewer.recipe import apply

    calibration = tokens[: max(1, 12288 // tokens.shape[1])].to(next(model.parameters()).device)
    note(f"choosing first masks by {first}")
    with apply(model, [first], calibration):
        return {site.name: site.read() != 0 for site in sites(model, where)}
