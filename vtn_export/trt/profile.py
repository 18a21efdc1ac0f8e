"""Optimization profiles: MIN:OPT:MAX of every free axis of a graph, asked for or the bundle's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vtn_export.errors import ShapeError, UsageError
from vtn_export.spec import Array, GraphSpec, Part, Preprocessing

AXES = ("batch", "frames", "chunk")


@dataclass(frozen=True)
class Range:
    """Sizes of one axis: smallest, the one to optimise for, largest."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    def to_json(self) -> list[int]:
        return [self.min, self.opt, self.max]


Profile = Mapping[str, Range]  # axis name -> range
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]  # input -> min, opt, max


def parse(text: str, option: str) -> Range:
    """`MIN:OPT:MAX`, or one number for all three. Raises UsageError."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"{option}: got {text!r}, expected MIN:OPT:MAX (such as 1:16:32) or one number")
    low, best, high = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
    if not 1 <= low <= best <= high:
        raise UsageError(f"{option}: got {text}, expected 1 ≤ MIN ≤ OPT ≤ MAX")
    if high >= 1 << 31:
        raise UsageError(f"{option}: got {high}, expected less than 2³¹")
    return Range(low, best, high)


def axes_of(spec: GraphSpec) -> tuple[str, ...]:
    """The free axes of a graph's inputs, each once."""
    return tuple(dict.fromkeys(axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)))


def defaults(part: Part, preprocessing: Preprocessing) -> dict[str, Range]:
    """The profile of a part when nothing is asked: from the bundle's own frame specification.

    Wide enough for every golden sample, so that an engine can always be validated. The temporal
    part takes four times the frames of a video: a frame costs it a thousandth of what the backbone needs.
    """
    frames = preprocessing.num_frames
    if part == "backbone":
        return {"chunk": Range(1, 16, 32)}
    if part == "temporal":
        return {"batch": Range(1, 1, 4), "frames": Range(1, frames, max(4 * frames, 256))}
    return {"batch": Range(1, 1, 2), "frames": Range(1, frames, max(frames, 8))}


def profiles_for(
    part: Part, spec: GraphSpec, default: Mapping[str, Range], asked: Mapping[str, Sequence[str]]
) -> list[dict[str, Range]]:
    """The profiles of one part. asked: axis → what its option was given, once or once a profile.

    An option that the part has no axis for is left out (`unused_axes` refuses those no part has).
    Raises UsageError when options name different numbers of profiles.
    """
    ranges = {axis: [parse(text, f"--{axis}") for text in asked.get(axis, ())] for axis in axes_of(spec)}
    counts = {axis: len(found) for axis, found in ranges.items() if len(found) > 1}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"--{axis} {count} times" for axis, count in counts.items())
        raise UsageError(f"profiles: got {told}; give every option once, or once a profile")
    number = max(counts.values(), default=1)
    profiles = []
    for index in range(number):
        profile: dict[str, Range] = {}
        for axis, found in ranges.items():
            if found:
                profile[axis] = found[index if len(found) > 1 else 0]
            elif axis in default:
                profile[axis] = default[axis]
            else:
                raise UsageError(f"{part}: its axis {axis} has no profile; give --{axis} MIN:OPT:MAX")
        profiles.append(profile)
    return profiles


def check_used(specs: Mapping[Part, GraphSpec], asked: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError for an axis that none of the parts to build has."""
    have = dict.fromkeys(axis for spec in specs.values() for axis in axes_of(spec))
    for axis, values in asked.items():
        if values and axis not in have:
            parts = ", ".join(specs)
            raise UsageError(f"--{axis}: {parts} has no such axis; its axes are {', '.join(have)}")


def shapes(spec: GraphSpec, profile: Profile) -> Shapes:
    """Input shapes at the profile's three points. Raises UsageError for an axis without a range."""
    result: Shapes = {}
    for tensor in spec.inputs:
        for axis in tensor.shape:
            if isinstance(axis, str) and axis not in profile:
                raise UsageError(f"{tensor.name}: its axis {axis} has no profile; give --{axis} MIN:OPT:MAX")
        low, best, high = (
            tuple(getattr(profile[axis], point) if isinstance(axis, str) else axis for axis in tensor.shape)
            for point in ("min", "opt", "max")
        )
        result[tensor.name] = (low, best, high)
    return result


def max_frames(profile: Profile) -> int:
    """Frames in the largest call: the chunk, or batch · frames."""
    if "chunk" in profile:
        return profile["chunk"].max
    return profile["batch"].max * profile["frames"].max


def choose(spec: GraphSpec, profiles: Sequence[Profile], inputs: Mapping[str, Array], current: int = 0) -> int:
    """Index of the profile that takes these inputs: the current one if it does, else the one nearest its optimum.

    Raises ShapeError naming the axis and the ranges when none does.
    """
    sizes = axis_sizes(spec, inputs)
    fitting = [
        index
        for index, profile in enumerate(profiles)
        if all(profile[axis].min <= size <= profile[axis].max for axis, size in sizes.items())
    ]
    if current in fitting:
        return current
    if fitting:
        return min(fitting, key=lambda i: sum(abs(profiles[i][axis].opt - size) for axis, size in sizes.items()))
    for axis, size in sizes.items():
        ranges = sorted({(profile[axis].min, profile[axis].max) for profile in profiles})
        if not any(low <= size <= high for low, high in ranges):
            allowed = " or ".join(f"{low}..{high}" for low, high in ranges)
            raise ShapeError(f"{axis}: got {size}, the engine takes {allowed}; rebuild with --{axis} MIN:OPT:MAX")
    told = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    ranges_told = " or ".join("(" + ", ".join(f"{a} {r.min}..{r.max}" for a, r in p.items()) + ")" for p in profiles)
    raise ShapeError(f"shape: got {told}, which no profile of the engine takes together; it has {ranges_told}")


def axis_sizes(spec: GraphSpec, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Size of every free axis in a call's inputs."""
    return {
        axis: size
        for tensor in spec.inputs
        for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
        if isinstance(axis, str)
    }


def from_json(data: Mapping[str, Sequence[int]]) -> dict[str, Range]:
    """Read what a sidecar stores. Raises ValueError."""
    profile = {}
    for axis, values in data.items():
        low, best, high = (int(value) for value in values)
        profile[str(axis)] = Range(low, best, high)
    return profile
