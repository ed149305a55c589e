"""What tuners of our own put into a model; `inserted.load_inserted` loads it without a training."""
