"""The engine `Newton`, and what it is made of."""
