"""The network's input in one CUDA kernel, written in Triton: the images of `inputs.Inputs`, to the bit.

Bytes of a batch of 512 images of 32 pixels, in bf16 at 224 with conv1's margin: the kernel reads 1.6 MB and writes
160 MB, each value once; at the 4.8 TB/s of an H200 that would be 0.03 ms. Torch's operations, which it replaces, read
and write 7 GB. Both are counted, not timed: not measured on a GPU. Tests run it by Triton's interpreter, on a CPU.
"""

import torch
import triton
import triton.language as tl

from alexnet_dist.data import augment, resize

BLOCK = 1024  # values that a program writes
HALF = tl.constexpr(1 << (resize.FRACTION_BITS - 1))
BITS = tl.constexpr(resize.FRACTION_BITS)
WHOLE = tl.constexpr(augment.WHOLE)


def fill(
    inputs: torch.Tensor,
    images: torch.Tensor,
    shift: torch.Tensor,
    std: torch.Tensor,
    *,
    before: int,
    size: int,
    drawn: augment.Drawn | None = None,
    block: int = BLOCK,
) -> None:
    """Write the network's input, its margin's zeros too.

    Args:
        inputs: (B, 3, P, P) float32, bfloat16 or float16, channels_last; written to.
        images: (B, 3, S, S) uint8, in any order of memory.
        shift: (B, 3) or (1, 3) float32, on the scale of stored images; subtracted.
        std: (3,) float32 on the same scale; divided by.
        before: zeros before the image along both axes.
        size: side of the enlarged image.
        drawn: augmentation; None for none.
        block: values that a program writes.
    """
    side, padded = images.shape[-1], inputs.shape[-1]
    table, ids, partners, partner_ids = shift, shift, images, shift  # which are not read
    padding = cutout = color = 0
    if drawn is not None:
        settings, table, ids = drawn[:3]
        padding = augment.max_shift(side) if settings.crops else 0
        cutout, color = round(settings.cutout * settings.source_size), int.from_bytes(settings.fill, "big")
        if drawn.partners is not None and drawn.partner_ids is not None:
            partners, partner_ids = drawn.partners, drawn.partner_ids
    is_bf16 = inputs.dtype == torch.bfloat16
    constants = {"SIDE": side, "SIZE": size, "PADDED": padded, "BEFORE": before, "BLOCK": block, "IS_BF16": is_bf16}
    _fill[len(images), triton.cdiv(3 * padded * padded, block)](
        inputs.view(torch.int16) if is_bf16 else inputs,
        (images, *images.stride()),
        (partners, *partners.stride()),
        (table, table.stride(0)),
        ids,
        partner_ids,
        resize.taps(side, size, images.device),
        (shift, shift.stride(0) if len(shift) > 1 else 0),
        std,
        **constants,
        AUGMENTED=drawn is not None,
        MIXED=partners is not images,
        PADDING=padding,
        CUTOUT=cutout,
        FILL=color,
    )


# ---- the kernel, whose arguments Triton does without types. A tensor comes with its strides, as a tuple. ------------


@triton.jit
def _pixels(
    stored, image, row, column, channel, draws, SIDE: tl.constexpr, AUGMENTED: tl.constexpr, PADDING: tl.constexpr,
    CUTOUT: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """Return augmented pixels of an image, int32: cropped with reflected borders, flipped, filled by the cutout."""
    from_row, from_column = row, column
    if AUGMENTED:
        from_column = tl.where(tl.load(draws + 2) == 1, SIDE - 1 - column, column)
        if PADDING > 0:
            from_row = SIDE - 1 - tl.abs(SIDE - 1 - tl.abs(row + tl.load(draws) - PADDING))
            from_column = SIDE - 1 - tl.abs(SIDE - 1 - tl.abs(from_column + tl.load(draws + 1) - PADDING))
    places = image * stored[1] + channel * stored[2] + from_row * stored[3] + from_column * stored[4]
    pixels = tl.load(stored[0] + places).to(tl.int32)
    if CUTOUT > 0:
        top, left = tl.load(draws + 3) - CUTOUT // 2, tl.load(draws + 4) - CUTOUT // 2
        inside = (row >= top) & (row < top + CUTOUT) & (column >= left) & (column < left + CUTOUT)
        pixels = tl.where(inside, (FILL >> (16 - 8 * channel)) & 255, pixels)
    return pixels


@triton.jit
def _mixed(
    stored, partners, image, row, column, channel, draws, partner_draws, SIDE: tl.constexpr,
    AUGMENTED: tl.constexpr, MIXED: tl.constexpr, PADDING: tl.constexpr, CUTOUT: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """Return augmented pixels of an image, int32, mixed with those of its partner."""
    pixels = _pixels(stored, image, row, column, channel, draws, SIDE, AUGMENTED, PADDING, CUTOUT, FILL)
    if MIXED:
        others = _pixels(partners, image, row, column, channel, partner_draws, SIDE, AUGMENTED, PADDING, CUTOUT, FILL)
        top, bottom, left, right = tl.load(draws + 5), tl.load(draws + 6), tl.load(draws + 7), tl.load(draws + 8)
        inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        share = tl.load(draws + 9)
        blend = (pixels * share + others * (WHOLE - share) + WHOLE // 2) >> 16
        has_box = (top < bottom) & (left < right)  # boxes are cut at the border
        pixels = tl.where(has_box, tl.where(inside, others, pixels), blend)
    return pixels


@triton.jit
def _fill(
    inputs, stored, partners, table, ids, partner_ids, taps, shift, std, SIDE: tl.constexpr, SIZE: tl.constexpr,
    PADDED: tl.constexpr, BEFORE: tl.constexpr, BLOCK: tl.constexpr, IS_BF16: tl.constexpr, AUGMENTED: tl.constexpr,
    MIXED: tl.constexpr, PADDING: tl.constexpr, CUTOUT: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """Write a block of an image's values, which lie by row, column and channel. Each is made of 2 x 2 pixels."""
    image = tl.program_id(0).to(tl.int64)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, y, x = value % 3, value // 3 // PADDED - BEFORE, value // 3 % PADDED - BEFORE
    is_image = (y >= 0) & (y < SIZE) & (x >= 0) & (x < SIZE)
    y, x = tl.where(is_image, y, 0), tl.where(is_image, x, 0)
    draws, partner_draws = table[0], table[0]
    if AUGMENTED:
        draws += tl.load(ids + image) * table[1]
    if MIXED:
        partner_draws += tl.load(partner_ids + image) * table[1]

    # ---- Pillow's two passes in fixed point: along the upper and the lower row, then between them
    total = tl.full((BLOCK,), HALF, tl.int32)
    for lower in tl.static_range(2):
        row, row_weight = tl.load(taps[lower] + y).to(tl.int32), tl.load(taps[2 + lower] + y)
        sums = tl.full((BLOCK,), HALF, tl.int32)
        for right in tl.static_range(2):
            column, weight = tl.load(taps[right] + x).to(tl.int32), tl.load(taps[2 + right] + x)
            pixels = _mixed(
                stored, partners, image, row, column, channel, draws, partner_draws, SIDE, AUGMENTED, MIXED, PADDING,
                CUTOUT, FILL,
            )  # fmt: skip
            sums += pixels * weight
        total += (sums >> BITS) * row_weight

    # ---- normalised in float32, with torch's rounding of quotients
    centred = (total >> BITS).to(tl.float32) - tl.load(shift[0] + image * shift[1] + channel)
    result = tl.where(is_image, tl.div_rn(centred, tl.load(std + channel)), 0.0)
    if IS_BF16:  # to the nearest, ties to even, by hand: Triton's interpreter rounds ties up
        bits = result.to(tl.int32, bitcast=True)
        result = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    places = image * (3 * PADDED * PADDED) + value
    tl.store(inputs + places, result.to(inputs.dtype.element_ty), mask=value < 3 * PADDED * PADDED)
