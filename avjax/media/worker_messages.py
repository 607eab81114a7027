"""Pickled objects over pipes, large arrays beside them: one copy on either side."""

import pickle
import struct
from typing import IO, Any

SIZES = struct.Struct("<Q")


def send(pipe: IO[bytes], value: Any) -> None:
    """Writes a value; the receiving end runs the same program."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    pipe.write(SIZES.pack(1 + len(views)))
    for part in (head, *views):
        pipe.write(SIZES.pack(len(part)))
    for part in (head, *views):
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Reads a value.

    Raises:
      EOFError: the other side is gone.
    """
    (count,) = SIZES.unpack(_exactly(pipe, SIZES.size))
    sizes = [SIZES.unpack(_exactly(pipe, SIZES.size))[0] for _ in range(count)]
    head, *buffers = [_exactly(pipe, size) for size in sizes]
    return pickle.loads(head, buffers=buffers)


def _exactly(pipe: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = pipe.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise EOFError
        view = view[count:]
    return data
