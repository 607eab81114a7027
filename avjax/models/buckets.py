"""Sizes rounded up, so that few compiled programs serve all of them."""

ROW_BUCKETS = (1, 8, 32)


def bucket(size: int) -> int:
    """The padded length that serves `size` positions: multiples of an eighth of the power of two below, 64 at least."""
    step = max(64, (1 << max(size - 1, 1).bit_length() - 1) // 8)
    return -(-size // step) * step


def row_bucket(rows: int, most: int) -> int:
    """The number of rows that serves `rows`: 1, 8, 32, then as for prompt lengths; at most `most`."""
    small = next((b for b in ROW_BUCKETS if b >= rows), None)
    return min(bucket(rows) if small is None else small, most)


def count_bucket(count: int) -> int:
    """The batch size that serves `count` variants: multiples of an eighth of the power of two below."""
    step = max(1, (1 << (count.bit_length() - 1)) // 8)
    return -(-count // step) * step


def largest_batch(count: int) -> int:
    """The largest batch size of `count_bucket` that is at most `count`."""
    step = max(1, (1 << (int(count).bit_length() - 1)) // 8)
    return int(count) // step * step


def slot_bucket(max_new_tokens: int) -> int:
    """Decoded tokens that a cache has room for."""
    return -(-max_new_tokens // 16) * 16


def source_bucket(count: int) -> int:
    """Arrays that edits mix in: powers of two, and none."""
    return 0 if count == 0 else 1 << (count - 1).bit_length()


def call_bucket(count: int) -> int:
    """Parts of a clip in one call of a tower: 1, 2, 3, 4, 6, 8, 12, 16, 24, ...; at most a third is padding."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power
