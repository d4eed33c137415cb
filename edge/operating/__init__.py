"""What a person does with a device besides letting it run: check it, record with it, score a file on it."""
