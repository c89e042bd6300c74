"""Verdicts as values, and how they are told: a report, its history, text and pictures."""
