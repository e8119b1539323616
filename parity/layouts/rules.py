"""Rename rules between canonical names and those of a layout, usable in both directions, and what tells layouts apart.

A rule is a pair (canonical, stored) of dotted parts of a name; fields in braces stand for what both have in common.
A group of rules applies its first match; the groups of a layout apply one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from parity.errors import WeightsError
from parity.safetensors_header import shown

Group = tuple[tuple[str, str], ...]

DIFFUSERS, MFLUX, MLX_RS, SINGLE = "diffusers", "mflux", "mlx-rs", "single"
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
# Other components in an all-in-one file.
FOREIGN = ("vae.", "text_encoders.", "text_encoder.", "first_stage_model.", "cond_stage_model.", "conditioner.")
# ComfyUI's mark of Qwen-Image-Edit-2511, whose condition tokens see a timestep of 0.
ZERO_COND_MARK = "__index_timestep_zero__"
# Tables that a port derives from the config and MLX saves with the parameters.
DERIVED = re.compile(r"(.*\.)?(rotary_emb|rotary_pos_emb|pos_embed)\.(inv_freq|pos_freqs|neg_freqs)")

_FIELDS = {
    "n": r"\d+", "s": "img|txt", "leaf": "weight|bias", "norm": "norm[12]?|norm_out",
    "conv": r"conv_in|conv_out|conv[12]|skip_conv|time_conv|quant_conv|post_quant_conv",
}  # fmt: skip

_TRANSFORMER: tuple[Group, ...] = (
    (
        ("attn.to_out.0", "attn.attn_to_out.0"),
        ("{s}_mod.1", "{s}_mod_linear"),
        ("{s}_mlp.net.0.proj", "{s}_ff.mlp_in"),
        ("{s}_mlp.net.2", "{s}_ff.mlp_out"),
    ),
)
_SHORT_TIME: Group = (("time_text_embed.timestep_embedder.linear_{n}", "time_text_embed.linear_{n}"),)
_VAE: tuple[Group, ...] = (
    (("up_blocks.{n}", "up_block{n}"),),
    (("conv_shortcut", "skip_conv"), ("resample.1", "resample_conv"), ("{norm}.gamma", "{norm}.weight")),
    (("{conv}.{leaf}", "{conv}.conv3d.{leaf}"),),
)
_TEXT: tuple[Group, ...] = (
    (("merger.mlp.0", "merger.mlp_0"), ("merger.mlp.2", "merger.mlp_1")),
    (("^visual", "^encoder.visual"), ("^model", "^encoder")),
)
# What transformers holds in memory, and some tools write; its own files have the canonical names.
_TEXT_IN_MEMORY: tuple[Group, ...] = ((("^visual", "^model.visual"), ("^model", "^model.language_model")),)

_EVIDENCE = {
    "transformer": {
        DIFFUSERS: r"\.(img|txt)_(mod\.1|mlp\.net)\.|\.attn\.to_out\.",
        MFLUX: r"\.(img|txt)_(mod_linear|ff)\.|\.attn_to_out\.",
        MLX_RS: r"\.inner\.|^time_text_embed\.linear_",
    },
    "vae": {
        DIFFUSERS: r"\.gamma$|\.up_blocks\.|\.conv_shortcut\.|\.resample\.1\.",
        MFLUX: r"\.conv3d\.|\.up_block\d|\.skip_conv\.|\.resample_conv\.",
    },
    "text_encoder": {DIFFUSERS: r"^(model|visual)\.", MFLUX: r"^encoder\."},
}


def split_prefix(names: Iterable[str]) -> str:
    """The prefix of a single file's keys; empty where none has one."""
    names = list(names)
    return next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in names)), "")


def detect(names: Iterable[str], component: str) -> str:
    """The layout that names without prefix speak for; `DIFFUSERS` where none is telling.

    Raises:
        WeightsError: some speak for one layout and some for another; two are shown.
    """
    first: dict[str, str] = {}
    patterns = {layout: re.compile(pattern) for layout, pattern in _EVIDENCE[component].items()}
    for name in names:
        for layout, pattern in patterns.items():
            if layout not in first and pattern.search(name):
                first[layout] = name
    other = MFLUX if MFLUX in first else MLX_RS
    if DIFFUSERS in first and other in first:
        raise WeightsError(
            f"mixed layouts: {shown(first[DIFFUSERS])} is a name of diffusers, {shown(first[other])} one of {other}; "
            "keep the files of one layout"
        )
    return next((layout for layout in (MLX_RS, MFLUX) if layout in first), DIFFUSERS)


def down_blocks(residuals: int, stages: int = 4) -> Group:
    """Rules for the VAE's encoder, whose blocks diffusers counts through and MLX ports by stage.

    Args:
        residuals: residual blocks in a stage.
        stages: number of stages.
    """
    rules = []
    for stage in range(stages):
        flat = stage * (residuals + 1)
        stored = f"encoder.down_blocks.{stage}"
        rules += [(f"encoder.down_blocks.{flat + r}", f"{stored}.resnets.{r}") for r in range(residuals)]
        rules.append((f"encoder.down_blocks.{flat + residuals}", f"{stored}.downsamplers.0"))
    return tuple(rules)


@lru_cache(maxsize=32)
def rules_of(layout: str, component: str, residuals: int = 2) -> tuple[Group, ...]:
    """The rename rules of a layout, in the order from canonical to stored; empty where names are canonical.

    Args:
        layout: as `detect` gives it.
        component: ``transformer``, ``vae`` or ``text_encoder``.
        residuals: residual blocks in a stage of the VAE.
    """
    if layout in (DIFFUSERS, SINGLE):
        return ()
    if component == "vae":
        return (*_VAE, down_blocks(residuals))
    if component == "text_encoder":
        return _TEXT
    return (*_TRANSFORMER, _SHORT_TIME) if layout == MLX_RS else _TRANSFORMER


def reading_rules(layout: str, component: str, residuals: int = 2) -> tuple[Group, ...]:
    """`rules_of` a layout, and what else is understood when its names are read."""
    if component == "text_encoder" and layout == DIFFUSERS:
        return _TEXT_IN_MEMORY
    return rules_of(layout, component, residuals)


def to_canonical(name: str, groups: Sequence[Group]) -> str:
    """The canonical name of a stored one."""
    name = re.sub(r"\.inner\.(weight|bias)$", r".\1", name)
    for group in reversed(groups):
        name = _first_match(name, group, 1)
    return name


def to_stored(name: str, groups: Sequence[Group], packed: bool = False) -> str:
    """The name of a canonical one in a layout.

    Args:
        name: canonical.
        groups: the layout's rules.
        packed: put ``.inner.`` before the last part, as mlx-rs names what is in a quantized layer.
    """
    for group in groups:
        name = _first_match(name, group, 0)
    return re.sub(r"\.(weight|bias)$", r".inner.\1", name) if packed else name


def _first_match(name: str, group: Group, source: int) -> str:
    for rule in group:
        pattern, template = _compiled(rule[source], rule[1 - source])
        found = pattern.search(name)
        if found:
            return name[: found.start()] + found.expand(template) + name[found.end() :]
    return name


@cache
def _compiled(source: str, target: str) -> tuple[re.Pattern[str], str]:
    """Pattern of whole dotted parts, and the template of what replaces them."""
    start = "^" if source.startswith("^") else r"(?:^|(?<=\.))"
    body = re.sub(r"\\\{(\w+)\\\}", lambda field: f"(?P<{field[1]}>{_FIELDS[field[1]]})", re.escape(source.lstrip("^")))
    template = re.sub(r"\{(\w+)\}", r"\\g<\1>", target.lstrip("^"))
    return re.compile(rf"{start}{body}(?=\.|$)"), template
