"""One module per command of `tritome`; each prints what its name does and sets the exit code."""
