"""The examples that are held to published tables: they read what they say, train, and their records become a table."""

import json
import sys
from pathlib import Path

import chorales
import equinox as eqx
import fitzhugh_nagumo
import jax
import mnist1d
import numpy as np
import pytest
import speaker_recognition
from common import data

from benchmarks import published

pytestmark = pytest.mark.usefixtures("as_it_comes")

ROOT = Path(published.__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_trained_before():
    published.train.cache_clear()


def run(example, *words):
    (record,) = example.run(example.parse(words))
    return record


def test_data_is_found_or_missed_by_name(monkeypatch, tmp_path, capsys):
    assert data.find("mnist", "small digits stand in") is None
    assert "RNNJAX_DATA is not set: small digits stand in; see --help" in capsys.readouterr().out
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="RNNJAX_DATA: expected mnist in"):
        data.find("mnist", "")
    (tmp_path / "mnist").mkdir()
    assert data.find("mnist", "") == tmp_path / "mnist"


@pytest.mark.slow
def test_digits_as_lines(monkeypatch, tmp_path, capsys):
    (tmp_path / "mnist1d").mkdir()
    labels = np.arange(300) % 10
    xs = labels[:, None] / 10 + np.zeros(40)
    np.savez(tmp_path / "mnist1d" / "mnist1d.npz", x=xs, y=labels, x_test=xs[:50], y_test=labels[:50])
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    record = run(mnist1d, "--steps", "200", "--shuffled")
    assert record["task"] == "MNIST-1D"
    assert record["test"] > 0.5
    assert "50 test digits" in capsys.readouterr().out


def test_speakers_are_read():
    training, test = speaker_recognition.read()[1:]
    assert training.xs.shape == (270, 29, 12)
    assert test.xs.shape == (370, 29, 12)
    assert {7, 29} <= set(training.lengths.tolist()) <= set(range(7, 30))


def test_a_file_of_speakers(tmp_path):
    path = tmp_path / "x.ts"
    lines = [":".join(["1,2,3"] * 12) + ":1", ":".join(["4"] * 12) + ":9"]
    path.write_text("# of\n@classLabel true 1 2\n@data\n" + "\n".join(lines) + "\n")
    sequences = speaker_recognition.read_file(path)
    np.testing.assert_array_equal(sequences.targets, [0, 8])
    np.testing.assert_array_equal(sequences.lengths, [3, 1])
    np.testing.assert_array_equal(sequences.xs[0, :4, 5], [1, 2, 3, 0])


@pytest.mark.slow
def test_speakers_are_told_apart(monkeypatch):
    monkeypatch.setattr(speaker_recognition, "UNITS", 12)
    assert run(speaker_recognition, "--epochs", "20")["test"] > 0.6  # of nine


def test_a_round_is_four_voices():
    roll = chorales.sing(np.random.default_rng(0))
    assert roll.shape == (76, 88)
    first = roll[0].argmax()
    assert roll[0].sum() == 1
    np.testing.assert_array_equal(roll[[4, 8, 12], [first - 12, first - 24, first - 36]], 1)
    assert roll.sum(1).max() == 4


def test_pieces_are_asked_for_the_next_step():
    pieces = chorales.as_sequences([np.eye(5, 88), np.eye(3, 88)])
    np.testing.assert_array_equal(pieces.lengths, [4, 2])
    np.testing.assert_array_equal(pieces.xs[0, 1:], pieces.targets[0, :-1])
    np.testing.assert_array_equal(pieces.targets[1].argmax(1), [1, 2, 0, 0])


@pytest.mark.slow
def test_chorales_are_learned(monkeypatch, capsys):
    monkeypatch.setitem(chorales.RECIPES, "gru", chorales.RECIPES["gru"]._replace(units=16))
    record = run(chorales, "--cell", "gru", "--epochs", "2")
    assert record["test"] < 45  # of 88 keys, each of which is silent or not: 61 at random
    assert "rounds, gru" in capsys.readouterr().out


def test_weights_are_dropped_of_chorales():
    pieces, key = chorales.as_sequences([np.eye(9, 88)]), jax.random.key(0)
    model = chorales.build(chorales.RECIPES["gru"]._replace(units=8, inputs=0.0, outputs=0.0), key, key)

    @eqx.filter_jit
    def losses(model, pieces):
        dropping = [chorales.dropping(model, None, pieces, key, recurrent=rate)[0] for rate in (0.0, 0.5)]
        return chorales.loss(model, None, pieces, key)[0], *dropping

    expected, kept, dropped = map(float, losses(model, pieces))
    assert kept == expected != dropped


def test_a_neuron_follows_its_equations():
    """Ten times finer, by Euler's method."""
    v, w, step, seen = 0.3, 0.0, fitzhugh_nagumo.END / fitzhugh_nagumo.T / 400, [0.3]
    for _ in range(100):
        for _ in range(400):
            v, w = v + step * (v - v**3 / 3 - w + 0.5), w + step * (v + 0.7 - 0.8 * w) / 50
        seen.append(v)
    np.testing.assert_allclose(fitzhugh_nagumo.simulate(0.3)[:101], seen, atol=0.02)


@pytest.mark.slow
def test_a_neuron_is_learned(monkeypatch, capsys):
    monkeypatch.setattr(fitzhugh_nagumo, "COUNTS", (8, 4, 4))
    monkeypatch.setattr(fitzhugh_nagumo, "B", 4)
    record = run(fitzhugh_nagumo, "--cell", "lstm", "--epochs", "10")
    assert record["test"] < 1
    assert "of the last value 0.0" in capsys.readouterr().out


def test_a_task_is_the_mean_of_its_seeds(monkeypatch):
    run = staticmethod(lambda words: [{"test": np.float32(0.9 + 0.01 * int(words[-1]))}])
    fake = type("example", (), {"parse": staticmethod(list), "run": run})
    monkeypatch.setitem(sys.modules, "mnist1d", fake)
    record = published.run("MNIST-1D, bidirectional GRU", 3)
    record = json.loads(json.dumps(record))
    np.testing.assert_allclose(record["seeds"], [90, 91, 92], rtol=1e-6)
    np.testing.assert_allclose(record["ours"], 91, rtol=1e-6)
    assert record["met"] is True
    assert {"machine", "cores", "jax", "python", "load_average"} <= record.keys()
    worse = record | {"task": "JSB chorales, GRU", "unit": "nats", "met": False, "seeds": [9.0], "ours": 9.0}
    rows = published.table([worse, record]).splitlines()
    assert rows[2].startswith("| MNIST-1D, bidirectional GRU | % | 89 to 91 | 91 (90 to 92) | 3 | 89 | yes |")
    assert rows[3].startswith("| JSB chorales, GRU | nats | 89 to 91 | 9 | 1 | 89 | no |")


@pytest.mark.skipif((ROOT / "PKG-INFO").is_file(), reason="a source distribution is without the records of benchmarks")
def test_the_published_table_is_that_of_the_records():
    records = json.loads((ROOT / "benchmarks" / "results" / "published.json").read_text())
    assert {record["task"] for record in records} <= set(published.TASKS)
    assert published.table(records) in (ROOT / "benchmarks" / "README.md").read_text()


def test_what_stands_in_for_data_is_not_recorded(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["published", "Japanese Vowels, bidirectional LSTM"])
    with pytest.raises(SystemExit):
        published.main()
    assert "RNNJAX_DATA: expected the folder of the real data" in capsys.readouterr().err


def test_two_tasks_look_at_one_training(monkeypatch):
    seeds = []
    figures = {"test": 30.0, "greedy": 29.0, "perplexity": 20.0, "perplexity_of_own_words": 28.0}
    run = staticmethod(lambda words: seeds.append(words) or [figures])
    monkeypatch.setitem(sys.modules, "translation", type("example", (), {"parse": staticmethod(list), "run": run}))
    answers = {"BLEU": (29, True), "BLEU of a beam": (30, None), "perplexity after its own words": (28, False)}
    for figure, answer in answers.items():
        record = published.run(f"Multi30k de-en, half forced, {figure}", 1)
        assert (record["ours"], record["met"]) == answer
    assert [words[-2:] for words in seeds] == [["--seed", "0"]]


def test_a_task_without_a_bar_is_neither_met_nor_missed(monkeypatch):
    run = staticmethod(lambda _: [{"test": 0.5}])
    monkeypatch.setitem(sys.modules, "pixel_digits", type("example", (), {"parse": staticmethod(list), "run": run}))
    record = published.run("sequential MNIST, 8 epochs, LSTM", 1)
    assert record["met"] is None
    assert (
        published.table([record])
        .splitlines()[2]
        .startswith("| sequential MNIST, 8 epochs, LSTM | % |  | 50 | 1 |  |  |")
    )


def test_seeds_that_are_trained_at_once_are_one_training(monkeypatch):
    calls = []
    run = staticmethod(lambda words: calls.append(words) or [{"test": 0.9 + 0.02 * seed} for seed in range(3)])
    example = type("example", (), {"parse": staticmethod(list), "run": run})
    monkeypatch.setitem(sys.modules, "state_tracking", example)
    record = published.run("parity to length 256, sLSTM", 3)
    assert [words[-2:] for words in calls] == [["--seeds", "3"]]
    np.testing.assert_allclose(record["seeds"], [0.9, 0.92, 0.94])
    assert record["met"] is False


def test_made_up_data_need_no_folder():
    """A task on generated data runs without a data folder; without one, all tasks together are refused."""
    assert published.parse(["recall of 16 pairs, width 32, Mamba-2"]).tasks
    with pytest.raises(SystemExit):
        published.parse([])


def test_every_task_names_an_example():
    for task in published.TASKS.values():
        module, *words = task.words
        assert __import__(module).parse([*words, "--seed", "3"]).seed == 3
