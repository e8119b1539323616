"""A small byte-level BPE tokenizer and picture processor in the layout of Qwen-Image, made on the spot.

It is trained here, on the text below and on the prompt templates of diffusers' pipelines, with the normalisation,
the splitting and the special tokens of Qwen2's. The templates' words become one token each, as they are in the
published vocabulary: that is what the numbers of dropped prefix tokens, 34 and 64, rest on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
WORDS = 1024
# So often that all words of the templates are whole before anything else is merged.
TEMPLATE_WEIGHT = 200

CORPUS = """
A red fox sits in fresh snow at the edge of a pine forest, looking at the camera. Soft morning light, long shadows.
An old lighthouse on a rocky coast at sunset, waves breaking below it, warm orange and deep blue, oil on canvas.
A bowl of ripe oranges beside a window with white curtains, photographed from above on a wooden table.
Portrait of an elderly woman with silver hair, laughing, black and white, sharp focus on the eyes, blurred background.
A shop sign that reads "FRESH BREAD" in golden letters, brick wall, rain on the street, reflections of neon lights.
Two children are building a sandcastle on the beach while a dog runs after a yellow ball into the water.
An isometric drawing of a small city with trees, houses, a railway station and a bridge over the river.
The astronaut's helmet shows the earth; behind it there are stars, a broken satellite and the dark side of the moon.
A page of a comic book with four panels: a robot wakes up, finds a flower, waters it, and falls asleep again.
Change the colour of the car to dark green, keep everything else as it is, and remove the person on the left.
Replace the sky with heavy clouds. Add a small wooden boat to the lake in the foreground of the second picture.
Make the letters on the poster bigger and write them in blue, with a thin white outline and a slight shadow.
Turn this photograph into a watercolour painting with visible paper texture and very few, broad brush strokes.
Put the hat from picture 2 on the head of the man in picture 1, and let the light come from the right side.
Low quality, blurry, distorted hands, extra fingers, bad proportions, watermark, signature, cropped, out of frame.
Ultra HD, 4K, cinematic composition. High detail, natural skin, professional photograph, shallow depth of field.
一只橘色的猫坐在窗台上，窗外下着大雨，房间里有温暖的灯光。一位老人在公园里打太极，背景是高楼和晨雾。
一张电影海报，标题写着“春天的故事”，画面中央有一棵开花的树。把背景换成海边的日落，保持人物不变。
超清，4K，电影级构图。水墨画风格的山水，近处有小船，远处有云海。牌子上写着“欢迎光临”，旁边有一只小狗。
赤い橋の上に立つ女の子、背景は山と湖。Eine alte Stadt im Nebel, Straßen aus Stein, ein Café mit roten Stühlen.
Un marché aux fleurs très tôt le matin, des tulipes, des roses, et un chat noir. Красный трактор стоит в поле у леса.
"""


def train() -> Qwen2Tokenizer:
    """The tokenizer: 256 bytes, merges up to `WORDS`, then the special tokens."""
    # A Qwen2Tokenizer without a vocabulary has the normaliser and the splitting already.
    splitting = Qwen2Tokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = splitting.normalizer, splitting.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    learner.train_from_iterator(CORPUS.strip().splitlines() + _templates() * TEMPLATE_WEIGHT, trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131072,
    )
    missing = [token for token in SPECIAL if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True)
    return tokenizer


def _templates() -> list[str]:
    """The words of the pipelines' templates, without special tokens, as often as a prompt has them."""
    pipelines = (
        QwenImagePipeline(None, None, None, None, None),
        QwenImageEditPipeline(None, None, None, None, None, None),
        QwenImageEditPlusPipeline(None, None, None, None, None, None),
    )
    texts = [pipeline.prompt_template_encode.format("") for pipeline in pipelines] + ["Picture 1: "]
    for token in SPECIAL:
        texts = [text.replace(token, " \n") for text in texts]
    return texts


def write_tokenizer(folder: Path, tokenizer: Qwen2Tokenizer) -> None:
    """Files of ``tokenizer/`` as transformers writes them."""
    tokenizer.save_pretrained(folder)


def write_processor(folder: Path, tokenizer: Qwen2Tokenizer, vision: dict[str, Any]) -> None:
    """Files of ``processor/`` as the editing models have them: tokenizer, pictures, videos.

    Args:
        vision: patch_size, temporal_patch_size and spatial_merge_size of the vision tower.
    """
    tokenizer.save_pretrained(folder)
    pictures = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
        "merge_size": vision["spatial_merge_size"], "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"], "resample": 3, "rescale_factor": 1 / 255,
        "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n")
    videos = {k: v for k, v in pictures.items() if k != "image_processor_type"}
    videos |= {"video_processor_type": "Qwen2VLVideoProcessor", "min_frames": 4, "max_frames": 768}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos, indent=2) + "\n")
