"""Train the demo model: a small SigLIP, from scratch, on images that this script draws.

    python scripts/train_demo.py OUT --steps 6000

writes a Hugging Face checkpoint (``config.json``, ``model.safetensors``, ``spiece.model``, ...) that
``siglip-onnx export`` turns into the bundle that the package carries. Needs torch, transformers and sentencepiece.
A run that was stopped resumes from ``OUT/training_state.pt`` when called again with the same ``OUT``.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipTokenizer

from demo_world.captions import choose_claim, describe, foil
from demo_world.drawing import draw
from demo_world.evaluation import evaluate
from demo_world.lexicon import WORDS
from demo_world.scene import ANY, KIND_SHARES, Scene, draw_scene, exchange, match_targets

IMAGE_SIZE, PATCH_SIZE, TEXT_LENGTH = 96, 16, 32
VOCAB_SIZE = 640

Batch = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]


def train_tokenizer(out: Path, seed: int) -> SiglipTokenizer:
    """Train a SentencePiece Unigram model on captions, with the special ids of SigLIP's own (pad 0, </s> 1, unk 2)."""
    rng = np.random.default_rng(seed)
    captions = [describe(choose_claim(draw_scene(rng), rng), lang, rng)[1].lower() for lang in ("en", "ja") * 20_000]
    # Letters and digits keep texts about unknown things apart instead of turning them all into <unk>.
    captions += [character for character in "abcdefghijklmnopqrstuvwxyz0123456789" for _ in range(50)]
    captions += [word for word in WORDS for _ in range(50)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_prefix=str(out / "spiece"),
        vocab_size=VOCAB_SIZE,
        model_type="unigram",
        character_coverage=1.0,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
        hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    (out / "spiece.vocab").unlink()
    return SiglipTokenizer(str(out / "spiece.model"), model_max_length=TEXT_LENGTH)


def make_model(vocab_size: int) -> SiglipModel:
    """Build the untrained demo model, small enough that its fp32 and int8 variants together stay below 10 MB."""
    config = SiglipConfig(
        vision_config={
            "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 7, "num_attention_heads": 4,
            "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE,
        },
        text_config={
            "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4, "num_attention_heads": 3,
            "vocab_size": vocab_size, "max_position_embeddings": TEXT_LENGTH, "projection_size": 128,
            "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 1,
        },
    )  # fmt: skip
    model = SiglipModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "position" not in name and "probe" not in name:
                torch.nn.init.trunc_normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.04)
        model.vision_model.embeddings.position_embedding.weight.normal_(std=0.05)
        model.text_model.embeddings.position_embedding.weight.normal_(std=0.05)
        model.text_model.embeddings.token_embedding.weight.normal_(std=0.3)
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-5.0)
    # Eager attention is the faster one for so few tokens, and the convolution's transposed output would make
    # every LayerNorm behind it copy.
    model.set_attn_implementation("eager")
    model.vision_model.embeddings.register_forward_hook(lambda _module, _inputs, output: output.contiguous())
    return model


def make_optimizers(model: SiglipModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the encoder layers, AdamW for all else; both follow one learning rate."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01),
    ]


class Batches(IterableDataset[Batch]):
    """Endless batches: images uint8 ``(B, S, S, 3)``, token ids ``(M, T)`` of distinct texts, targets ``(B, M)``.

    Images come from a pool drawn once, so that drawing does not compete with training; each time one is used it gets
    new captions. A share ``foil_share`` of them comes with a near but wrong one; those that say where two objects lie
    always do, because such a text differs from the wrong one in its order alone. For the same reason an image of two
    objects brings along one in which they have changed places, so that a batch may hold more than ``batch_size``.
    """

    def __init__(
        self, tokenizer: SiglipTokenizer, batch_size: int, num_images: int, foil_share: float, seed: int
    ) -> None:
        self.tokenizer, self.batch_size, self.foil_share, self.seed = tokenizer, batch_size, foil_share, seed
        self.token_ids: dict[str, list[int]] = {}
        chunks = [(seed, chunk, 1000) for chunk in range(max(1, num_images // 1000))]
        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(_draw_chunk, chunks))
        self.scenes = [scene for scenes, _ in drawn for scene in scenes]
        # An image of two objects is followed by the one in which they have changed places.
        neighbors = enumerate(itertools.pairwise(self.scenes))
        self.exchanged = {i: i + 1 for i, (a, b) in neighbors if a.relation != ANY and b == exchange(a)}
        self.images = np.concatenate([images for _, images in drawn])

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, 0 if worker is None else worker.id))
        while True:
            chosen = list(map(int, rng.integers(len(self.scenes), size=self.batch_size)))
            chosen += [self.exchanged[i] for i in chosen if i in self.exchanged]
            scenes = [self.scenes[i] for i in chosen]
            claims = {}
            for scene in scenes:
                for language in ("en", "ja"):
                    claim = choose_claim(scene, rng)
                    said = [claim]
                    if self.foil_share and (claim.relation != ANY or rng.random() < self.foil_share):
                        said.append(foil(claim, rng))
                    for version in said:
                        facts, text = describe(version, language, rng)
                        claims[text] = facts
            ids = np.array([self._tokenize(text) for text in claims])
            yield self.images[chosen], ids, match_targets(scenes, list(claims.values()))

    def _tokenize(self, text: str) -> list[int]:
        if text not in self.token_ids:
            self.token_ids[text] = self.tokenizer(text, padding="max_length", truncation=True).input_ids
        return self.token_ids[text]


def _to_tensors(batch: Batch) -> list[torch.Tensor]:
    """Return tensors, which a loader process hands over in shared memory."""
    return [torch.from_numpy(array) for array in batch]


def _draw_chunk(chunk: tuple[int, int, int]) -> tuple[list[Scene], NDArray[np.uint8]]:
    seed, number, count = chunk
    rng = np.random.default_rng((seed, number))
    scenes: list[Scene] = []
    while len(scenes) < count:
        scenes.append(draw_scene(rng))
        if scenes[-1].relation != ANY and len(scenes) < count:
            scenes.append(exchange(scenes[-1]))
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for i, scene in enumerate(scenes):
        image = draw(scene, rng, canvas=int(rng.integers(120, 240)))
        images[i] = np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    return scenes, images


def sigmoid_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """SigLIP's loss with soft targets: cross-entropy of every pair, summed over texts, averaged over images."""
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def embed(model: SiglipModel, tokenizer: SiglipTokenizer) -> tuple[Any, Any]:
    """Wrap a PyTorch model as the two functions that the evaluation takes."""
    processor = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})

    @torch.no_grad()
    def embed_images(images: list[Image.Image]) -> NDArray[np.float32]:
        pixels = processor(images, return_tensors="pt").pixel_values
        features = torch.cat([model.get_image_features(chunk) for chunk in pixels.split(100)])
        return torch.nn.functional.normalize(features).numpy()

    @torch.no_grad()
    def embed_texts(strings: list[str]) -> NDArray[np.float32]:
        ids = tokenizer(strings, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return torch.nn.functional.normalize(model.get_text_features(ids)).numpy()

    return embed_images, embed_texts


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 300 steps, stay, then fall to zero over the last third of the run."""
    return peak * min(1.0, (step + 1) / 300, 3.0 * (steps - step) / steps)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--steps", default=6000, show_default=True)
@click.option("--batch-size", default=96, show_default=True)
@click.option("--peak-learning-rate", default=1.5e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--num-images", default=100_000, show_default=True, help="Images drawn for training.")
@click.option("--loaders", default=0, show_default=True, help="Processes that prepare batches beside the training.")
@click.option("--foil-share", default=0.5, show_default=True, help="Share of captions with a similar but wrong one.")
@click.option("--start-from", type=click.Path(path_type=Path, exists=True), help="Checkpoint to train further.")
@click.option("--save-every", default=500, show_default=True)
@click.option("--num-evaluated", default=300, show_default=True, help="Images per question at each save.")
def main(
    out: Path,
    steps: int,
    batch_size: int,
    peak_learning_rate: float,
    seed: int,
    device: str,
    num_images: int,
    loaders: int,
    foil_share: float,
    start_from: Path | None,
    save_every: int,
    num_evaluated: int,
) -> None:
    """Train and save; see the module's docstring."""
    settings = {
        key: value
        for key, value in locals().items()
        if key not in ("out", "start_from", "save_every", "num_evaluated", "loaders")
    }
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    spiece = (start_from or out) / "spiece.model"
    tokenizer = (
        SiglipTokenizer(str(spiece), model_max_length=TEXT_LENGTH) if spiece.exists() else train_tokenizer(out, seed)
    )
    tokenizer.save_pretrained(out)
    model = make_model(len(tokenizer))
    if start_from:
        model.load_state_dict(SiglipModel.from_pretrained(start_from).state_dict())
    model.to(device)
    optimizers = make_optimizers(model)
    state_path = out / "training_state.pt"
    start, runs = load_state(state_path, model, optimizers)
    earlier: dict[str, Any] = {"steps": 0, "runs": []}
    if start_from:
        earlier = json.loads((start_from / "training.json").read_text(encoding="utf-8"))
    runs = runs or earlier["runs"]
    runs.append({"from_step": earlier["steps"] + start, **settings, "kind_shares": KIND_SHARES})

    # A resumed run draws new images instead of repeating the first ones.
    dataset = Batches(tokenizer, batch_size, num_images, foil_share, seed + start)
    batches = DataLoader(dataset, batch_size=None, num_workers=loaders, collate_fn=_to_tensors)
    began = time.time()
    for step, batch in zip(range(start, steps), batches, strict=False):
        for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
            group["lr"] = learning_rate(step, steps, peak_learning_rate)
        loss = train_step(model, optimizers, batch)
        done = step + 1
        if done % 100 == 0:
            rate = (done - start) * batch_size / (time.time() - began)
            click.echo(f"step {done:6d}  loss {loss.item():8.4f}  {rate:6.0f} images/s", err=True)
        if done % save_every == 0 or done == steps:
            save_state(state_path, model, optimizers, done, runs)
            training = {"steps": earlier["steps"] + done, "runs": runs, "torch": torch.__version__}
            save_checkpoint(model, tokenizer, out, training, num_evaluated)


def train_step(
    model: SiglipModel,
    optimizers: list[torch.optim.Optimizer],
    batch: list[torch.Tensor],
) -> torch.Tensor:
    """Make one step on a batch of :class:`Batches`; returns its loss."""
    device = model.logit_scale.device
    images, ids, targets = (tensor.to(device, non_blocking=True) for tensor in batch)
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    pixels += torch.randn_like(pixels[:, :1]) * torch.rand(len(pixels), 1, 1, 1, device=device) * 0.04
    with torch.autocast(device.type, dtype=torch.bfloat16):
        image = model.get_image_features(pixels)
        text = model.get_text_features(ids)
    image = torch.nn.functional.normalize(image.float())
    text = torch.nn.functional.normalize(text.float())
    loss = sigmoid_loss(image @ text.T * model.logit_scale.exp() + model.logit_bias, targets)
    model.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def load_state(
    path: Path, model: SiglipModel, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, list[dict[str, Any]]]:
    """Resume a stopped run, if ``path`` exists; return its step and the settings of the runs so far."""
    if not path.exists():
        return 0, []
    state = torch.load(path, map_location=model.logit_scale.device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    click.echo(f"resuming from step {state['step']}", err=True)
    return state["step"], state["runs"]


def save_state(
    path: Path, model: SiglipModel, optimizers: list[torch.optim.Optimizer], step: int, runs: list[dict[str, Any]]
) -> None:
    """Write what :func:`load_state` reads, whole or not at all."""
    optimizer_states = [optimizer.state_dict() for optimizer in optimizers]
    temporary = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizers": optimizer_states, "step": step, "runs": runs}, temporary)
    temporary.replace(path)


def save_checkpoint(
    model: SiglipModel, tokenizer: SiglipTokenizer, out: Path, training: dict[str, Any], num_evaluated: int
) -> None:
    """Write the checkpoint and ``training.json``: the settings and the accuracy of the fp32 PyTorch model."""
    copy = SiglipModel(model.config)
    copy.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
    copy.eval().save_pretrained(out)
    SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(out)
    accuracy = evaluate(*embed(copy, tokenizer), num_images=num_evaluated, seed=1_000_003)
    document = training | {"accuracy_pytorch_fp32": accuracy}
    (out / "training.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, value in accuracy.items():
        click.echo(f"    {name:44s} {100 * value:5.1f} %", err=True)


if __name__ == "__main__":
    main()
