"""The records of how the examples learn: kept one by one, and drawn."""

import json
import sys

import pytest

from benchmarks import curves, draw_curves, report


def test_a_record_takes_the_place_of_the_one_like_it(tmp_path):
    path = tmp_path / "new" / "records.json"
    for record in ({"T": 1, "loss": 1}, {"T": 2, "loss": 1}, {"T": 1, "loss": 3}):
        report.keep(path, record, ["T"])
    assert json.loads(path.read_text()) == [{"T": 2, "loss": 1}, {"T": 1, "loss": 3}]


def test_what_an_example_yields_is_kept(monkeypatch, tmp_path):
    path = tmp_path / "records.json"
    example = type("example", (), {"parse": staticmethod(list), "run": staticmethod(lambda words: made(words))})

    def made(words):
        yield {"task": "adding", "T": 3, "model": words[1], "loss": 0.5}
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "long_memory", example)
    monkeypatch.setattr(sys, "argv", ["curves", "long_memory", "--json", str(path), "--models", "lru"])
    with pytest.raises(KeyboardInterrupt):
        curves.main()
    (record,) = json.loads(path.read_text())
    assert record["model"] == "lru"
    assert {"machine", "cores", "jax", "python", "load_average"} <= record.keys()


def test_records_are_drawn(monkeypatch, tmp_path):
    memory = {"task": "adding", "T": 3, "model": "lru", "ignorance": 0.16, "curve": [[1, 0.2], [2, 0.1]]}
    digits = {"task": "digits", "model": "lru", "weights": 1000, "curve": [[1, 0.5, 9], [2, 0.6, 18]]}
    digits["published"] = [40, 50]
    text = {"task": "text", "mixer": "min_gru", "width": 8, "curve": [[5, 2.0, 2.1, 9], [10, 1.9, 2.0, 18]]}
    text |= {"published": 1.5, "published_steps": 10}
    for name, record in (("long_memory", memory), ("pixel_digits", digits), ("shakespeare", text)):
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    monkeypatch.setattr(sys, "argv", ["draw_curves", "--folder", str(tmp_path)])
    draw_curves.main()
    assert {path.name for path in tmp_path.glob("*.png")} == {"long_memory.png", "published_curves.png"}
