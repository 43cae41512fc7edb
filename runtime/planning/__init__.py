"""What work costs here: calls, seconds and memory, said before it is done or measured after."""
