"""What a Trainer's hooks do: one body for ``lightning.pytorch`` and ``pytorch_lightning``."""
