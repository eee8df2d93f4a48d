"""Populations and what learns from their fitness."""
