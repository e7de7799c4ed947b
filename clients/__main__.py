"""`python -m clients` is `tritome`."""

from clients.cli import main

if __name__ == "__main__":
    main()
