"""Spoken digits: clips of the Free Spoken Digit Dataset, strings put together from them, and their log-mel spectra.

The folder RNNJAX_DATA holds fsdd/fsdd.npz, made of the recordings at github.com/Jakobovski/free-spoken-digit-dataset:
`samples`, all clips one after the other, at 8 kHz; `offsets` of the clips; and for each `digit`, `speaker` and `index`.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.fft import rfft

from common import data

RATE, WINDOW, HOP, FOURIER = 8000, 200, 80, 256  # samples a second; frames of 25 ms, one every 10 ms
MELS, STACKED = 40, 3  # a step of a network is three frames, side by side: 30 ms
FEATURES = MELS * STACKED
LOUDNESS, NOISE = 0.1, 1e-3  # root mean square of a clip, and of the noise between clips
TEST_TAKES = 5  # of each digit and speaker: the data set's own split
LOW, HIGH = (300, 450, 675, 1012), (1400, 2100, 3150)  # hertz of two tones, farther apart than speeds shift them


class Clips(NamedTuple):
    """Recordings of one digit each."""

    samples: list[np.ndarray]
    digit: np.ndarray
    speaker: np.ndarray
    take: np.ndarray

    def where(self, chosen: np.ndarray) -> "Clips":
        rows = np.flatnonzero(chosen)
        return Clips([self.samples[row] for row in rows], *(leaf[rows] for leaf in self[1:]))


class Variation(NamedTuple):
    """How strings vary: seconds between clips, relative speeds, and decibels."""

    gaps: tuple[float, float] = (0.05, 0.25)
    speeds: tuple[float, float] = (1.0, 1.0)
    decibels: tuple[float, float] = (0.0, 0.0)


def read_clips() -> tuple[str, Clips]:
    """The name of the data, and all clips, of one loudness."""
    folder = data.find("fsdd", "pairs of tones stand in for speech")
    if folder is None:
        return "pairs of tones", pairs_of_tones(np.random.default_rng(0), speakers=2, takes=8)
    with np.load(folder / "fsdd.npz") as file:
        ends = file["offsets"][1:-1]
        samples = [normalised(clip) for clip in np.split(file["samples"].astype(np.float32), ends)]
        return "Free Spoken Digit Dataset", Clips(samples, *(file[name] for name in ("digit", "speaker", "index")))


def normalised(samples: np.ndarray) -> np.ndarray:
    return samples * np.float32(LOUDNESS / np.sqrt((samples**2).mean()))


def pairs_of_tones(generator: np.random.Generator, speakers: int, takes: int) -> Clips:
    """A low and a high tone for each digit, as a telephone's keys have them, of several lengths, in noise."""
    rows = np.array(list(product(range(10), range(speakers), range(takes))))
    key = {digit: divmod(digit - 1, 3) if digit else (3, 1) for digit in range(10)}
    samples = []
    for digit, speaker, _ in rows:
        time = np.arange(int(RATE * generator.uniform(0.15, 0.3))) / RATE
        row, column = key[digit]
        tones = sum(np.sin(2 * np.pi * hertz * (1 + 0.01 * speaker) * time) for hertz in (LOW[row], HIGH[column]))
        samples.append(normalised((tones + 0.3 * generator.normal(size=len(time))).astype(np.float32)))
    return Clips(samples, rows[:, 0], np.array([f"voice {speaker}" for speaker in rows[:, 1]]), rows[:, 2])


def speak(generator: np.random.Generator, clips: list[np.ndarray], variation: Variation) -> np.ndarray:
    """The samples of clips one after the other, with gaps between and around them; all of one speed and loudness."""
    speed, decibels = generator.uniform(*variation.speeds), generator.uniform(*variation.decibels)
    parts = []
    for clip in [*clips, np.zeros(0, np.float32)]:
        parts.append(np.zeros(int(RATE * generator.uniform(*variation.gaps)), np.float32))
        places = np.arange(0, len(clip) - 1, speed)
        parts.append(np.interp(places, np.arange(len(clip)), clip) if len(clip) else clip)
    whole = np.concatenate(parts)
    noise = NOISE * generator.standard_normal(len(whole), np.float32)
    return (whole + noise).astype(np.float32) * np.float32(10 ** (decibels / 20))


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Logarithms of the energies in bands of equal width in mel, three frames at a step: [T, FEATURES]."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    powers = np.abs(np.asarray(rfft(frames * np.hanning(WINDOW).astype(np.float32), FOURIER))) ** 2
    energies = np.log(powers @ mel_filters() + np.float32(1e-4))
    steps = len(energies) // STACKED
    return energies[: steps * STACKED].reshape(steps, FEATURES)


@lru_cache
def mel_filters() -> np.ndarray:
    """Triangles [FOURIER / 2 + 1, MELS], whose corners are evenly spaced in mel, 2595 log10(1 + f / 700)."""
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, MELS + 2) / 2595) - 1)
    hertz = np.linspace(0, RATE / 2, FOURIER // 2 + 1)[:, None]
    rising = (hertz - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hertz) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


class Strings(NamedTuple):
    """Strings of digits: features [T, FEATURES] of each, and its digits."""

    features: list[np.ndarray]
    digits: list[np.ndarray]


def strings(generator: np.random.Generator, clips: Clips, lengths: list[int], variation: Variation) -> Strings:
    """Strings of so many digits each, every one of them said by one speaker."""
    speakers, features, digits = by_speaker(clips), [], []
    for length in lengths:
        rows = generator.choice(speakers[generator.integers(len(speakers))], length)
        features.append(log_mel(speak(generator, [clips.samples[row] for row in rows], variation)))
        digits.append(clips.digit[rows].astype(int))
    return Strings(features, digits)


def by_speaker(clips: Clips) -> list[np.ndarray]:
    """The rows of each speaker's clips."""
    return [np.flatnonzero(clips.speaker == speaker) for speaker in np.unique(clips.speaker)]


def scaler(features: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """What gives each feature of these sequences a mean of zero and a deviation of one."""
    steps = np.concatenate(features)
    mean, deviation = steps.mean(0), steps.std(0) + np.float32(1e-3)
    return lambda xs: (xs - mean) / deviation


def edits(said: list[int], meant: list[int]) -> int:
    """The fewest labels to insert, remove or replace to make one of the other (Levenshtein 1966)."""
    row = list(range(len(meant) + 1))
    for number, label in enumerate(said, 1):
        before, row = row, [number]
        for place, other in enumerate(meant):
            row.append(min(before[place] + (label != other), before[place + 1] + 1, row[place] + 1))
    return row[-1]
