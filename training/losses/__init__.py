"""What is learned from a forward pass: small functions of tensors, each with its paper. No trainer, no data."""
