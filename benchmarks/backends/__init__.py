"""The peers.

To add one, write a module here with these names, and nothing else:

    VARIANTS: dict[str, tuple[str, str]]
        For each variant its name in tables, and how it is set up: which documented configuration it is. Variants
        that are equal up to a comma share one folder of files; the rest says how these are run.
    NEEDS: tuple[str, ...]
        Modules that must be installed; without them the variants are listed as absent.

    def prepare(configuration, calibration) -> None
        Convert the checkpoint ``configuration.checkpoint`` into files under ``configuration.work``. Called once, in a
        process of its own, if that folder is missing; it is timed, but apart. ``calibration`` is a list of images,
        none of them measured.

    def files(configuration) -> list[Path]
        The files that must be on disk to run the variant.
    def packages(configuration) -> tuple[str, ...]
        The packages that compute.
    def load(configuration) -> Backend
        Both towers, ready to run on ``configuration.threads`` threads; timed. The object has the six methods of
        ``siglip_onnx.bench.backend.Backend``: decode, preprocess, tokenize, vision, text, head. Inherit
        ``siglip_onnx.bench.engine.FrontEnd`` for all but the towers, or ``siglip_onnx.bench.pytorch.PyTorch``.

and name it in ``MODULES``. Whatever the towers return is compared with PyTorch fp32 while it is timed.
Fairness: a peer gets its best documented configuration, the same threads, and, if it only runs graphs, this engine's
front end, which is faster than the slow processors of transformers and exactly equal to them.
"""

MODULES = (
    "pytorch_bf16",
    "pytorch_compile",
    "torchao_int8",
    "optimum_fp32",
    "optimum_int8",
    "transformers_js",
    "openvino_ir",
)
