"""Writing a token reads the whole model once, so a machine's memory bandwidth bounds its speed."""

#: Gigabytes (10^9 bytes) a second, as published by the makers.
APPLE = {
    "m1": 68, "m1 pro": 200, "m1 max": 400, "m1 ultra": 800,
    "m2": 100, "m2 pro": 200, "m2 max": 400, "m2 ultra": 800,
    "m3": 100, "m3 pro": 150, "m3 max": 400, "m3 ultra": 819,
    "m4": 120, "m4 pro": 273, "m4 max": 546,
}  # fmt: skip

NVIDIA = {
    "h100": 3350, "a100": 2039, "l40": 864,
    "rtx 5090": 1792, "rtx 4090": 1008, "rtx 4080": 716,
    "rtx 3090": 936, "rtx 3080": 760, "rtx 3070": 448,
    "rtx 2080": 616, "rtx 2070": 448,
}  # fmt: skip


def bandwidth_gbps(chip: str) -> float:
    """Return the bandwidth of the fastest part that the chip's name mentions; 0 where none is known."""
    name = " ".join(chip.lower().split())
    apple = APPLE.get(name.removeprefix("apple ")) if name.startswith("apple ") else None
    if apple is not None:
        return float(apple)
    # Cards for laptops bear the names of faster ones.
    parts = [part for part in name.split(" + ") if "laptop" not in part and "mobile" not in part]
    return float(max((speed for card, speed in NVIDIA.items() if any(card in part for part in parts)), default=0))
