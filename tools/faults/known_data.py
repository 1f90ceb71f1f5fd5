"""Faults of known_data.py."""

from faults.row import fault

FAULTS = [
    fault(
        "known_data.py",
        "versions recognised by their count, whatever their levels",
        "(known.shape, known.items, known.levels) == (tuple(shape), items, levels)",
        "(known.shape, known.items) == (tuple(shape), items)",
        "test_known_data.py::test_the_two_versions_of_imagenet_are_told_apart_by_their_count",
    ),
    fault(
        "known_data.py",
        "the counts of the two versions of ImageNet swapped",
        'for split, items in (("validation", 49_999), ("train", 1_281_149))',
        'for split, items in (("validation", 50_000), ("train", 1_281_149))',
        "test_known_data.py::test_the_two_versions_of_imagenet_are_told_apart_by_their_count",
    ),
    fault(
        "known_data.py",
        "files recognised by their names",
        "next((one for one in FILES if one.md5 ==",
        "next((one for one in named if one.md5 !=",
        "test_known_data.py::test_files_are_recognised_by_their_content",
    ),
]
