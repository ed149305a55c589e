"""What all tables share: they are declared beside the code that uses them, on this metadata."""

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text

METADATA = MetaData()

Number = BigInteger().with_variant(Integer, "sqlite")
"""An integer of 64 bits that counts up by itself as a primary key: rows are listed in the order in which they came."""

OWNERS = Table(
    "owners",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("token", Text, nullable=False),
)
"""`database`: what tells this database from every other. `server`: which run of which server may write; see
`ownership.py`."""
