"""The tests of optkit."""
