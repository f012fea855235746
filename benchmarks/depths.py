# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures one model at every depth: both stages, with and without depth dropout.

    python benchmarks/depths.py --workdir=runs/depths --document

On digits. RQ-VAEs with `rqvae.model.depth_dropout` 0, 0.1 and 0.5, equal steps: PSNR
and the Frechet distance of reconstructions from 1 .. D codes of each position. Then
RQ-Transformers with `transformer.depth_dropout` 0 and 0.5 on the codes of one of them:
bits of unseen images, the Frechet distance of samples and images per second, where only
the first d codes are drawn (`sampling.depth`). Seeds are 0, 1 and 2. Finished runs are
kept. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import runpy
import time

import document
import jax
import numpy as np

from rq import config as config_lib
from rq import visualize
from rq.cli import log_output
from rq.config import SamplingConfig
from rq.config.config_file import find
from rq.data import loader, sources
from rq.evaluation import extractors, trained_stages
from rq.experiment import Experiment
from rq.metrics.distances import frechet_distance
from rq.metrics.moments import Stream
from rq.sampling import codec, conditions, likelihood

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs/results.md"
PICTURE = ROOT / "docs/images/sampling_depths.png"
STAGE_1 = (0.0, 0.1, 0.5)
STAGE_2 = (0.0, 0.5)
OF_CODES = (0.1, 0)  # depth dropout and seed of the RQ-VAE of stage 2
SHOWN = 10  # samples of each depth in the picture


def digits_config(seed: int, steps: int, **changes):
    """Returns the config of the quick start, changed; `a__b` is `a.b`.

    Each stage has `steps`, or, if that is 0, those of the quick start.
    """
    config = runpy.run_path(find("digits"))["get_config"]()
    config.seed = seed
    config.log.eval_every = 1000
    for stage in ("features", "rqvae", "transformer"):
        config[stage].steps = steps or config[stage].steps
        config[stage].optimizer.warmup_steps = min(50, config[stage].steps)
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(changed)
    config_lib.validate(config)
    return config


def trained(config, path: pathlib.Path) -> Experiment:
    """Returns a trained run; trains what is missing."""
    from rq.cli.train import run_stages

    run_stages(config, path)
    return Experiment(path)


def rqvae(workdir, fraction: float, seed: int, steps: int) -> Experiment:
    """Returns a run with an RQ-VAE."""
    config = digits_config(
        seed,
        steps,
        stages=("features", "rqvae"),
        rqvae__model__depth_dropout=fraction,
    )
    if (fraction, seed) != OF_CODES:  # one network of features measures all
        config.stages = ("rqvae",)
    return trained(config, workdir / f"rqvae_{fraction}_{seed}")


def transformer(workdir, fraction: float, seed: int, steps: int) -> Experiment:
    """Returns a run with an RQ-Transformer of the codes of one RQ-VAE."""
    config = digits_config(
        seed,
        steps,
        stages=("codes", "transformer"),
        init_from=str(workdir / f"rqvae_{OF_CODES[0]}_{OF_CODES[1]}"),
        init_stages=("rqvae",),
        rqvae__model__depth_dropout=OF_CODES[0],
        transformer__depth_dropout=fraction,
    )
    return trained(config, workdir / f"transformer_{fraction}_{seed}")


def reconstructions(experiment, extractor) -> dict[str, list[float]]:
    """Returns 'psnr' and 'rfid' by depth, on the evaluation split."""
    found = trained_stages.TrainedRQVAE(experiment).metrics(extractor=extractor)
    depths = range(1, experiment.rqvae.depth + 1)
    rfid = f"rFID ({extractor.label})" if extractor.label else "rFID"
    names = {"psnr": "psnr", "rfid": rfid}
    return {
        k: [found[f"{name}/depth_{d}"] for d in depths] for k, name in names.items()
    }


def bits_by_depth(experiment, batch: int = 100) -> list[float]:
    """Returns bits of an unseen image's first d codes, as files of d depths have."""
    variables, total = experiment.transformer_variables, []
    codebook = variables["codebook"]["state"].embedding
    source = experiment.code_source(experiment.config.data.eval_split)
    examples = [source[index] for index in range(len(source))]
    codes = np.stack([x["codes"] for x in examples])
    labels = np.array([x["label"] for x in examples], np.int32)
    for depth in range(1, experiment.rqvae.depth + 1):
        found = [
            likelihood.log_likelihood(
                experiment.decoder,
                variables["params"],
                codebook,
                codes[start : start + batch, ..., :depth],
                labels[start : start + batch],
            ).sum()
            for start in range(0, len(codes), batch)
        ]
        total.append(-float(sum(found)) / math.log(2) / len(codes))
    return total


def draw(experiment, number: int, depth: int, seed: int = 0):
    """Returns codes and images, uint8, with options of the config but top-p."""
    config = SamplingConfig(**experiment.config.sampling).replace(
        depth=depth, seed=seed, top_p=1.0
    )
    asked = conditions.parse(experiment.config)
    _, cond = asked.at(asked.spread(number))
    found = experiment.sampler.sample(cond, number, config, dtype=np.uint8)
    return found.codes, found.images


def moments(extractor, batches):
    stream = Stream()
    for images in batches:
        stream.add(extractor(images).pool)
    return stream.moments()


def distance(extractor, images, real) -> float:
    found = moments(extractor, np.array_split(images, max(1, len(images) // 100)))
    return frechet_distance(
        real.mean, real.covariance, found.mean, found.covariance
    ).value


def samples(experiment, extractor, real, number: int) -> dict[str, list[float]]:
    """Returns 'fid' of samples by the depth that is drawn, and 'cut': of all depths
    drawn but fewer decoded."""
    whole, _ = draw(experiment, number, 0)
    result: dict[str, list[float]] = {"fid": [], "cut": []}
    for depth in range(1, experiment.rqvae.depth + 1):
        images = draw(experiment, number, depth)[1]
        result["fid"].append(distance(extractor, images, real))
        decoder = codec.Codec(
            experiment.rqvae, experiment.rqvae_variables, experiment.mesh
        )
        decoded = decoder.decode(whole, 100, depth, np.uint8)
        result["cut"].append(distance(extractor, np.concatenate(list(decoded)), real))
    return result


def speed(experiment, number: int = 500, rounds: int = 5) -> list[float]:
    """Returns images per second by the depth that is drawn; rounds take turns."""
    depths = range(1, experiment.rqvae.depth + 1)
    taken = {depth: [] for depth in depths}
    for _ in range(rounds + 1):
        for depth in depths:
            start = time.perf_counter()
            jax.block_until_ready(draw(experiment, number, depth))
            taken[depth].append(time.perf_counter() - start)
    return [number / float(np.median(taken[d][1:])) for d in depths]


def table(result: dict) -> str:
    """Returns Markdown tables of both stages."""
    depth = len(next(iter(result["speed"].values())))
    head = " | ".join(f"{d}" for d in range(1, depth + 1))
    lines = [
        f"| stage 1, depth dropout | PSNR at depth {head} | rFID at depth {head} |"
    ]
    lines.append("|---" * (1 + 2 * depth) + "|")
    for name, runs in result["stage_1"].items():
        cells = [_spread(runs, "psnr", d, 2) for d in range(depth)]
        cells += [_spread(runs, "rfid", d, 2) for d in range(depth)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| stage 2, depth dropout | bits at depth {head} | FID at depth {head} |",
        "|---" * (1 + 2 * depth) + "|",
    ]
    for name, runs in result["stage_2"].items():
        bits = [_spread(runs, "bits", d, 1) for d in range(depth)]
        for what, key in (("", "fid"), (", all drawn, d decoded", "cut")):
            cells = bits if key == "fid" else [""] * depth
            cells = cells + [_spread(runs, key, d, 2) for d in range(depth)]
            lines.append(f"| {name}{what} | {' | '.join(cells)} |")
    speeds = next(iter(result["speed"].values()))
    lines += ["", f"| depth drawn | {head} |", "|---" * (1 + depth) + "|"]
    lines.append(f"| images per second | {' | '.join(f'{x:.0f}' for x in speeds)} |")
    return "\n".join(lines)


def _spread(runs, key: str, depth: int, digits: int) -> str:
    values = [run[key][depth] for run in runs]
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def main() -> None:
    """Trains and measures; writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num_samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=0, help="of each stage")
    parser.add_argument("--document", action="store_true", help="write docs/results.md")
    given = parser.parse_args()
    log_output.start(debug=False)
    workdir, seeds = given.workdir.absolute(), range(given.seeds)
    first = rqvae(workdir, *OF_CODES, given.steps)
    extractor = extractors.of_experiment(first)
    result: dict = {"stage_1": {}, "stage_2": {}, "speed": {}}
    for fraction in STAGE_1:
        runs = [rqvae(workdir, fraction, seed, given.steps) for seed in seeds]
        result["stage_1"][str(fraction)] = [reconstructions(x, extractor) for x in runs]
        print(fraction, result["stage_1"][str(fraction)], flush=True)
    data = first.config.data
    source = sources.open_split(data, data.train_split)
    batches = loader.in_order(source, data, 100, mesh=first.mesh)
    real = moments(extractor, (batch["image"][batch["mask"]] for batch in batches))
    for fraction in STAGE_2:
        runs = [transformer(workdir, fraction, seed, given.steps) for seed in seeds]
        result["stage_2"][str(fraction)] = [
            {"bits": bits_by_depth(x)} | samples(x, extractor, real, given.num_samples)
            for x in runs
        ]
        print(fraction, result["stage_2"][str(fraction)], flush=True)
    result["speed"]["depth dropout 0.5"] = speed(runs[0])
    depths = range(1, runs[0].rqvae.depth + 1)
    rows = [draw(runs[0], SHOWN, d)[1] for d in depths]
    print(table(result))
    if given.document:
        document.insert(RESULTS, "depths", table(result))
        names = [f"depth {d} drawn" for d in depths]
        picture = visualize.sample_grid(np.concatenate(rows), SHOWN, names)
        visualize.save_png(PICTURE, picture)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
