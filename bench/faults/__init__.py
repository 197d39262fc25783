"""How many faults an archive survives."""
