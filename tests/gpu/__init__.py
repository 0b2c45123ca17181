"""What only a GPU can show: `pytest -m gpu`; skipped where there is none."""
