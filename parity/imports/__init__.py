"""What ports write, in any language, read as one thing: an `Imported`, checkpoint by checkpoint."""

from parity.imports.base import Imported, Reading
from parity.imports.opening import open_candidate

__all__ = ["Imported", "Reading", "open_candidate"]
