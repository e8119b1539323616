"""From a divergence to a cause that is proven: local checks, counterfactuals, fingerprints.

Everything is computed in float64 with numpy. A *recipe* says how the reference makes a checkpoint from
its parents; a checkpoint of the candidate is locally wrong where it is not what the recipe makes of the
candidate's own parents. A *fault* is a small change to a recipe; one whose prediction meets the
candidate down to the reference's own rounding is the cause.
"""
