"""What LightSecAgg is compared with: SecAgg and SecAgg+ in memory, each party's work by itself."""
