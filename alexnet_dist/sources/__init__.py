"""Sources of images: what lies on the Hub, in folders and archives, listed with labels before anything is decoded."""

from alexnet_dist.sources.find import cache_place, hub_id, is_folder, is_local, list_images
from alexnet_dist.sources.hub import HubUnreachableError
from alexnet_dist.sources.listing import ArrayImages, EncodedImages, Extents, Listing, SourceOptions

__all__ = [
    "ArrayImages",
    "EncodedImages",
    "Extents",
    "HubUnreachableError",
    "Listing",
    "SourceOptions",
    "cache_place",
    "hub_id",
    "is_folder",
    "is_local",
    "list_images",
]
