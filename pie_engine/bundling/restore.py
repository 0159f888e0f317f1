"""A bundle -> the models that it was exported from: configurations from its manifest, weights from its graphs."""

from __future__ import annotations

from collections.abc import Collection

from pie_engine.checkpoint import Checkpoint
from pie_engine.config import COMPONENTS
from pie_engine.errors import BuildError, BundleError, CheckpointError, use
from pie_engine.export.components import component
from pie_engine.export.weights import take_weights
from pie_engine.model.bundle import Bundle


def check_restorable(bundle: Bundle) -> None:
    """Raises BundleError for a bundle of an earlier version, which does not hold what PyTorch needs."""
    if bundle.unknown_models:
        raise BundleError(
            f"bundle {bundle.path} holds no configuration of {', '.join(bundle.unknown_models)}, which PyTorch needs: "
            f"pie-engine {bundle.manifest.get('pie_engine')} wrote it before bundles did; {_remedy(bundle)}"
        )


def restore_checkpoint(bundle: Bundle, components: Collection[str] = COMPONENTS) -> Checkpoint:
    """The checkpoint that a bundle was built from, LoRA and refitted weights included.

    Weights have the precision that the bundle's graphs have them in: every bit of fp32, and fp16 as it was rounded.

    Args:
        bundle: verified.
        components: whose weights are read; the rest of the models stays on the meta device.

    Raises:
        BundleError: it does not hold all that is needed, or its graphs do not belong to its configurations.
    """
    # diffusers and transformers come with it, which a bundle's own graphs run without
    from pie_engine.checkpoint.components import empty_text_encoder, empty_unet, empty_vae, load_tokenizer, quiet

    check_restorable(bundle)
    configs, source = bundle.manifest["architecture"], f"bundle {bundle.path}"
    try:
        with quiet():
            unet = empty_unet(configs["unet"], source)
            vae = empty_vae(configs["vae"], source)
            text_encoder = empty_text_encoder(configs["text_encoder"], source)
            tokenizer = load_tokenizer(bundle.path / "tokenizer", text_encoder)
        checkpoint = Checkpoint(
            unet, vae, text_encoder, tokenizer, bundle.model.scheduler_config,
            bundle.manifest["hashes"], bundle.manifest["sources"],
        )  # fmt: skip
        for name in components:
            take_weights(bundle.graph(name), component(checkpoint, name).module)
    except (BuildError, CheckpointError) as error:
        reason = str(error).partition("; ")[0]
        raise BundleError(f"bundle {bundle.path} does not run in PyTorch: {reason}; {_remedy(bundle)}") from error
    for model in (unet, vae, text_encoder) if set(components) == set(COMPONENTS) else ():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_meta:  # not one that a component's graph holds
                raise BundleError(
                    f"bundle {bundle.path} does not run in PyTorch: no graph holds {name} of its "
                    f"{type(model).__name__}; {_remedy(bundle)}"
                )
    return checkpoint


def _remedy(bundle: Bundle) -> str:
    return f"rebuild it: {bundle.build_command()}, or pass {use('backend', 'onnxruntime')}"
