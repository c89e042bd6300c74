"""Which weights make a unit and which read it, by intervention on replays of what was recorded."""
