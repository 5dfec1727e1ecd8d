"""The codec's speed, each figure as a ratio to a yardstick measured beside it."""
