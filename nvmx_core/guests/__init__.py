"""What L2 and L1 may do: L2's memory and tables, L1's script with its good manners."""
