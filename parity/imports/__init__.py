"""What ports write, in any language, read as one thing: an `Imported`, checkpoint by checkpoint."""
