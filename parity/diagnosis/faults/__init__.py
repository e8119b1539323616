"""The entries of the catalogue, one module a subject; see `parity.diagnosis.fault`."""
