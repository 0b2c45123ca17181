"""Everything about models on a GPU in one call: bf16 parity, speed, MFU, peak memory.

    python tests/benchmarks/gpu/measure.py [--only encode llamagen] [--peak-tflops 989]
    python tests/benchmarks/gpu/measure.py --tiny     # on a CPU: does it run at all

One JSON line per measurement. Sizes are the paper's; `--tiny` shrinks all of them. MFU counts the
operations PyTorch's own counter sees in a step (matrix products, attention, convolutions; a fused
head's products are added), over `--peak-tflops`, 989 for an H100 in bf16.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ifsq_train.losses.adversarial import discriminator_loss, generator_loss
from ifsq_train.losses.flow_matching import direction_error, velocity_error
from ifsq_train.models import dit, llamagen
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.discriminator import PatchDiscriminator
from ifsq_train.models.inference import channels_last, optimize_for_inference
from ifsq_train.models.perceptual import Lpips
from ifsq_train.models.quantizers import FSQ
from ifsq_train.sampling import SamplingConfig, sample_tokens


@dataclass
class Bench:
    """Device, sizes and how often to repeat."""

    device: torch.device
    tiny: bool
    peak: float
    rounds: int
    compiled: bool

    def size(self, paper: int, tiny: int) -> int:
        """The paper's size, or a small one."""
        return tiny if self.tiny else paper

    def autocast(self) -> torch.autocast:
        """bf16, as all recipes of the paper train."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def seconds(self, run: Callable[[], object]) -> float:
        """Median over rounds, after three calls to warm up."""
        for _ in range(1 if self.tiny else 3):
            run()
        times = []
        for _ in range(self.rounds):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def report(
        self, name: str, images: int, run: Callable[[], object], extra_flops: float = 0.0
    ) -> None:
        """Measure and print images per second, MFU and peak memory."""
        with FlopCounterMode(display=False) as counter:
            run()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds(run)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        flops = counter.get_total_flops() + extra_flops
        line = {
            "what": name,
            "images_per_s": round(images / seconds, 2),
            "ms": round(seconds * 1e3, 2),
            "tflop": round(flops / 1e12, 4),
            "mfu": round(flops / seconds / (self.peak * 1e12), 4),
            "peak_gib": round(peak, 2),
        }
        print(json.dumps(line), flush=True)


def build_tokenizer(bench: Bench) -> Tokenizer:
    """The f16 tokenizer of the paper, or a small one."""
    torch.manual_seed(0)
    base = bench.size(128, 32)
    return Tokenizer(FSQ([17] * 4, track_statistics=True), base_channels=base).to(bench.device)


def random_images(bench: Bench, count: int) -> Tensor:
    """Float [count, 3, S, S] in [-1, 1], channels last."""
    side = bench.size(256, 32)
    return channels_last(torch.rand(count, 3, side, side, device=bench.device) * 2 - 1)


def check_tokens(bench: Bench) -> None:
    """Same latents give the same tokens under autocast; how many change with a bf16 network."""
    latents = torch.randn(64, 4, 16, 16, device=bench.device)
    facts: dict[str, Any] = {"what": "tokens"}
    for levels in ([17] * 4, [17] * 6, [17] * 8, [65] * 4):
        quantizer = FSQ(levels).to(bench.device)
        z = latents.repeat(1, 2, 1, 1)[:, : len(levels)]
        with bench.autocast():
            mixed = quantizer(z).indices
        facts[f"{levels[0]}^{len(levels)}_equal"] = bool(torch.equal(mixed, quantizer(z).indices))
    cpu = FSQ([17] * 4)(latents.cpu()).indices
    gpu = FSQ([17] * 4).to(bench.device)(latents).indices.cpu()
    facts["device_differs_from_cpu"] = float((cpu != gpu).float().mean())
    tokenizer, images = build_tokenizer(bench).eval(), random_images(bench, bench.size(32, 2))
    with torch.no_grad():
        exact = tokenizer.encode(images).indices
        with bench.autocast():
            rounded = tokenizer.encode(images).indices
    facts["bf16_network_changes"] = float((exact != rounded).float().mean())
    print(json.dumps(facts), flush=True)


def measure_encode(bench: Bench) -> None:
    """Images to tokens: fp32 and bf16, as it is and prepared for inference."""
    images = random_images(bench, bench.size(64, 2))
    plain = build_tokenizer(bench).eval()
    variants: dict[str, Tokenizer] = {
        "plain": plain,
        "channels last": optimize_for_inference(copy.deepcopy(plain)),
    }
    if bench.compiled:
        variants["compiled"] = optimize_for_inference(copy.deepcopy(plain))
        variants["compiled"].encoder.compile()
    for name, network in variants.items():
        given = images.contiguous() if name == "plain" else images
        for precision in ("fp32", "bf16"):

            def encode(
                network: Tokenizer = network, given: Tensor = given, low: bool = precision == "bf16"
            ) -> Tensor:
                with (
                    torch.inference_mode(),
                    torch.autocast(bench.device.type, torch.bfloat16, enabled=low),
                ):
                    return network.encode(given).indices

            bench.report(f"encode f16, {name}, {precision}", len(images), encode)


def measure_tokenizer_step(bench: Bench) -> None:
    """A generator and a discriminator step, LPIPS included (random weights cost the same)."""
    tokenizer = build_tokenizer(bench).train()
    tokenizer.quantize.measure_use = False
    critic = PatchDiscriminator(64, bench.size(4, 2)).to(bench.device)
    lpips = Lpips("vgg16").to(bench.device).eval().requires_grad_(False)
    own, others = (
        torch.optim.AdamW(part.parameters(), lr=1e-4, fused=bench.device.type == "cuda")
        for part in (tokenizer, critic)
    )
    images = random_images(bench, bench.size(16, 1))

    def generator_step() -> None:
        critic.requires_grad_(False)
        with bench.autocast():
            made, _ = tokenizer(images)
            loss = (images - made).abs().mean() + lpips(made, images).float().mean()
            loss = loss + 0.1 * generator_loss(critic(made).float())
        update(own, tokenizer, loss)

    def discriminator_step() -> None:
        critic.requires_grad_(True)
        with bench.autocast():
            with torch.no_grad():
                made, _ = tokenizer(images)
            loss = discriminator_loss(critic(images).float(), critic(made).float(), "hinge")
        update(others, critic, loss)

    bench.report("tokenizer generator step, bf16", len(images), generator_step)
    bench.report("tokenizer discriminator step, bf16", len(images), discriminator_step)


def update(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    """Backward, clip, step."""
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def build_llamagen(bench: Bench) -> llamagen.LlamaGen:
    """LlamaGen-L on 17^4 codes and a 16x16 grid, or a small one."""
    torch.manual_seed(0)
    if bench.tiny:
        shape = llamagen.Shape(num_layers=2, num_heads=4, dim=64)
        return llamagen.LlamaGen(**shape, codebook_sizes=[289], grid=(4, 4)).to(bench.device)
    shape = llamagen.SIZES["L"]
    model = llamagen.LlamaGen(**shape, codebook_sizes=[17**4], grid=(16, 16))
    return model.to(bench.device)


def measure_llamagen(bench: Bench) -> None:
    """A training step of LlamaGen-L: whole logits against losses only."""
    model = build_llamagen(bench).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=bench.device.type == "cuda")
    count = bench.size(64, 2)
    tokens = torch.randint(model.codebook_sizes[0], (count, model.num_tokens), device=bench.device)
    labels = torch.randint(1000, (count,), device=bench.device)
    if bench.compiled:
        for layer in model.layers:
            layer.compile()
    # Forward and backward of the head, which the counter does not see inside a fused loss.
    head = 6.0 * tokens.numel() * model.codebook_sizes[0] * model.norm.weight.numel()

    def step(losses_only: bool) -> None:
        with bench.autocast():
            output = model(tokens, labels, losses_only=losses_only)
        if losses_only:
            loss = output.token_losses[0].mean()
        else:
            logits = output.logits[0].float().flatten(0, 1)
            loss = nn.functional.cross_entropy(logits, tokens.flatten())
        update(optimizer, model, loss)

    bench.report("LlamaGen-L step, losses only", count, lambda: step(True), head)
    small = max(1, count // 4)
    tokens, labels = tokens[:small], labels[:small]
    bench.report("LlamaGen-L step, whole logits", small, lambda: step(False))


def measure_dit(bench: Bench) -> None:
    """A training step of DiT-L/2 on f8 latents of 4 channels."""
    torch.manual_seed(0)
    shape = {"num_layers": 2, "num_heads": 4, "dim": 64} if bench.tiny else dit.SIZES["L"]
    side = bench.size(32, 8)
    model = dit.DiT(
        num_layers=shape["num_layers"],
        num_heads=shape["num_heads"],
        dim=shape["dim"],
        latent_channels=4,
        grid=(side, side),
        patch_size=2,
    ).to(bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=bench.device.type == "cuda")
    count = bench.size(128, 2)
    data = torch.randn(count, 4, side, side, device=bench.device)
    labels = torch.randint(1000, (count,), device=bench.device)
    if bench.compiled:
        for block in model.blocks:
            block.compile()

    def step() -> None:
        noise, t = torch.randn_like(data), torch.rand(count, device=bench.device)
        mixed = t.view(-1, 1, 1, 1) * data + (1 - t.view(-1, 1, 1, 1)) * noise
        with bench.autocast():
            output = model(mixed, t, labels)
        error = velocity_error(output.prediction, data - noise)
        update(optimizer, model, (error + direction_error(output.prediction, data - noise)).mean())

    bench.report("DiT-L/2 step, f8 latents", count, step)


def measure_sampling(bench: Bench) -> None:
    """Drawing tokens with guidance and the static cache, and decoding them."""
    model, tokenizer = build_llamagen(bench).eval(), build_tokenizer(bench).eval()
    count = bench.size(64, 2)
    labels = torch.arange(count, device=bench.device)
    config = SamplingConfig(cfg_scale=2.0)

    def sample() -> None:
        with bench.autocast():
            sample_tokens(model, labels, list(range(count)), config)

    side = bench.size(16, 2)
    latents = torch.zeros(count, 4, side, side, device=bench.device)

    def decode() -> None:
        with torch.inference_mode(), bench.autocast():
            tokenizer.decode(latents)

    bench.report("LlamaGen-L sampling, guided", count, sample)
    bench.report("f16 decode", count, decode)


PARTS = {
    "tokens": check_tokens,
    "encode": measure_encode,
    "tokenizer": measure_tokenizer_step,
    "llamagen": measure_llamagen,
    "dit": measure_dit,
    "sampling": measure_sampling,
}


def main() -> None:
    """Run the parts asked for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--compile", action="store_true", help="torch.compile blocks and encoder")
    options.add_argument("--peak-tflops", type=float, default=989.0)
    options.add_argument("--rounds", type=int, default=10)
    args = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, "tiny": args.tiny}), flush=True)
    rounds = 1 if args.tiny else args.rounds
    bench = Bench(device, args.tiny, args.peak_tflops, rounds, args.compile)
    for part in args.only:
        PARTS[part](bench)
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
