"""AlexNet's facts are torchvision's."""

import torch
import torchvision

from alexnet_dist import architecture


def shapes(num_classes):
    with torch.device("meta"):
        network = torchvision.models.alexnet(num_classes=num_classes)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def test_keys_and_sizes_are_those_of_the_network():
    found = shapes(10)
    assert found[f"{architecture.HEAD}.weight"] == (10, 4096)
    assert [found[key] for key in architecture.SHOWN_LAYERS.values()] == [(64, 3, 11, 11), (192, 64, 5, 5)]
    assert architecture.NUM_CONV2_KERNELS == 192
    assert sum(torch.Size(shape).numel() for shape in found.values()) == architecture.NUM_PARAMETERS


def test_imagenets_facts_are_those_of_the_published_weights():
    published = torchvision.models.AlexNet_Weights.IMAGENET1K_V1
    assert len(published.meta["categories"]) == architecture.IMAGENET_CLASSES
    assert published.meta["min_size"] == (architecture.SMALLEST_IMAGE,) * 2
    transforms = published.transforms()
    assert (transforms.mean, transforms.std) == ([*architecture.IMAGENET_MEAN], [*architecture.IMAGENET_STD])
