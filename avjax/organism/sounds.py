"""The sounds of the tiny world, synthesised: each class a recipe whose pitch, tempo, timbre and timing are drawn.

Axes: n samples at 16 kHz, mono.
"""

from collections.abc import Callable

import numpy as np

from avjax.media.decode import SAMPLE_RATE

SECONDS = 2.0
NUM_SAMPLES = int(SECONDS * SAMPLE_RATE)
Recipe = Callable[[np.random.Generator], np.ndarray]


def _times(seconds: float = SECONDS) -> np.ndarray:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _tone(frequency: np.ndarray | float, seconds: float = SECONDS) -> np.ndarray:
    """A sine whose frequency (Hz) may change."""
    steps = np.broadcast_to(frequency, _times(seconds).shape)
    return np.sin(2 * np.pi * np.cumsum(steps) / SAMPLE_RATE)


def _harmonics(frequency: np.ndarray | float, amplitudes: np.ndarray, seconds: float = SECONDS) -> np.ndarray:
    """Multiples of a frequency, those below half the sample rate."""
    highest = float(np.max(frequency))
    harmonics = [(k, a) for k, a in enumerate(amplitudes, 1) if k * highest < SAMPLE_RATE / 2]
    return sum((a * _tone(k * np.asarray(frequency), seconds) for k, a in harmonics), np.zeros(len(_times(seconds))))


def _decay(seconds: float, time_constant: float) -> np.ndarray:
    return np.exp(-_times(seconds) / time_constant)


def _placed(pieces: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Pieces added at their start seconds; what does not fit is cut."""
    out = np.zeros(NUM_SAMPLES)
    for start, piece in pieces:
        first = round(start * SAMPLE_RATE)
        piece = piece[: max(0, NUM_SAMPLES - first)]
        out[first : first + len(piece)] += piece
    return out


def _band(rng: np.random.Generator, low: float, high: float, seconds: float = SECONDS) -> np.ndarray:
    """Gaussian noise between two frequencies (Hz), of unit power."""
    count = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    noise = np.fft.irfft(spectrum, count)
    return noise / (np.std(noise) + 1e-9)


def _beats(rng: np.random.Generator, low: float, high: float, jitter: float = 0.0) -> np.ndarray:
    """Start seconds of a regular beat of `low` to `high` Hz."""
    period = 1 / rng.uniform(low, high)
    starts = np.arange(rng.uniform(0, period), SECONDS, period)
    return np.clip(starts + jitter * period * rng.standard_normal(len(starts)), 0, SECONDS - 0.01)


def barking(rng: np.random.Generator) -> np.ndarray:
    pitch, length = rng.uniform(280, 600), rng.uniform(0.12, 0.22)
    rise = pitch * (1 + 0.5 * np.sin(np.pi * _times(length) / length))
    bark = _harmonics(rise, 1 / np.arange(1, 12) ** 0.7, length) + 0.6 * _band(rng, 500, 4000, length)
    return _placed([(s, bark * np.sin(np.pi * _times(length) / length) ** 0.5) for s in _beats(rng, 1.5, 3.5, 0.1)])


def ringing(rng: np.random.Generator) -> np.ndarray:
    base, ratios = rng.uniform(450, 1000), (0.5, 1.0, 1.19, 1.5, 2.0, 2.74, 3.76)
    partials = [_tone(base * r) * _decay(SECONDS, rng.uniform(0.3, 0.8) / r) / r**0.5 for r in ratios]
    strike = np.sum(partials, axis=0)
    return _placed([(s, strike) for s in _beats(rng, 0.6, 1.6)])


def engine(rng: np.random.Generator) -> np.ndarray:
    speed = rng.uniform(45, 95) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.2, 1) * _times() + rng.uniform(0, 6)))
    throb = _harmonics(speed, 1 / np.arange(1, 25) ** 0.8)
    return throb + 0.5 * _band(rng, 60, 900) * (1 + 0.5 * _tone(speed / 2))


def siren(rng: np.random.Generator) -> np.ndarray:
    low, rate = rng.uniform(450, 750), rng.uniform(0.6, 2.5)
    phase = (rate * _times() + rng.uniform()) % 1
    shape = np.abs(2 * phase - 1) if rng.random() < 0.6 else (phase < 0.5).astype(float)
    return _harmonics(low * (1 + rng.uniform(0.4, 1.0) * shape), np.array([1, 0.5, 0.33, 0.2]))


def drumming(rng: np.random.Generator) -> np.ndarray:
    pitch, length = rng.uniform(70, 140), 0.25
    thump = _tone(pitch * (1 + 1.5 * _decay(length, 0.02)), length) * _decay(length, 0.07)
    snap = 0.4 * _band(rng, 1000, 6000, length) * _decay(length, 0.02)
    return _placed([(s, rng.uniform(0.6, 1) * (thump + snap)) for s in _beats(rng, 3, 6.5, 0.04)])


def whistling(rng: np.random.Generator) -> np.ndarray:
    pitch = rng.uniform(1800, 3600) * (1 - 0.25 * _decay(SECONDS, rng.uniform(0.1, 0.6)))
    return _harmonics(pitch, np.array([1, 0.25])) + 0.25 * _band(rng, 1500, 7000)


def pouring(rng: np.random.Generator) -> np.ndarray:
    """Rain: hiss, and drops at random times."""
    drops = [(rng.uniform(0, SECONDS), rng.uniform(1, 4) * _band(rng, 2000, 7500, 0.01)) for _ in range(80)]
    return _band(rng, rng.uniform(800, 1800), 7800) + _placed(drops)


def ticking(rng: np.random.Generator) -> np.ndarray:
    ring = rng.uniform(1800, 3500)
    click = (_tone(ring, 0.03) + 0.5 * _band(rng, 1000, 7000, 0.03)) * _decay(0.03, 0.004)
    return _placed([(s, click * (1.0 if i % 2 else 0.7)) for i, s in enumerate(_beats(rng, 2, 4.5))])


def playing(rng: np.random.Generator) -> np.ndarray:
    """Chords of a piano."""
    chords = ((0, 4, 7), (0, 3, 7), (0, 5, 9), (0, 4, 9))
    root, pieces = rng.uniform(180, 330), []
    for start in _beats(rng, 0.8, 1.8):
        notes = root * 2 ** (np.array(chords[rng.integers(len(chords))]) / 12) * rng.choice([1.0, 1.122, 0.89])
        chord = np.sum([_harmonics(n, 1 / np.arange(1, 8) ** 1.5) for n in notes], axis=0)
        pieces.append((start, chord * _decay(SECONDS, 0.5)))
    return _placed(pieces)


def beeping(rng: np.random.Generator) -> np.ndarray:
    rate, duty = rng.uniform(2.5, 6), rng.uniform(0.35, 0.6)
    gate = ((rate * _times() + rng.uniform()) % 1) < duty
    return _tone(rng.uniform(850, 1500)) * gate


def humming(rng: np.random.Generator) -> np.ndarray:
    return _harmonics(rng.uniform(95, 125), np.array([1, 0.8, 0.1, 0.5, 0.05, 0.2])) + 0.05 * _band(rng, 50, 2000)


def chirping(rng: np.random.Generator) -> np.ndarray:
    pieces = []
    for start in _beats(rng, 1.5, 3, 0.1):
        pitch = rng.uniform(2600, 4200)
        for note in range(rng.integers(2, 5)):
            sweep = pitch * (1 + rng.uniform(0.2, 0.5) * np.linspace(0, 1, round(0.06 * SAMPLE_RATE)))
            piece = _tone(sweep, 0.06) * np.sin(np.pi * _times(0.06) / 0.06)
            pieces.append((min(start + 0.09 * note, SECONDS), piece))
    return _placed(pieces)


def talking(rng: np.random.Generator) -> np.ndarray:
    """Syllables: a voice of 90 to 220 Hz through the resonances of random vowels."""
    voice, pieces, start = rng.uniform(90, 220), [], rng.uniform(0, 0.2)
    vowels = ((730, 1090), (270, 2290), (300, 870), (530, 1840), (640, 1190))
    while start < SECONDS - 0.1:
        length = rng.uniform(0.12, 0.24)
        pitch = voice * (1 + 0.15 * np.sin(np.pi * _times(length) / length + rng.uniform(0, 3)))
        first, second = np.array(vowels[rng.integers(len(vowels))]) * rng.uniform(0.9, 1.15)
        multiples = voice * np.arange(1, 25)
        loud = np.exp(-(((multiples - first) / 130) ** 2)) + np.exp(-(((multiples - second) / 130) ** 2)) + 0.03
        pieces.append((start, _harmonics(pitch, loud, length) * np.sin(np.pi * _times(length) / length) ** 0.6))
        start += length + rng.uniform(0.01, 0.12)
    return _placed(pieces)


def splashing(rng: np.random.Generator) -> np.ndarray:
    """Water: bubbles whose pitch rises as they die, over a soft rush."""
    pieces = []
    for _ in range(rng.integers(40, 90)):
        length = rng.uniform(0.02, 0.08)
        bubble = _tone(rng.uniform(400, 1800) * (1 + _times(length) / length), length) * _decay(length, length / 3)
        pieces.append((rng.uniform(0, SECONDS), rng.uniform(0.3, 1) * bubble))
    return _placed(pieces) + 0.12 * _band(rng, 200, 2500)


def buzzing(rng: np.random.Generator) -> np.ndarray:
    wander = rng.uniform(190, 270) * (1 + 0.06 * np.sin(2 * np.pi * rng.uniform(2, 6) * _times()))
    return _harmonics(wander, 1 / np.arange(1, 25) ** 0.5) * (1 + 0.4 * _tone(rng.uniform(18, 30)))


def meowing(rng: np.random.Generator) -> np.ndarray:
    length = rng.uniform(0.6, 0.9)
    shape = np.sin(np.pi * _times(length) / length)
    pitch = rng.uniform(380, 600) * (1 + 0.5 * shape)
    cry = _harmonics(pitch, np.array([0.5, 1, 0.9, 0.5, 0.3, 0.15]), length) * shape**0.7
    return _placed([(s, cry) for s in _beats(rng, 0.7, 1.1)])


def in_a_room(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32: a drawn echo, level (-26 to -10 dB below full scale) and noise (15 to 40 dB below the sound)."""
    length = rng.uniform(0.01, 0.12)  # seconds in which the echo dies to 1 / e
    echo = rng.standard_normal(len(_times(3 * length))) * _decay(3 * length, length)
    echo *= rng.uniform(0, 0.5) / np.sqrt(np.sum(echo**2))
    echo[0] += 1
    width = 1 << (NUM_SAMPLES + len(echo) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(sound, width) * np.fft.rfft(echo, width), width)[:NUM_SAMPLES]
    wet *= 10 ** (rng.uniform(-26, -10) / 20) / (np.sqrt(np.mean(wet**2)) + 1e-9)
    power = np.mean(wet**2) / 10 ** (rng.uniform(15, 40) / 10)
    return np.clip(wet + np.sqrt(power) * rng.standard_normal(NUM_SAMPLES), -1, 1).astype(np.float32)
