"""Does it matter which units are re-initialised? Nine rules and more on five problems.

A *lane* is one network that learns: one seed under one setting of one rule. All lanes of a job are
trained side by side, the lane on the first axis of every tensor, by the same few calls of torch;
lanes never mix. `networks` holds them, `rules` decides what becomes of their units, `problems` and
`control` are what they learn, `tuning` gives every rule the same number of settings to choose from,
`table` writes down what came out, and ``python -m tests.benchmarks.plasticity`` runs it all.
"""
