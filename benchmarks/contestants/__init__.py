"""The contestants of each case. Every peer's package is imported only in the process that measures it."""
