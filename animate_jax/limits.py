"""Limits of the files a user gives: larger ones are refused in one line before their contents take time or memory.

docs/troubleshooting.md lists them. They are generous for real material and small beside a machine's memory.
"""

MEGABYTE = 1 << 20

# Pictures and videos
IMAGE_PIXELS = 100_000_000  # of one picture file
VIDEO_PIXELS = 8192 * 4352  # of one frame: 8K
VIDEO_FRAMES = 100_000  # of one video, at its result's rate: nearly an hour at 30 frames/s
VIDEO_REPEATS = 100_000  # frames shown once more in one video, where its rate is uneven or lower than is asked for
VIDEO_GAP = 60.0  # seconds between two neighboring frames, over which one is repeated
VIDEO_RATE = 1000.0  # frames/s; the least is a frame per VIDEO_GAP

# Keypoints
CANVAS_SIDE = 16_384  # pixels of the pictures behind keypoints, per side
CANVAS_RATIO = 16.0  # of its longer to its shorter side; of all pictures and videos
KEYPOINTS_BYTES = 512 * MEGABYTE  # of one file, also unpacked
KEYPOINTS_JSON_BYTES = 128 * MEGABYTE  # of one file, which may take twenty times as much memory
KEYPOINT_POSITION = 1e6  # largest coordinate, in pixels

# Text and structure
JSON_BYTES = 64 * MEGABYTE  # of indices, presets and other small documents
NESTING = 64  # lists and dictionaries within each other
NAME_LENGTH = 255  # letters of a file's name, and of a tensor's or entry's

# Weights
HEADER_BYTES = 100 * MEGABYTE  # safetensors' own limit
PICKLE_BYTES = 64 * MEGABYTE  # the structure of a torch file, without its tensors
PICKLE_VALUES = 12_000_000  # opcodes of a pickle, each of which makes one object at most; a frame of MusePose has 107
INTEGER_BYTES = 32  # of one integer in a pickle
DIRECTORY_BYTES = 16 * MEGABYTE  # of a zip file: 100,000 tensors
PACKAGE_BYTES = 256 * MEGABYTE  # of a package with the weights of a measuring network, unpacked
TENSORS = 200_000  # of one weight file
TENSOR_DIMENSIONS = 8
MOTION_FRAMES = 4096  # of a motion module's position tables

# The page (animate_jax/web): one visitor's turn, which the others wait for, and what lies on the disk
PAGE_AREAS = (1, 2, 4)  # of results, times the preset's: attention's memory grows with the square
PAGE_WORK = 10_000  # frames x steps (x 2 with guidance) x area, one frame of the preset's size being 1
PAGE_PROGRAMS = 8  # compiled shapes kept: each holds about 100 MB
PAGE_MOTIONS = 4  # read poses that are kept for the next video
PAGE_PICTURE_SIDE = 2048  # pixels that a reference picture is shrunk to
PAGE_VIDEO_PIXELS = 4096 * 2304  # of one frame: 4K
PAGE_VIDEO_DECODED = 60 * 60 * 3840 * 2160  # pixels of all frames: a minute of 4K at 60 frames/s
PAGE_KEYPOINTS_BYTES = 16 * MEGABYTE  # of a keypoint file: a thousand frames with hands and face
PAGE_CALL_BYTES = MEGABYTE  # of any request that is no upload
PAGE_VISITOR_FILES = 3  # largest uploads of one address that are kept
PAGE_FILES = 20  # largest uploads that are kept of all, with the results
PAGE_NAMES = 1000  # files that are kept of all, however small
