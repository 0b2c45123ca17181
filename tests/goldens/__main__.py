"""Write the reference values beside this file."""

from tests.goldens.store import derive_all, write

if __name__ == "__main__":
    write(derive_all())
