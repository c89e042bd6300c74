"""Runs a model on an example, and meets every activation and every call with weights."""
