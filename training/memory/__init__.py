"""What a training takes of a device's memory, told before it: its own step, done with tensors that have no memory."""
