"""Local training: trainers, model states, data sets and their partition. Importing this loads no torch."""
