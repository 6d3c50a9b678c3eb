"""The example of spoken digits: strings and their spectra, errors that are counted, and both models."""

import jax.numpy as jnp
import numpy as np
import pytest
import spoken_digits
from common import speech

pytestmark = pytest.mark.usefixtures("as_it_comes")


def run(*words):
    (record,) = spoken_digits.run(spoken_digits.parse(words))
    return record


@pytest.mark.parametrize(
    ("said", "meant", "edits"),
    [
        ([], [], 0),
        ([], [1, 2], 2),
        ([1, 2], [], 2),
        ([1, 2, 3], [1, 3], 1),
        ([1, 2], [2, 1], 2),
        ([1, 5, 2], [1, 2, 2], 1),
    ],
)
def test_edits(said, meant, edits):
    assert speech.edits(said, meant) == edits


def test_a_tone_is_in_the_band_of_its_pitch():
    time = np.arange(speech.RATE) / speech.RATE
    frames = speech.log_mel(np.sin(2 * np.pi * 1000 * time).astype(np.float32))
    assert frames.shape == (98 // 3, 120)  # 98 windows of 25 ms begin within a second
    bands = frames.reshape(-1, speech.MELS).argmax(1)
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 42) / 2595) - 1)
    assert set(bands.tolist()) == {np.abs(corners[1:-1] - 1000).argmin()}


def test_strings_are_of_one_speaker_and_of_their_digits():
    clips = speech.Clips([np.full(800, number + 1.0, np.float32) for number in range(4)], *np.array(
        [[3, 5, 7, 9], [0, 0, 1, 1], [0, 1, 0, 1]]
    ))  # fmt: skip
    spoken = speech.strings(np.random.default_rng(0), clips, [3, 6] * 5, speech.Variation())
    assert [len(digits) for digits in spoken.digits] == [3, 6] * 5
    assert {frozenset(digits.tolist()) for digits in spoken.digits} <= {
        frozenset(s) for s in ({3, 5}, {7, 9}, {3}, {9})
    }
    whole = speech.speak(np.random.default_rng(0), clips.samples[:2], speech.Variation(gaps=(0.1, 0.1)))
    assert len(whole) == 3 * 800 + 2 * 799
    assert abs(whole[1200] - 1) < 0.01
    assert abs(whole[2800] - 2) < 0.01


def test_the_split_and_the_speaker_held_out():
    _, clips = speech.read_clips()
    training, test = spoken_digits.split(clips, None)
    assert set(test.take.tolist()) == set(range(5))
    assert len(training.samples) + len(test.samples) == len(clips.samples) == 160
    training, test = spoken_digits.split(clips, "voice 1")
    assert set(test.speaker.tolist()) == {"voice 1"} != set(training.speaker.tolist())
    with pytest.raises(ValueError, match="--held-out: expected one of"):
        spoken_digits.split(clips, "nobody")


def test_labels_are_read_and_errors_counted():
    strings = speech.Strings([np.ones((5, speech.FEATURES), np.float32)] * 2, [np.array([0, 4]), np.array([7])])
    transcribe = lambda *_: jnp.array([[0, 1, 0, 5], [0, 0, 2, 2]])  # noqa: E731
    rate = spoken_digits.error_rate(transcribe, None, strings, lambda xs: xs)  # 04 is right, 11 is not 7
    assert rate == 2 / 3
    batch = spoken_digits.as_batch(strings, lambda xs: 2 * xs)
    assert batch.xs.shape == (2, 64, speech.FEATURES)
    assert (batch.xs[:, :5] == 2).all()
    assert not batch.xs[:, 5:].any()
    assert batch.target[0].tolist() == [1, 5, 0, 0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "steps"), [("ctc", 160), ("transducer", 10)])
def test_the_example_trains_transcribes_and_draws(monkeypatch, tmp_path, model, steps):
    small = {"UNITS": 32, "B": 16, "DROPOUT": 0.0, "LEARNING_RATE": 1e-2, "MULTIPLE": 32, "BEAM": 2, "TESTED": 20}
    for name, value in (small | {"LENGTHS": [2]}).items():
        monkeypatch.setattr(spoken_digits, name, value)
    name, clips = speech.read_clips()
    monkeypatch.setattr(speech, "read_clips", lambda: (name, clips.where(clips.digit < 2)))
    picture = tmp_path / "new" / "alignments.png"
    record = run("--model", model, "--steps", str(steps), "--picture", str(picture))
    assert record["weights"] > 10_000
    assert 0 <= record["test"] <= record["greedy"]
    if model == "ctc":  # the transducer needs more steps than a test may take
        assert record["test"] < 0.35  # one in two by chance
    assert picture.stat().st_size > 10_000
