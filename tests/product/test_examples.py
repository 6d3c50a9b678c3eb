"""The examples do what they say: the skeletons run everywhere, the textbook network counts, the main job trains."""

import itertools
import json
import sys
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import backpropagation_by_hand as by_hand
import equinox as eqx
import gradient_flow
import grid
import jax
import jax.numpy as jnp
import language_model
import laws
import numpy as np
import pytest
import streaming
from common import text
from new_cell import UpdateGateRNN
from new_engine import Doubled

import rnnjax

# The engines that run the new cell; the others are for linear cells.
QUICK_ENGINES = ("scan", "fused")
SLOW_ENGINES = ("unrolled", "checkpointed", "newton", "newton_diagonal", "fused_tpu", "fused_gpu")
VIEWS = ("plain", "vmap", "batch", "vmap_of_grad", "jvp")


@grid.once
def new_cell() -> UpdateGateRNN:
    return UpdateGateRNN(grid.I, grid.H, key=grid.KEY, dtype=jnp.float64)


@lru_cache
def views(engine: rnnjax.AbstractEngine) -> dict[str, Any]:
    """What an engine gives under each view of the new cell, as one compiled program."""
    run = partial(rnnjax.unroll, engine=engine)
    return eqx.filter_jit(lambda cell: {view: grid.VIEWS[view](run, cell) for view in VIEWS})(new_cell())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "engine", [*QUICK_ENGINES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_ENGINES)]
)
def test_new_cell_runs_on_every_engine_that_admits_it(engine, view):
    grid.assert_close(views(grid.ENGINES[engine])[view], views(grid.ORACLE)[view])


@pytest.mark.parametrize("engine", grid.ENGINES)
def test_new_cell_is_refused_by_the_engines_of_other_families_alone(engine):
    reason = grid.refusal(grid.ENGINES[engine], new_cell(), grid.inputs(grid.T))
    if engine in (*QUICK_ENGINES, *SLOW_ENGINES):
        assert reason is None
    else:
        needed = "AbstractMatrixCell" if engine == "chunked" else "AbstractLinearCell"
        assert f"cannot run UpdateGateRNN: it needs an {needed}" in reason


@pytest.mark.parametrize("law", laws.LAWS.values(), ids=laws.LAWS)
def test_new_cell_and_new_engine_obey_the_laws(law):
    law(laws.Runner(new_cell(), Doubled()))


STEPS = (1, 2, 7)


@lru_cache
def run_by(engine: rnnjax.AbstractEngine) -> dict[int, Any]:
    """What an engine makes of sequences of each length, as one compiled program."""
    run = eqx.filter_jit(lambda cell: {T: rnnjax.unroll(cell, None, grid.inputs(T), engine=engine) for T in STEPS})
    return run(grid.build("lstm_options"))


@pytest.mark.parametrize("steps", STEPS)
def test_new_engine_equals_scan(steps):
    grid.assert_close(run_by(Doubled())[steps], run_by(grid.ORACLE)[steps])


def test_gradient_by_hand_is_that_of_jax():
    xs = np.random.default_rng(3).integers(0, 2, (5, 12)).astype(np.float64)
    weights = by_hand.Weights(np.asarray(1.1), np.asarray(-0.5))
    by_jax = jax.jit(jax.grad(by_hand.loss))(weights, xs)
    np.testing.assert_allclose(by_hand.gradient_by_hand(1.1, -0.5, xs), by_jax, rtol=1e-10)


def test_the_linear_network_learns_to_count():
    xs = np.random.default_rng(0).integers(0, 2, (by_hand.B, by_hand.T)).astype(np.float64)
    learned = jax.jit(by_hand.learn)(by_hand.Weights(np.asarray(1.2), np.asarray(-1.5)), xs)
    np.testing.assert_allclose(learned, (1.0, 1.0), atol=1e-3)


@pytest.fixture
def main_job(tmp_path, monkeypatch):
    """The main job, scaled down: `main_job("--cell", "gru")` runs it in a folder of its own."""
    sizes = {"EMBEDDING": 8, "HIDDEN": 16, "STREAMS": 4, "CHUNK": 8, "STEPS": 20, "EVALUATIONS": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(language_model, name, value)
    (tmp_path / "book.txt").write_text("A rose is a rose is a rose. " * 800)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["language_model.py", "--runs", str(tmp_path / "runs"), *words])
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            language_model.main()

    return run


def test_the_main_job_trains_resumes_and_samples(main_job, tmp_path, capsys):
    book = str(tmp_path / "book.txt")
    main_job("--text", book, "--cell", "gru", "--engine", "scan")
    folder = tmp_path / "runs" / "language_model-1"
    assert {path.name for path in folder.iterdir()} >= {
        "model",
        "checkpoint",
        "metrics.jsonl",
        "curve.png",
        "sample.txt",
    }
    printed = capsys.readouterr().out
    for row in ("gru, this run", "order-0 entropy", "order-2 entropy", "bz2", "lzma", str(folder)):
        assert row in printed
    weights = (folder / "model").read_bytes()
    main_job("--resume")
    assert (folder / "model").read_bytes() == weights
    main_job("--sample", "A rose")
    assert "\nA rose" in capsys.readouterr().out


@pytest.mark.slow
def test_the_main_job_resumed_half_way_ends_with_the_same_bits(main_job, tmp_path, monkeypatch):
    """The second run stops at step 15 of 20, and goes on from its checkpoint after step 10."""
    batches, asked = language_model.batches, []

    def stopping_once(corpus):
        def chunk(step):
            asked.append(step)
            if asked.count(15) == 1 and step == 15:
                raise KeyboardInterrupt
            return batches(corpus)(step)

        return chunk

    words = ["--text", str(tmp_path / "book.txt"), "--engine", "scan"]
    main_job(*words)
    monkeypatch.setattr(language_model, "batches", stopping_once)
    with pytest.raises(KeyboardInterrupt):
        main_job(*words)
    whole, stopped = (tmp_path / "runs" / f"language_model-{number}" for number in (1, 2))
    assert not (stopped / "model").exists()
    asked_before = len(asked)
    main_job("--resume")
    assert asked[asked_before:] == list(range(10, 20))
    assert (stopped / "model").read_bytes() == (whole / "model").read_bytes()


@pytest.mark.slow
def test_the_main_job_trains_layers_in_the_next_folder(main_job, tmp_path):
    (tmp_path / "runs" / "language_model-1").mkdir(parents=True)
    main_job("--text", str(tmp_path / "book.txt"), "--minutes", "0.002", "--cell", "mingru")
    assert (tmp_path / "runs" / "language_model-2" / "model").exists()


def test_the_steps_of_the_minutes_are_those_of_a_quiet_machine(monkeypatch):
    """Nine calls in ten take a second because of other work, and one a tenth of it."""
    duration = itertools.cycle([1.0] * 9 + [0.1])
    clock = itertools.accumulate(itertools.chain.from_iterable((1.0, next(duration)) for _ in itertools.count()))
    monkeypatch.setattr(language_model, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(language_model, "rehearsal", lambda *_: lambda: None)
    assert language_model.count_steps(language_model.Plan("ab"), None, 0.5) == pytest.approx(300, abs=1)


BAD_CALLS = [
    pytest.param(["--text", "nowhere"], "--text: expected a file, found none at nowhere", id="missing"),
    pytest.param(["--resume"], "--runs: expected a run in", id="nothing to resume"),
    pytest.param(["--resume", "--minutes", "1"], "2", id="minutes of a run that has begun"),
    pytest.param(["--minutes", "nan"], "2", id="no minutes"),
    pytest.param(["--sample", "x", "--folder", "nowhere"], "--folder: expected a run, found no plan.json", id="no run"),
]


@pytest.mark.parametrize("of_a_run", [["--resume"], ["--sample", "x"]], ids=["resume", "sample"])
@pytest.mark.parametrize(
    "words",
    [["--text", "book.txt"], ["--cell", "gru"], ["--engine", "auto"], ["--seed", "0"]],
    ids=lambda words: words[0],
)
def test_the_plan_of_a_run_is_not_chosen_again(capsys, of_a_run, words):
    with pytest.raises(SystemExit):
        language_model.parse([*of_a_run, *words])
    assert f"{words[0]}: expected a new run, got --resume or --sample" in capsys.readouterr().err


def test_help_tells_the_defaults_of_a_new_run(capsys):
    with pytest.raises(SystemExit):
        language_model.parse(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(words in told for words in ("default: gru", "default: auto", "dropout (0)"))
    options = language_model.parse([])
    assert (options.text, options.cell, options.engine, options.seed) == (None, "gru", "auto", 0)


@pytest.mark.parametrize(("words", "message"), BAD_CALLS)
def test_the_main_job_refuses(main_job, words, message):
    with pytest.raises(SystemExit, match=message):
        main_job(*words)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "got 0 in"), (b"\xff\xfe" * 20_000, "UTF-8"), (b"a\0" * 20_000, "binary"), (b"short", "got 5 in")],
)
def test_a_file_that_is_no_text(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(text.TextError, match=message):
        text.read_text(str(path))


def test_a_run_is_never_overwritten(main_job, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({}))
    with pytest.raises(SystemExit, match="holds a run"):
        main_job("--folder", str(folder))
    assert (folder / "plan.json").read_text() == "{}"


def test_entropies_of_a_text_that_is_known():
    """Order 0 of four equal letters is two bits; in a cycle the two letters before tell the next."""
    corpus = text.Corpus("abcd" * 10_000)
    assert text.entropy_bits(corpus, 0) == pytest.approx(2.0, abs=1e-3)
    assert text.entropy_bits(corpus, 2) == pytest.approx(0.0, abs=1e-2)
    assert len(corpus.training) == 9 * len(corpus.held_out)


def test_gradient_flow_is_drawn(tmp_path):
    flows = [gradient_flow.Flow(np.geomspace(1, share, 7), error, None) for share, error in ((1e-6, 0.2), (0.1, 0.01))]
    gradient_flow.draw({"Elman": tuple(flows), "LSTM": tuple(flows)}, 6, tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("as_it_comes")
def test_gradient_flow_trains_draws_and_reports(tmp_path, capsys, monkeypatch):
    """The report is made of the first cell alone: it holds for any (see `test_diagnose`)."""
    picture = tmp_path / "new" / "flow.png"
    words = ["--length", "6", "--steps", "30", "--picture", str(picture)]
    examine, reports = rnnjax.diagnose.examine, []

    def examine_once(*arguments: Any) -> rnnjax.diagnose.Report:
        if not reports:
            reports.append(examine(*arguments))
        return reports[0]

    monkeypatch.setattr(rnnjax.diagnose, "examine", examine_once)
    seen = gradient_flow.run(gradient_flow.parse(words))
    assert picture.stat().st_size > 10_000
    assert list(seen) == ["Elman", "LSTM", "GRU", "linear"]
    for before, after in seen.values():
        assert before.gradient.shape == after.gradient.shape == (7,)
        assert after.error < before.error
    assert capsys.readouterr().out.count("training, error") == 8


@pytest.mark.slow
def test_streaming_writes_with_every_dtype_of_the_weights(capsys):
    """So many characters each; the weights' dtype changes the bits of a character by little."""
    corpus = text.Corpus(text.read_text(None)[:40_000])
    model = language_model.build(language_model.Plan(corpus.vocabulary))
    rows = streaming.compare(model, corpus, 20)
    written = capsys.readouterr().out
    assert list(rows) == list(streaming.STORED)
    for name, row in rows.items():
        assert len(written.partition(f"\n{name}: {streaming.PROMPT}")[2]) >= 20
        assert abs(row.bits_per_character - rows["float32"].bits_per_character) < 0.01
