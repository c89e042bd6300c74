"""Re-initialisation in the course of a Trainer: when, on what, on all processes, in all copies."""
