"""One suite of contracts over the catalogue: a new method is tested by being registered."""
