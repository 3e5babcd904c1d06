"""Jobs side by side: in this process, in processes of one thread each, or on a Ray cluster. One that fails is an outcome, not the end."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def alone(jobs: Sequence[J], work: Callable[[J], R]) -> Iterator[tuple[J, R | Exception]]:
    """One after the other, here."""
    for job in jobs:
        yield job, _outcome(lambda job=job: work(job))  # type: ignore[misc]


def processes(jobs: Sequence[J], work: Callable[[J], R], count: int) -> Iterator[tuple[J, R | Exception]]:
    """In `count` fresh processes, each outcome as soon as it is there.

    Processes are spawned: forking after torch has started threads can hang. If one is killed, which takes all its pool with
    it, what is left is done again one at a time, so that only the guilty job fails. Leaving early, by Ctrl-C too, ends the processes.
    """
    left = dict(enumerate(jobs))
    with _pool(min(count, len(jobs))) as pool:
        numbers = {pool.submit(work, job): i for i, job in left.items()}
        for future in as_completed(numbers):
            if not isinstance(future.exception(), BrokenProcessPool):
                yield left.pop(numbers[future]), _outcome(future.result)
    for job in left.values():
        with _pool(1) as pool:
            outcome = _outcome(pool.submit(work, job).result)
        killed = isinstance(outcome, BrokenProcessPool)
        yield job, MemoryError("its process was killed; perhaps memory ran out") if killed else outcome


def cluster(jobs: Sequence[J], work: Callable[[J], R]) -> Iterator[tuple[J, R | Exception]]:
    """On the Ray cluster of `RAY_ADDRESS`, or on one started here; a job takes one CPU. Needs the extra `fewer[ray]`."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("running on a cluster needs Ray: pip install 'fewer[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(**({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}), log_to_driver=False)
    remote = ray.remote(num_cpus=1)(lambda job: work(job))  # Ray takes functions only, not all that can be called
    waiting = {remote.remote(job): job for job in jobs}
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            yield waiting.pop(done), _outcome(lambda done=done: ray.get(done))  # type: ignore[misc]
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _outcome(work: Callable[[], R]) -> R | Exception:
    try:
        return work()
    except Exception as error:
        return error


@contextlib.contextmanager
def _pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, at once if it is left by an exception."""
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _settle) as pool:
        try:
            yield pool
        except BaseException:
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            raise


def _settle() -> None:
    """A process of the pool: one thread, deaf to Ctrl-C (its parent ends it), gone when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import numba
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)
