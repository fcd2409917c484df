"""The model card: what a network is, what it claims, and code that uses it with torchvision alone."""

from pathlib import Path
from typing import Any

from alexnet_dist.data import InputSpec, crops

TEMPLATE = Path(__file__).with_name("model_card.md")
FIT = {
    "enlarge": """\
side = min(image.shape[1:])
top, left = ((length - side) // 2 for length in image.shape[1:])
image = image[:, top : top + side, left : left + side]
image = F.resize(image, [{stored_size}, {stored_size}], antialias=True)
image = F.to_pil_image(image).resize(({image_size}, {image_size}), Image.Resampling.BILINEAR)
image = F.pil_to_tensor(image)""",
    "shrink": """\
if min(image.shape[1:]) > {stored_size}:
    image = F.resize(image, [{stored_size}], antialias=True)
""",
    "crop": """\
image = F.resize(image, [{short_side}], antialias=True)
image = F.center_crop(image, [{image_size}, {image_size}])""",
}
"""Code that makes a picture, (3, H, W) uint8, an image of the input's size, as `InputSpec.fitted` and `Inputs` do."""


def card(metadata: dict[str, Any], *, repository: str | None = None, revision: str | None = None) -> str:
    """Return a card in Markdown, without YAML front matter.

    Args:
        metadata: of the network file.
        repository: `owner/name` of the model on the Hub; None where the file lies beside the card.
        revision: branch of the repository; None for main.

    Raises:
        KeyError, TypeError, UserError: the metadata are incomplete.
    """
    spec = InputSpec.from_json(metadata["input"])
    code = (FIT["shrink"] if spec.fit == "crop" and spec.stored_size else "") + FIT[spec.fit]
    short_side = round(spec.image_size * crops.SHORT_SIDE)
    branch = f", revision={revision!r}" if revision else ""
    download = f'huggingface_hub.hf_hub_download("{repository}", "model.safetensors"{branch})'
    return TEMPLATE.read_text(encoding="utf-8").format(
        **metadata["data"],
        **metadata["training"],
        num_classes=len(metadata["class_names"]),
        version=metadata["versions"]["alexnet_dist"],
        top1=top1_words(metadata["result"]),
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        fit=code.format(stored_size=spec.stored_size, image_size=spec.image_size, short_side=short_side),
        imports="import huggingface_hub\nimport " if repository else "import ",
        file=download if repository else '"model.safetensors"',
    )


def top1_words(result: dict[str, Any] | None) -> str:
    """Return the accuracy that a network file claims, in words."""
    if result is None:
        return "not measured"
    correct, total = result["correct"], result["total"]
    return f"{correct / total:.2%} ({correct:,} right of {total:,})"
