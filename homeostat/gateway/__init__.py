"""Webhooks in, events out: what may start a flow run from outside, and who is told of the ledger's decisions."""
