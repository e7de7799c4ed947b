"""What a person types: the `tritome` command, its senders and its demo."""
