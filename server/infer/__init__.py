"""`tuneserve infer`: a data set answered, or a person at the terminal, by the functions behind the routes."""
