"""Make vtn_export/data/clip.mp4: 3 s of Big Buck Bunny. See the README beside it.

python -m tests.video.make_clip path/to/bigbuckbunny.mp4 vtn_export/data/clip.mp4
"""

from __future__ import annotations

import sys
from fractions import Fraction

import av

FIRST, COUNT, WIDTH, HEIGHT, RATE = 40, 75, 480, 270, 25


def make_clip(source: str, target: str) -> None:
    """Frames FIRST..FIRST + COUNT - 1 of `source`, scaled to WIDTH × HEIGHT, H.264, no sound."""
    with (
        av.open(source) as movie,
        av.open(target, "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as clip,
    ):
        stream = clip.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        # one thread: the same bytes on every machine; a key frame a second
        stream.options = {"crf": "26", "preset": "veryslow", "threads": "1", "g": str(RATE), "profile": "main"}
        clip.metadata["title"] = "Big Buck Bunny (excerpt)"
        clip.metadata["copyright"] = "(c) Blender Foundation, www.bigbuckbunny.org, CC BY 3.0"
        for number, frame in enumerate(movie.decode(video=0)):
            if FIRST <= number < FIRST + COUNT:
                small = frame.reformat(WIDTH, HEIGHT, "yuv420p", interpolation="AREA")
                small.pts, small.time_base = number - FIRST, Fraction(1, RATE)
                clip.mux(stream.encode(small))
        clip.mux(stream.encode())


if __name__ == "__main__":
    make_clip(sys.argv[1], sys.argv[2])
