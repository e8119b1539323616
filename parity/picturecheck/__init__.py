"""Faults that a picture shows, by itself or beside the picture as it should be."""

from parity.picturecheck.examine import examine as examine
