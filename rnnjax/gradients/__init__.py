"""How it learns: estimators of the gradient, backward through time and forward along it."""
