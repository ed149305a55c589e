"""OpenAI's graders: what they are is in `training.params.graders`, what they say of an answer here."""
