"""The benchmarks: what they compare with is right, and what they print adds up."""
