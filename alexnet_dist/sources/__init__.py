"""Sources of images: what lies on the Hub, in folders and archives, listed with labels before anything is decoded."""

from alexnet_dist.sources.listing import EncodedImages, Extents, Listing

__all__ = ["EncodedImages", "Extents", "Listing"]
