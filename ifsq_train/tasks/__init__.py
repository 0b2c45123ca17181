"""What one step computes, one file per family; the loop itself is in train.py."""
