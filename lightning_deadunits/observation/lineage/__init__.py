"""Follows units: which axes index them, which weights make them, on which way they came."""
