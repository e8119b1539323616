"""Products of a shorter mantissa than the run's dtype has: TF32 and the like, in every linear layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from parity.diagnosis.arithmetic import rounded
from parity.diagnosis.fault import fault
from parity.diagnosis.place import Array, Place, Variants
from parity.diagnosis.referee import shorter

_MANTISSAS: dict[str, Callable[[Array], Array]] = {
    # bits behind the point that tensor cores take of a factor
    "TF32": shorter(10, truncate=False),
    "TF32, cut off": shorter(10, truncate=True),
    "bfloat16": partial(rounded, dtype="bfloat16"),
    "float16": partial(rounded, dtype="float16"),
}


def _bias_after(p: Place, short: Callable[[Array], Array]) -> Callable[[Array, str], Array]:
    """A linear layer whose product is made and rounded in a short dtype, and whose bias is added in the run's."""

    def linear(x: Array, layer: str) -> Array:
        bias = p.bias(layer)
        product = short(short(x) @ short(p.weight(f"{layer}.weight")).T)
        return product if bias is None else product + bias

    return linear


@fault(
    "backend.precision_mode", component="*", title="products are made of shorter mantissas than the dtype has",
    fix="MLX_ENABLE_TF32=0, or torch.backends.cuda.matmul.allow_tf32 = False; do not cast inputs of products down",
    seen="mlx#3860",
)  # fmt: skip
def precision_mode(p: Place) -> Variants:
    """Inputs and weights of the linear layers rounded, alone and with attention's; inputs alone; and results."""
    if not p.layers():
        return
    for said, short in _MANTISSAS.items():

        def linear(x: Array, layer: str, short: Callable[[Array], Array] = short) -> Array:
            q = p.changed(weight=lambda key: short(p.weight(key)) if key.endswith(".weight") else p.weight(key))
            return q.linear(short(x), layer)

        yield f"inputs of products in {said}", p.changed(linear=linear)
        yield (
            f"activations cast to {said} before products, weights not",
            p.changed(linear=lambda x, layer, short=short: p.linear(short(x), layer)),
        )
        if hasattr(p, "attend") and p.kind == "attn":

            def attend(q: Array, k: Array, v: Array, short: Callable[[Array], Array] = short) -> Array:
                return p.attend(short(q), short(k), short(v))

            yield f"inputs of products and of attention in {said}", p.changed(linear=linear, attend=attend)
        yield (
            f"products rounded to {said}",
            p.changed(linear=lambda x, layer, short=short: short(p.linear(x, layer))),
        )
        yield f"products in {said}", p.changed(linear=lambda x, layer, f=linear, short=short: short(f(x, layer)))
        yield f"products without their bias in {said}", p.changed(linear=_bias_after(p, short))
