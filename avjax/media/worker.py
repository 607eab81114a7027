"""The process that decodes, `python -m avjax.media.worker`; `avjax.media.isolated` starts it and sends requests.

It imports neither JAX nor torch, writes nothing to its output but answers, and ends when its parent does.
"""

import contextlib
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from avjax.media.decode import has_sound, media_kind, sound_offset_seconds
from avjax.media.errors import MediaError
from avjax.media.features import corrupted_sound, image_features, video_features
from avjax.media.worker_messages import receive, send

TASKS: dict[str, Callable[..., Any]] = {
    "image": image_features,
    "video": video_features,
    "sound": corrupted_sound,
    "has_sound": has_sound,
    "media_kind": media_kind,
    "sound_offset_seconds": sound_offset_seconds,
}
READY = "ready"
OUTLIVED_SECONDS = 10  # past the limit at which the parent kills this process


def serve(tasks: Mapping[str, Callable[..., Any]]) -> None:
    """Answers requests (task, arguments, seconds) until the parent closes the pipe.

    An answer is (True, result) or (False, exception).
    """
    requests, answers = _own_pipes()
    _be_the_first_to_go()
    waiting: queue.Queue[tuple[str, tuple[Any, ...], float]] = queue.Queue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    send(answers, READY)
    while True:
        task, arguments, seconds = waiting.get()
        _end_after(seconds)
        answer = _answer(tasks[task], arguments)
        _end_after(None)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more; `_listen` ends the process
            send(answers, answer)
        del answer, arguments  # their memory is needed for the next clip


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """What was standard input and output; libraries that print get standard error in place of it."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _be_the_first_to_go() -> None:
    """Linux ends the process with the highest score when memory runs out."""
    with contextlib.suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as score:
        score.write("1000")


def _listen(requests: IO[bytes], waiting: "queue.Queue[Any]") -> None:
    """Ends the process when the parent is gone, whatever it is busy with."""
    try:
        while True:
            waiting.put(receive(requests))
    except BaseException:  # noqa: BLE001 - a damaged request has no answer either
        os._exit(0)


def _end_after(seconds: float | None) -> None:
    """A decoder that neither ends nor lets other threads run dies by the clock, even without a parent."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0 if seconds is None else seconds + OUTLIVED_SECONDS)


def _answer(task: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, task(*arguments)
    except Exception as error:  # noqa: BLE001 - raised by the parent
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - of any class, by anyone
            return False, MediaError(f"{arguments[0]}: {type(error).__name__}: {error}; re-encode it or leave it out")
        return False, error.with_traceback(None)


if __name__ == "__main__":
    serve(TASKS)
