"""The catalogue: each historical bug is a subclass of the fixed L0 that replaces one decision."""
