"""The layers below the protocol machines, held against an oracle in plain Python integers."""
