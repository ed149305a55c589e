"""Keys of the tests' servers: one with every role, and one for each that is not for machines alone."""

FULL, ASK, TEACH, RULE = (f"{name}-0123456789abcdef" for name in ("full", "ask", "teach", "rule"))
SCRAPE = "scrape-0123456789abcdef"
"""A key for one that has the role `metrics`."""
KEYS = (FULL, f"infer:{ASK}", f"train:{TEACH}", f"admin:{RULE}")


def bearer(key: str) -> dict[str, str]:
    """The header that brings a key."""
    return {"authorization": f"Bearer {key}"}
