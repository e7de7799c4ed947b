"""One module per step of the schema; never edited after a release."""
