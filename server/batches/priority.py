"""Who waits for whom."""

BATCH_PRIORITY = 1 << 20
"""Of the requests of batches: everybody else goes first, but for who asks to come even later."""
