"""The control store: one rollout row per model, changed by compare-and-set, and the hash-chained decision ledger."""
