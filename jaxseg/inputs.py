"""What the inputs of `predict` stand for: images and videos, and the names of their results."""

import collections
import glob
import pathlib
from collections.abc import Mapping, Sequence

from jaxseg import outputs, video
from jaxseg.data.files import IMAGE_SUFFIXES
from jaxseg.errors import UserError

FILM = "_overlay.mp4"  # behind a video's name, the film of its frames' overlays


def find(
    inputs: Sequence[str], output: str, write: Sequence[str] = outputs.DEFAULT
) -> tuple[dict[str, pathlib.Path], dict[str, pathlib.Path]]:
    """The images and the videos that `inputs` stand for, by the name that their results get.

    Args:
      inputs: files, folders (searched with all sub-folders) and globs ('**' included).
      output: the folder of results; where it lies within a searched folder, it is left out.
      write: what will be written for each image, see `jaxseg.outputs`.

    Returns:
      Name -> path of the images and of the videos, sorted. The name has no suffix, and keeps the
      sub-folders below a given folder or below the part of a glob that has no wildcard.

    Raises:
      UserError: an input matches no image, or two files would be written under one name.
    """
    inside = pathlib.Path(output).resolve()
    found, seen = collections.defaultdict(list), set()
    for given in inputs:
        new = 0
        for path, root in _matches(given):
            real = path.resolve()
            if root.resolve() in inside.parents and inside in real.parents:
                continue  # a result of an earlier call
            new += 1
            if real in seen:
                continue
            seen.add(real)
            name = path.relative_to(root).with_suffix("").as_posix()
            found[name, video.is_video(path)].append(path)
        if not new:
            raise UserError(
                f"--input {given}: no image found. Expected a file, a folder or a glob in quotes; "
                "folders and globs are searched for "
                f"{' '.join((*IMAGE_SUFFIXES, *video.SUFFIXES))}"
            )
    _refuse_collisions(found, inside, write, seen)
    images, videos = (
        {name: paths[0] for (name, is_video), paths in sorted(found.items()) if is_video == kind}
        for kind in (False, True)
    )
    return images, videos


def _matches(given: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(path, the folder that its name is relative to) of one input."""
    path = pathlib.Path(given)
    if path.is_file():
        return [(path, path.parent)]
    if path.is_dir():
        root, candidates = path, sorted(path.rglob("*"))
    else:
        wild = (i for i, part in enumerate(path.parts) if any(c in part for c in "*?["))
        root = pathlib.Path(*path.parts[: next(wild, 0)])
        candidates = sorted(map(pathlib.Path, glob.glob(given, recursive=True)))
    return [
        (candidate, root)
        for candidate in candidates
        if (candidate.suffix.lower() in IMAGE_SUFFIXES or video.is_video(candidate))
        and not candidate.name.startswith(".")
        and candidate.is_file()
    ]


def _refuse_collisions(
    found: Mapping[str, list], output: pathlib.Path, write: Sequence[str], inputs: set
) -> None:
    """`found`: (name, is it a video) -> paths. `inputs`: all of them, resolved, as is `output`."""
    taken = inputs | {parent for path in inputs for parent in path.parents}
    writers = collections.defaultdict(list)
    for (name, is_video), paths in found.items():
        for result in _results(name, is_video, write):
            writers[output / result] += paths
    for result, paths in writers.items():
        # Frames are results below a folder of the video's name.
        above = [path for parent in result.parents for path in writers.get(parent, ())]
        if len(paths + above) > 1:
            one, other = (paths + above)[:2]
            hint = (
                ". If that is a result of an earlier call, give another folder as --output"
                if result in inputs
                else ""
            )
            raise UserError(
                f"{one} and {other} would both be written to {result}: rename one, give "
                f"the folder above both (sub-folders are kept), or use two --output folders{hint}"
            )
        if result in taken:
            raise UserError(
                f"{paths[0]}: its result would overwrite the input {result}; "
                "give another --output folder"
            )


def _results(name: str, is_video: bool, write: Sequence[str]) -> list[str]:
    """The files, relative to the output, that are written for one input; of frames the folder."""
    if not is_video:
        return [f"{name}{outputs.ENDINGS[key]}" for key in write if key in outputs.ENDINGS]
    of_frames = any(key in outputs.ENDINGS and key != "overlay" for key in write)
    return [f"{name}{FILM}"] * ("overlay" in write) + [name] * of_frames
