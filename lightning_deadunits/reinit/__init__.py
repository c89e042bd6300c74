"""Gives dead units a new life without disturbing what the network does."""
