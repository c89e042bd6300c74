"""Sees every activation of a forward pass: its name, its unit axis, its values."""
