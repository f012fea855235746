# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains, samples, reconstructs and evaluates.

    python -m rq.main --config=configs/digits.py --workdir=runs/digits
    python -m rq.main --mode=sample --workdir=runs/digits --num_samples=64 --classes=3,7
    python -m rq.main --mode=reconstruct --workdir=runs/digits
    python -m rq.main --mode=eval --workdir=runs/digits
    python -m rq.main --mode=rank --workdir=runs/digits --images=FILE_OR_FOLDER
    python -m rq.main --mode=prepare --config=configs/folder.py --config.data.path=DIR

Modes other than `train` and `prepare` need the workdir alone.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from rq import config as configs
from rq import visualize
from rq.cli import train as pipeline
from rq.config.sampling import SCHEDULES
from rq.convert import lpips_weights
from rq.data import DataError, sources
from rq.evaluation import (
    clip,
    extractors,
    references,
    report,
    sample_job,
    trained_stages,
)
from rq.experiment import Experiment
from rq.parallel import atomic_files, processes, sharding
from rq.sampling import classifier, inpainting
from rq.training import checkpoint, loop

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "Config file, with a variant after a colon.", lock_config=True
)
flags.DEFINE_string("workdir", None, "Folder of the experiment: all that it makes.")
MODES = (
    "train", "prepare", "tokenizer", "encode", "eval", "rank", "sample", "reconstruct"
)  # fmt: skip
flags.DEFINE_enum("mode", "train", MODES, "What to do.")
flags.DEFINE_integer(
    "num_samples",
    None,
    "sample: images in all, 64. eval: generates so many and measures them.",
    lower_bound=1,
)
flags.DEFINE_string(
    "inception", None, "eval: file of `rq.convert inception`; else own features."
)
flags.DEFINE_enum(
    "resize",
    "tf1",
    list(extractors.RESIZES),
    "eval: how images get to --inception: as in TensorFlow's graph, as pytorch-fid and "
    "the authors have it, or clean-fid.",
)
flags.DEFINE_string(
    "lpips", None, "eval: file of `rq.convert lpips`, for reconstructions."
)
flags.DEFINE_string(
    "clip", None, "eval: folder of a CLIP in ONNX, for samples of texts."
)
flags.DEFINE_string(
    "reference", "train", "eval: 'train', 'eval', or images or statistics of any."
)
flags.DEFINE_list("classes", [], "sample, rank: comma-separated; none: all classes.")
flags.DEFINE_multi_string("text", [], "sample, rank: a text; repeat it for several.")
flags.DEFINE_list("temperature", None, "sample: one, or one for each depth.")
flags.DEFINE_list("top_k", None, "sample: one, or one for each depth; 0: off.")
flags.DEFINE_list("top_p", None, "sample: one, or one for each depth; 1: off.")
flags.DEFINE_list("min_p", None, "sample: one, or one for each depth; 0: off.")
flags.DEFINE_list("guidance", None, "sample: scale, or one for each depth; 1: off.")
flags.DEFINE_enum(
    "guidance_schedule", None, SCHEDULES, "sample: how guidance grows over positions."
)
flags.DEFINE_float(
    "keep", 1.0, "sample: share of samples kept, the best by a classifier; 1: off."
)
flags.DEFINE_string(
    "classifier", None, "keep: file of `python -m rq.convert resnet`; none: stage 0's."
)
flags.DEFINE_string("complete", None, "sample: an image file, or codes, to complete.")
flags.DEFINE_string(
    "mask",
    "bottom",
    f"complete: what to draw, an image or one of {inpainting.REGIONS}.",
)
flags.DEFINE_integer(
    "keep_depth", 0, "complete: depths that stay within the mask.", lower_bound=0
)
flags.DEFINE_string(
    "step", "latest", "Checkpoint of the last stage: 'latest', 'best' or a number."
)
flags.DEFINE_string(
    "mesh", "", "Modes of a workdir: sizes as 'fsdp=4' or 'data=2,tensor=4'."
)
flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of the restored transformer's weights."
)
flags.DEFINE_integer("seed", 0, "sample: random seed.")
flags.DEFINE_integer("batch_size", None, "sample: images at once.", lower_bound=1)
flags.DEFINE_string(
    "images", None, "eval, rank, reconstruct: an image file or a folder of them."
)
flags.DEFINE_integer("num_images", 8, "reconstruct: images shown.", lower_bound=1)
flags.DEFINE_string(
    "coordinator", None, "Several processes: host:port of the first, in all of them."
)
flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
flags.DEFINE_integer("process_id", None, "Several processes: which this is, from 0.")
flags.DEFINE_bool(
    "distributed", False, "Several processes, which JAX is to find: on TPU pods."
)
flags.DEFINE_string("out", None, "Output, a .png; sample writes an .npz beside it.")


def _experiment() -> Experiment:
    """The workdir's, on the mesh and in the dtype of the flags."""
    sizes = {}
    for part in filter(None, FLAGS.mesh.split(",")):
        name, _, size = part.partition("=")
        if name not in sharding.AXES or not size.lstrip("-").isdigit():
            raise configs.ConfigError(
                f"--mesh={FLAGS.mesh}: {part!r} is not one of "
                f"{', '.join(f'{axis}=N' for axis in sharding.AXES)}"
            )
        sizes[name] = int(size)
    mesh = sharding.make_mesh(**sizes)
    return Experiment(FLAGS.workdir, mesh, FLAGS.step, FLAGS.dtype)


def _config():
    if FLAGS.config is None:
        raise configs.ConfigError(f"--mode={FLAGS.mode} needs --config=configs/FILE.py")
    configs.validate(FLAGS.config)
    return FLAGS.config


def train_mode() -> None:
    """Runs the stages of the config, each from where it stands."""
    pipeline.run(_config(), FLAGS.workdir)


def prepare_mode() -> None:
    """Prepares the config's data set, and prints what is in it and what is not."""
    report = sources.prepare(_config().data)
    print(sources.summary(report))
    print(json.dumps(report, indent=2))


def tokenizer_mode() -> None:
    """Trains a tokenizer on the config's captions, or copies the one that it names."""
    config, path = _config(), checkpoint.folder(FLAGS.workdir)
    with processes.process_0_first("the tokenizer"):
        pipeline.claim(path, config)
        pipeline.make_tokenizer(config, path)


def encode_mode() -> None:
    """Stores the codes of a trained RQ-VAE."""
    experiment = _experiment()
    pipeline.encode(experiment.config, experiment.path, experiment.mesh)


def _sampling_flags(experiment) -> dict:
    """What `Experiment.sample` and jobs of `--mode=eval` share."""
    numbers = ("temperature", "top_p", "min_p", "guidance")
    options = {name: _numbers(name, float) for name in numbers}
    judge = None
    if FLAGS.classifier is not None:
        known = experiment.config.data.num_classes
        judge = classifier.from_file(FLAGS.classifier, known)
    return options | {
        "top_k": _numbers("top_k", int),
        "guidance_schedule": FLAGS.guidance_schedule,
        "classes": _numbers("classes", int) or (),
        "texts": tuple(FLAGS.text),
        "seed": FLAGS.seed,
        "batch_size": FLAGS.batch_size,
        "keep": FLAGS.keep,
        "judge": judge,
    }


def sample_mode() -> None:
    """Writes generated images as a PNG grid, and as arrays."""
    out = _output("generated.png")
    experiment = _experiment()
    given = None
    if FLAGS.complete is not None:
        given = experiment.given(FLAGS.complete, FLAGS.mask, FLAGS.keep_depth)
    images, labels, codes = experiment.sample(
        FLAGS.num_samples or 64, given=given, **_sampling_flags(experiment)
    )
    if not processes.is_process_0():
        return
    columns = int(np.ceil(np.sqrt(len(images))))
    visualize.save_png(out, visualize.grid(images, columns))
    np.savez(
        out.with_suffix(".npz"),
        arr_0=visualize.to_uint8(images),
        labels=labels,
        codes=codes,
    )
    print(f"wrote {out} and {out.with_suffix('.npz')}")


def reconstruct_mode() -> None:
    """Writes images beside their reconstructions by depth, and error maps."""
    out = _output(f"{_of_images()}reconstructions.png")
    experiment = _experiment()
    picture = trained_stages.TrainedRQVAE(experiment).reconstructions(
        FLAGS.num_images, FLAGS.images
    )
    if processes.is_process_0():
        visualize.save_png(out, picture)
        print(f"wrote {out}")


# Flags of `eval` that say something of samples alone.
OF_SAMPLES = ("clip", "reference", "keep", "classes", "text", "seed")


def _refuse(why: str, *names: str) -> None:
    """Raises ConfigError where one of these flags is given."""
    for name in names:
        if FLAGS[name].present:
            raise configs.ConfigError(f"--{name} {why}")


def eval_mode() -> None:
    """Prints metrics of both stages or of generated images, and writes them as JSON."""
    if FLAGS.num_samples is None:
        _refuse("is of samples: it goes with --num_samples", *OF_SAMPLES)
    else:
        _refuse("does not go with --num_samples", "images", "complete", "lpips")
        if FLAGS.num_samples < 2:
            raise configs.ConfigError("metrics need --num_samples=2 or more")
    if not FLAGS.inception:
        _refuse("goes with --inception", "resize")
    experiment = _experiment()
    extractor = None
    if FLAGS.inception:
        extractor = extractors.inception(FLAGS.inception, experiment.mesh, FLAGS.resize)
    elif FLAGS.num_samples is not None or experiment.finished("features"):
        extractor = extractors.of_experiment(experiment)
    if FLAGS.num_samples is not None:
        _eval_job(experiment, extractor)
        return
    out = _output(f"{_of_images()}evaluation.json", suffix=".json")
    network = lpips_weights.load(FLAGS.lpips, "--lpips") if FLAGS.lpips else None
    _write_json(
        out, trained_stages.evaluate(experiment, FLAGS.images, extractor, network)
    )


def _eval_job(experiment, extractor) -> None:
    """Generates `--num_samples` images, measures them, and writes a page on them."""
    options = _sampling_flags(experiment)
    task = sample_job.Job(
        experiment, FLAGS.num_samples, judge_name=FLAGS.classifier or "", **options
    )
    network = None
    if FLAGS.clip is not None:
        network = clip.Clip(FLAGS.clip)
        if not task.texts:
            raise configs.ConfigError("--clip needs a model that is told texts")
    reference, source = references.find_reference(
        experiment, extractor, FLAGS.reference
    )
    result = task.run(extractor, reference, FLAGS.reference, source, network)
    report.write(experiment, extractor, task)
    if processes.is_process_0():
        print(json.dumps(result, indent=2))
        if FLAGS.out:
            atomic_files.write_json(FLAGS.out, result)


def rank_mode() -> None:
    """Prints how likely images are under classes or texts, and writes it as JSON."""
    if FLAGS.images is None:
        raise configs.ConfigError("--mode=rank needs --images=FILE_OR_FOLDER")
    out = _output("ranking.json", suffix=".json")
    classes = _numbers("classes", int) or ()
    experiment = _experiment()
    _write_json(out, experiment.rank(FLAGS.images, classes, tuple(FLAGS.text)))


def _write_json(path: epath.Path, results) -> None:
    if processes.is_process_0():
        atomic_files.write_json(path, results)
        print(json.dumps(results, indent=2))


def _of_images() -> str:
    """In front of names, so that training's own pictures and metrics stay."""
    return "" if FLAGS.images is None else "images_"


def _output(name: str, suffix: str = ".png") -> epath.Path:
    path = epath.Path(FLAGS.out or epath.Path(FLAGS.workdir) / "samples" / name)
    if path.suffix != suffix:
        raise configs.ConfigError(f"--out={path} must end in {suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _numbers(flag: str, kind) -> tuple | None:
    values = FLAGS[flag].value
    try:
        return None if values is None else tuple(kind(value) for value in values)
    except ValueError:
        raise configs.ConfigError(
            f"--{flag}={','.join(values)}: each must be of type {kind.__name__}"
        ) from None


LOST = 75  # exit status, EX_TEMPFAIL: worth another try
PATIENCE = 10.0  # seconds that a failing process gives the others to fail too

# Errors of the user's, told in a line; anything else is ours and keeps its traceback.
USER_ERRORS = (
    configs.ConfigError,
    checkpoint.CheckpointError,
    sharding.MeshError,
    loop.NonFiniteLossError,
    DataError,
    FileNotFoundError,
)


def main(argv) -> None:
    """Runs one mode."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    mode = {
        "train": train_mode,
        "prepare": prepare_mode,
        "tokenizer": tokenizer_mode,
        "encode": encode_mode,
        "sample": sample_mode,
        "reconstruct": reconstruct_mode,
        "eval": eval_mode,
        "rank": rank_mode,
    }[FLAGS.mode]
    with ending():
        if FLAGS.workdir is None and FLAGS.mode != "prepare":
            raise configs.ConfigError(f"--mode={FLAGS.mode} needs --workdir=FOLDER")
        processes.start(
            FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.distributed
        )
        logging.info("JAX %s on %s", jax.__version__, jax.devices())
        mode()


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Where the body fails, ends this process with a status that launchers understand.

    1, in a line, for mistakes of the user; of several processes also where all of them
    fail, or the memory does not suffice. `LOST` where other processes, or devices, are
    gone.
    """
    try:
        yield
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        processes.barrier_within("an end by mistake", PATIENCE)
        processes.exit_now(1)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        logging.exception("this process has failed")
        alike = processes.barrier_within("an end by failure", PATIENCE)
        processes.exit_now(1 if alike or "RESOURCE_EXHAUSTED" in str(error) else LOST)


if __name__ == "__main__":
    app.run(main, flags_parser=configs.flags_parser)
