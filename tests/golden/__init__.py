"""Replay of what the official implementations computed."""
