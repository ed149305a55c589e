"""EvalScope (Alibaba, Apache-2.0), in an environment of its own: it asks a server, and scores what comes."""
