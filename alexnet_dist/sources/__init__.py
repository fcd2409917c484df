"""Sources of images: what lies on the Hub, in folders and archives, listed with labels before anything is decoded."""

from alexnet_dist.sources.find import list_images
from alexnet_dist.sources.hub import HubUnreachableError
from alexnet_dist.sources.listing import ArrayImages, EncodedImages, Listing, SourceOptions

__all__ = ["ArrayImages", "EncodedImages", "HubUnreachableError", "Listing", "SourceOptions", "list_images"]
