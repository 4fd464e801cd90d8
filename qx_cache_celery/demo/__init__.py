"""The demo: real workers are killed and frozen while orders are charged, plain beside idempotent."""
