"""The forms that a model is exported in, a file for each."""
