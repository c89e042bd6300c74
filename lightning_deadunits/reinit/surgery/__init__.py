"""Writes fresh and silent weights, verifies that nothing else changed, and takes back what did."""
