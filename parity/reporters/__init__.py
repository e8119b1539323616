"""What a run looks like in a terminal or in a comment; pages and plots are made elsewhere."""
