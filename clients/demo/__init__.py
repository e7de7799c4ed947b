"""`tritome demo`: one study from C-STORE to a SEG in a PACS, shown and checked."""
