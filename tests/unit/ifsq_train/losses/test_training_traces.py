"""Models, losses and AdamW together take the steps the released training takes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ifsq_train.losses.adversarial import (
    adaptive_weight,
    conv_weight_gradient,
    discriminator_loss,
    generator_loss,
)
from ifsq_train.losses.alignment import alignment_loss
from ifsq_train.losses.reconstruction import pixel_loss
from ifsq_train.losses.token_cross_entropy import token_cross_entropy
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.discriminator import PatchDiscriminator
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.quantizers import FSQ
from tests.support.goldens import Golden, assert_relative


def drift(step: int) -> float:
    """The recorded traces' own tolerance: later, one digit at a cell's border may flip.

    Measured: all terms within 2e-5 where none flips; within 3e-3 where one does, which the number
    of CPU threads decides.
    """
    return 1e-4 if step < 4 else 1e-2


def test_llamagen_with_alignment(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "llamagen_train_trace")
    settings = golden.config["model"]
    model = LlamaGen(
        num_layers=settings["n_layer"],
        num_heads=settings["n_head"],
        dim=settings["dim"],
        codebook_sizes=[settings["vocab_size"]],
        grid=(4, 4),
        num_classes=settings["num_classes"],
        token_dropout=0.0,
        residual_dropout=0.0,
        feed_forward_dropout=0.0,
        projection_dims=settings["z_dims"],
        projection_depth=settings["encoder_depth"],
        projector_width=settings["projector_dim"],
    )
    model.load_state_dict(golden.under("sd."))
    average = model.tok_embeddings.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(golden.config["steps"]):
        output = model(golden["tokens"][step], golden["class_ids"][step])
        entropy = token_cross_entropy(output.logits, golden["tokens"][step])
        alignment = alignment_loss(output.projections, [golden["repa_target"][step]])
        assert_relative(entropy, golden["trace.ce"][step], drift(step))
        assert_relative(alignment, golden["trace.proj"][step], drift(step))
        optimizer.zero_grad()
        (entropy + golden.config["lambda_repa"] * alignment).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), golden.config["clip"])
        assert_relative(norm, golden["trace.grad_norm"][step], drift(step))
        optimizer.step()
        average.lerp_(model.tok_embeddings.weight.detach(), 1 - golden.config["ema"])
    assert_relative(model.tok_embeddings.weight, golden["final.tok_embeddings"], 1e-4)
    assert_relative(average, golden["final.ema_tok_embeddings"], 1e-4)
    assert_relative(model.norm.weight, golden["final.norm"], 1e-4)


class GanTrace:
    """The recorded alternation of generator and discriminator steps, with the split backward."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        quantizer = FSQ([17] * 4, track_statistics=True)
        self.tokenizer = Tokenizer(
            quantizer, channel_multipliers=(1, 1), base_channels=32, num_res_blocks=1
        )
        self.tokenizer.load_state_dict(golden.under("sd."))
        settings = golden.config["disc"]
        self.discriminator = PatchDiscriminator(settings["ndf"], settings["n_layers"])
        self.discriminator.load_state_dict(golden.under("disc."))
        self.optimizers = [
            torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0)
            for network in (self.tokenizer, self.discriminator)
        ]

    def generator_step(self, images: Tensor, adversarial: bool) -> dict[str, Tensor]:
        """Update the tokenizer; returns what was recorded of such a step."""
        self.tokenizer.train()
        layer, inputs = self.tokenizer.decoder.conv_out, []
        handle = layer.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].detach()))
        reconstruction, _ = self.tokenizer(images)
        handle.remove()
        leaf = reconstruction.detach().requires_grad_()
        terms = {"rec_loss": pixel_loss(leaf, images, "l1"), "lpips_loss": F.mse_loss(leaf, images)}
        (gradient,) = torch.autograd.grad(terms["rec_loss"] + terms["lpips_loss"], leaf)
        if adversarial:
            terms["adv_g"] = generator_loss(self.discriminator(leaf))
            (other,) = torch.autograd.grad(terms["adv_g"], leaf)
            own = conv_weight_gradient(layer, inputs[0], gradient)
            theirs = conv_weight_gradient(layer, inputs[0], other)
            terms["d_weight"] = self.golden.config["disc_weight"] * adaptive_weight(own, theirs)
            gradient = gradient + terms["d_weight"] * other
        self.optimizers[0].zero_grad()
        (reconstruction * gradient).sum().backward()
        terms["grad_norm_before_clip"] = torch.nn.utils.clip_grad_norm_(
            self.tokenizer.parameters(), self.golden.config["max_norm"]
        )
        self.optimizers[0].step()
        return terms

    def discriminator_step(self, images: Tensor) -> dict[str, Tensor]:
        """Update the discriminator."""
        with torch.no_grad():
            reconstruction, _ = self.tokenizer.eval()(images)
        real, fake = self.discriminator(images), self.discriminator(reconstruction)
        loss = discriminator_loss(real, fake, "hinge")
        self.optimizers[1].zero_grad()
        loss.backward()
        self.optimizers[1].step()
        return {"d_loss": loss}


def test_tokenizer_against_discriminator(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "tokenizer_train_trace")
    trace, start = GanTrace(golden), golden.config["disc_start"]
    for step in range(golden.config["steps"]):
        images = golden["x"][step]
        discriminating = step >= start and step % 2 == 1
        assert bool(golden["trace.is_gen"][step]) != discriminating
        if discriminating:
            terms = trace.discriminator_step(images)
        else:
            terms = trace.generator_step(images, adversarial=step >= start)
        for name, value in terms.items():
            assert_relative(value, golden[f"trace.{name}"][step], drift(step))
    with torch.no_grad():
        reconstruction, _ = trace.tokenizer.eval()(golden["x"][0])
    errors = (reconstruction - golden["final_rec"]).abs()
    assert errors.median() < 1e-2 * golden["final_rec"].abs().mean()
