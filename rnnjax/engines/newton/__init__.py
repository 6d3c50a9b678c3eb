"""The engine `Newton` and its parts."""
