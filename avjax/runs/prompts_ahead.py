"""Prompts of samples, decoded while the device computes the sample before."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from avjax.devices.processes import Team
from avjax.prompts.prompt import Prompt
from avjax.runs.run import Block, StoredRun

PATIENCE_SECONDS = 0.5  # between two looks at whether the run was asked to stop


class StoppedError(Exception):
    """The run was asked to stop while a clip was being decoded."""


def prompts_ahead(
    run: StoredRun, blocks: Sequence[Block], stop: Callable[[], bool]
) -> Iterator[tuple[Block, Callable[[], Prompt]]]:
    """Blocks, with what gives their prompt, which raises `StoppedError` when asked to stop before it is there.

    A clip is decoded when its prompt is asked for; the next sample's then too, while the device computes.
    """
    order = list(dict.fromkeys(block.sample for block in blocks))
    following = dict(itertools.pairwise(order))
    pool, futures = ThreadPoolExecutor(1), dict[int, Future[Prompt]]()

    def decoding(sample: int) -> Future[Prompt]:
        if sample not in futures:
            futures[sample] = pool.submit(run.samples[sample].prompt)
        return futures[sample]

    def prompt(sample: int) -> Prompt:
        future = decoding(sample)
        if sample in following:
            decoding(following[sample])
        for earlier in [s for s in futures if s not in (sample, following.get(sample))]:
            del futures[earlier]  # and its features
        while not future.done():
            if stop():
                raise StoppedError
            wait([future], timeout=PATIENCE_SECONDS)
        return future.result()

    try:
        for block in blocks:
            yield block, functools.partial(prompt, block.sample)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # the next clip may take minutes; its reader ends by itself


def prompt_together(prompt: Callable[[], Prompt], team: Team) -> Prompt:
    """A sample's prompt, or an error on all processes of a team when one of them cannot use the clip."""
    try:
        decoded = prompt()
    except Exception as error:
        team.minimum(0)
        if isinstance(error, ValueError | OSError | StoppedError):
            raise
        raise OSError(f"the clip cannot be read ({type(error).__name__}: {error})") from error
    if not team.minimum(1):
        raise OSError("another process of the mesh cannot use the clip; see that process's message")
    return decoded
