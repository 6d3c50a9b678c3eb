"""The benchmark of the main job's recipe: each part reaches the training, and its records become a table."""

import json
import sys

import jax
import jax.numpy as jnp
import language_model
import optax
import pytest

from benchmarks import regularisation

pytestmark = pytest.mark.usefixtures("as_it_comes")  # optax relies on JAX's own promotion of dtypes


def test_every_recipe_but_the_whole_lacks_parts():
    parts = language_model.RECIPE._asdict()
    for name, recipe in regularisation.RECIPES.items():
        left_out = {part for part in parts if getattr(recipe, part) == 0}
        expected = {"whole": set(), "none": set(parts)}
        assert left_out == expected.get(name, {name.removeprefix("without ").replace(" ", "_")})


def test_rates_reach_the_loss_and_weight_decay_the_matrices():
    recipe = language_model.Recipe(0.3, 0.4, 0.5)
    plan = language_model.Plan("ab")
    rates = language_model.loss(plan, recipe).keywords
    assert (rates["weight_dropout"], rates["output_dropout"]) == (0.3, 0.4)
    assert language_model.loss(plan._replace(cell="mingru"), recipe).keywords["weight_dropout"] == 0
    weights = {"matrix": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    update = language_model.optimiser(10, recipe)  # after the first step of the warm-up, whose rate is zero
    state = update.init(weights)
    for _ in range(2):
        updates, state = update.update(zeros, state, weights)
    assert updates["matrix"] == pytest.approx(-0.5 * language_model.LEARNING_RATE)
    assert optax.tree.norm(updates["bias"]) == 0


def test_records_are_kept_and_become_a_table(monkeypatch, tmp_path, capsys):
    bits = iter([1.6, 1.2, 1.7, 1.3, 1.75, 1.1])  # held out, training, run by run
    monkeypatch.setattr(regularisation, "fit", lambda *arguments, **_: arguments)
    monkeypatch.setattr(regularisation, "bits_per_character", lambda *_: next(bits))
    path = tmp_path / "records.json"
    for recipe, seeds in (("whole", ["0", "1"]), ("none", ["0"])):
        words = ["--recipes", recipe, "--seeds", *seeds, "--steps", "7", "--json", str(path)]
        monkeypatch.setattr(sys, "argv", ["regularisation", *words])
        regularisation.main()
    assert [(record["recipe"], record["seed"], record["steps"]) for record in json.loads(path.read_text())] == [
        ("whole", 0, 7),
        ("whole", 1, 7),
        ("none", 0, 7),
    ]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["regularisation", "--table", str(path)])
    regularisation.main()
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| whole | 1.650 (1.600 to 1.700) | 1.250 | 2 |",
        "| none | 1.750 | 1.100 | 1 |",
    ]
