"""Ports for servers of other programs, which are told theirs before they listen."""

import random
import socket

RESERVED = range(20000, 32000)
"""Below those that the system gives to connections, of which any could have one before it is listened on."""


def free_port(host: str = "127.0.0.1") -> int:
    chance = random.SystemRandom()
    while True:
        port = chance.choice(RESERVED)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
