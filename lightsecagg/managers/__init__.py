"""Clock, threads and transport together, and only here: what turns the machines into a program."""
