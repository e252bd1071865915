"""Tables of the control store, and the triggers that keep the ledger append-only."""

from __future__ import annotations

from sqlalchemy import DDL, Boolean, Column, Float, Integer, MetaData, String, Table, Text, event, false

metadata = MetaData()

rollout = Table(
    "rollout",
    metadata,
    Column("model", String(255), primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("champion", Text),
    Column("challenger", Text),
    Column("previous", Text),
    Column("since", String(40), nullable=False),
    Column("mode", String(20), nullable=False),
    Column("weight", Float, nullable=False),
    # from here on: added to a control store that an older version made
    Column("step", Integer, nullable=False, server_default="0"),
    Column("step_since", String(40), nullable=False, server_default=""),
    Column("started", Integer, nullable=False, server_default="0"),
    Column("paused", Boolean, nullable=False, server_default=false()),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("model", String(255), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", String(40), nullable=False),
)

bundle = Table(
    "bundle",
    metadata,
    Column("model", String(255), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("ref", Text, nullable=False),
    Column("time", String(40), nullable=False),
)

# What each scheduled look at live traffic has found, and where the next one goes on.
window = Table(
    "window",
    metadata,
    Column("model", String(255), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("end", String(40), nullable=False),
    Column("found", Text, nullable=False),
    Column("state", Text, nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("time", String(40), nullable=False),
    Column("model", String(255), nullable=False, index=True),
    Column("action", String(40), nullable=False),
    Column("actor", String(255), nullable=False),
    Column("reason", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("version", Integer),
    Column("sha256", String(64)),
    Column("evidence", Text, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

# Webhooks that were believed: what they start, once, however often they come.
delivery = Table(
    "delivery",
    metadata,
    Column("source", String(32), primary_key=True),
    Column("key", String(1024), primary_key=True),
    Column("decision", String(32), nullable=False, unique=True),
    Column("time", String(40), nullable=False),
    Column("status", String(10), nullable=False, index=True),
    Column("deployment", String(500), nullable=False),
    Column("parameters", Text, nullable=False),
    Column("flow_run", String(40), nullable=False),
    Column("note", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Float, nullable=False),
)

# How far down the ledger each target of notices has been told.
notice = Table(
    "notice",
    metadata,
    Column("target", String(40), primary_key=True),
    Column("sequence", Integer, nullable=False),
)

# One row: the last link of the chain. Locking it orders all writers (PostgreSQL: FOR UPDATE; SQLite
# locks the file), and it betrays a ledger whose last entries were cut off.
head = Table(
    "head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", Integer, nullable=False),
    Column("time", String(40), nullable=False),
    Column("hash", String(64), nullable=False),
)


def _append_only(table: Table, dialect: str, *statements: str) -> None:
    for statement in statements:
        ddl = DDL(statement)  # type: ignore[no-untyped-call]
        event.listen(table, "after_create", ddl.execute_if(dialect=dialect))


_append_only(
    ledger,
    "sqlite",
    "CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
)
_append_only(
    ledger,
    "postgresql",
    "CREATE OR REPLACE FUNCTION ledger_append_only() RETURNS trigger AS "
    "'BEGIN RAISE EXCEPTION ''the ledger is append-only''; END' LANGUAGE plpgsql",
    "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger "
    "FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()",
)
