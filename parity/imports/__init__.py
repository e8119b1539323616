"""What ports write, in any language, read as one thing: an `Imported`, checkpoint by checkpoint.

`parity.imports.opening.open_candidate` opens it.
"""
