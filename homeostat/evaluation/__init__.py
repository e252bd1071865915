"""How good an exported graph is: metrics with intervals, and paired comparison on the same rows."""
