"""What is learned, and the loop that learns it."""
