"""What runs the steps of a training: transformers' trainer and TRL's, with what a job adds to them."""
