"""Decoding in separate processes: a decoder that crashes or hangs ends its own process, not the run."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from avjax.media.corruption import Corruption
from avjax.media.errors import MediaError
from avjax.media.features import audio_features, video_features, waveform_features
from avjax.media.options import MediaOptions
from avjax.media.sources import ImageSource, SoundSource, VideoSource
from avjax.media.worker_messages import receive, send
from avjax.models.clip_features import AudioFeatures, VisionFeatures
from avjax.models.config import VisionConfig

DECODE_SECONDS = 300.0  # a file's limit
START_SECONDS = 120.0  # a new process's, which imports from a disk that may be far away
WORKER = "avjax.media.worker"
REMEDY = "re-encode or cut the file, or raise decode_seconds"
STOPPING = {signal.SIGINT, signal.SIGTERM}  # meant for the parent, who finishes its block and the clip for it


class IsolatedReader:
    """Reads media in worker processes; a clip whose worker dies or takes too long is a `MediaError` that names it.

    Threads may share it: each call has a worker of its own, which then waits for the next call. Outside of `with`, and
    after it, a worker serves a single call. Log-mel frames are computed here: they need transformers, and cannot crash.
    So are clips with a corruption of the caller's own, whose code a worker may not have.

    Args:
      seconds: the most time that one file may take.
      remedy: what the message says to do when that is over.
      module: what a worker runs, with `avjax.media.worker.serve` in it; by default that itself.

    Raises:
      ValueError: the limit is no time.
    """

    def __init__(self, seconds: float = DECODE_SECONDS, *, remedy: str = REMEDY, module: str | None = None):
        if not 0 < seconds < threading.TIMEOUT_MAX:
            raise ValueError(f"decode_seconds: expected a time above 0 s, got {seconds!r}")
        self.seconds, self.remedy, self.module = seconds, remedy, module or WORKER
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._keeping = 0

    def __enter__(self) -> Self:
        with self._lock:
            self._keeping += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._keeping -= 1
            idle, busy = ([], []) if self._keeping else (self._idle, [*self._busy])
            self._idle = [] if idle else self._idle
        for worker in idle:
            worker.end()
        for worker in busy:  # their threads see the end of the pipe
            worker.process.kill()

    def has_sound(self, path: str | Path) -> bool:
        """See `avjax.media.decode.has_sound`."""
        return self._read("has_sound", path)

    def media_kind(self, path: str | Path) -> Literal["image", "video", "audio"]:
        """See `avjax.media.decode.media_kind`."""
        return self._read("media_kind", path)

    def sound_offset_seconds(self, path: str | Path) -> float:
        """See `avjax.media.decode.sound_offset_seconds`."""
        return self._read("sound_offset_seconds", path)

    def image(self, image: ImageSource, config: VisionConfig, options: MediaOptions) -> VisionFeatures:
        """See `avjax.media.features.image_features`."""
        return self._read("image", image, config, options)

    def video(
        self, video: VideoSource, config: VisionConfig, options: MediaOptions, corrupt: Sequence[Corruption] = ()
    ) -> tuple[VisionFeatures, float]:
        """See `avjax.media.features.video_features`."""
        if not _known_to_workers(corrupt):
            return video_features(video, config, options, corrupt)
        return self._read("video", video, config, options, tuple(corrupt))

    def audio(self, audio: SoundSource, options: MediaOptions, corrupt: Sequence[Corruption] = ()) -> AudioFeatures:
        """See `avjax.media.features.audio_features`."""
        if not _known_to_workers(corrupt):
            return audio_features(audio, options, corrupt)
        waveform, source = self._read("sound", audio, options, tuple(corrupt))
        return waveform_features(waveform, options, source=source)

    def _read(self, task: str, clip: Any, *arguments: Any) -> Any:
        name = str(clip) if isinstance(clip, str | Path) else task
        with self._worker(name) as worker:
            succeeded, result = worker.ask((task, (clip, *arguments), self.seconds), name, self.seconds, self.remedy)
        if not succeeded:
            raise result
        return result

    @contextlib.contextmanager
    def _worker(self, name: str) -> "Iterator[_Worker]":
        worker = self._idle_worker() or _Worker(self.module, name)
        with self._lock:
            self._busy.add(worker)
        try:
            yield worker
        except BaseException:
            worker.end()
            raise
        finally:
            with self._lock:
                self._busy.discard(worker)
                keep = self._keeping and worker.alive
                if keep:
                    self._idle.append(worker)
            if not keep:
                worker.end()

    def _idle_worker(self) -> "_Worker | None":
        while True:
            with self._lock:
                if not self._idle:
                    return None
                worker = self._idle.pop()
            if worker.alive:
                return worker
            worker.end()


class _Worker:
    """A process that waits for files to decode."""

    def __init__(self, module: str, clip: str):
        with _held_back(STOPPING):  # the process inherits that: Ctrl-C reaches it in the same moment as its parent
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_environment(),
            )
        self.end = weakref.finalize(self, _end, self.process)  # at exit too
        with self._killed_after(START_SECONDS) as late:
            try:
                receive(self.process.stdout)  # pyright: ignore[reportArgumentType]
            except EOFError as error:
                status = self.process.wait()
                self.end()
                reason = f"within {START_SECONDS:g} s" if late.is_set() else f"(status {status})"
                raise MediaError(
                    f"{clip}: the decoding process did not start {reason}; its message is on standard error; to see it "
                    f"again, run `{sys.executable} -m {module}`"
                ) from error

    @property
    def alive(self) -> bool:
        return self.end.alive and self.process.poll() is None

    def ask(self, request: Any, clip: str, seconds: float, remedy: str) -> Any:
        """The answer to a request.

        Raises:
          MediaError: the process has died of it, or was ended when its time was over.
        """
        with self._killed_after(seconds) as late:
            with contextlib.suppress(OSError):  # it is gone; how is said below
                send(self.process.stdin, request)  # pyright: ignore[reportArgumentType]
            try:
                return receive(self.process.stdout)  # pyright: ignore[reportArgumentType]
            except (EOFError, OSError, ValueError) as error:
                if late.is_set():
                    reason = f"decoding was stopped after {seconds:g} s without a result; {remedy}"
                else:
                    reason = _death(self.process)
                raise MediaError(f"{clip}: {reason}") from error

    @contextlib.contextmanager
    def _killed_after(self, seconds: float) -> Iterator[threading.Event]:
        """Ends the process, and with it what waits for its pipes, when a time is over; the event says so."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()


def _known_to_workers(corrupt: Sequence[Corruption]) -> bool:
    return all(type(corruption).__module__.startswith("avjax.") for corruption in corrupt)


def _death(process: "subprocess.Popen[bytes]") -> str:
    """How a process ended that gave no answer, and what to do."""
    process.kill()  # where only the pipe is closed
    status = process.wait()
    if status >= 0:
        return f"the decoding process ended with status {status}; re-encode the file or leave it out"
    name = signal.Signals(-status).name
    why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return (
        f"the decoding process was killed by {name}{why}; the file may be damaged or too large: re-encode it or leave "
        "it out"
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills a process and closes its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was still to be written
            if pipe is not None:
                pipe.close()


def _environment() -> dict[str, str]:
    """That of this process, with the modules that it finds."""
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys([*filter(None, map(str, sys.path)), root]))}


@contextlib.contextmanager
def _held_back(signals: set[signal.Signals]) -> Iterator[None]:
    """Signals that this thread does not take for a moment, and processes that it starts never."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
