"""What a model has written, read: reasoning, content and tool calls, piece by piece."""
