"""What runs the steps of a training: transformers' trainer with our losses, and what a job adds to it."""
