"""Vision Transformers (Dosovitskiy et al. 2021, "An image is worth 16x16 words").

An image is cut into square patches; each becomes a token by one linear layer and is told its position. Blocks of
self-attention and an MLP, both with the normalisation first, change the tokens, and one vector of them all is
classified (section 3.1). What later papers changed is a field of `VisionTransformer`; `vit_names` lists what each has.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Classifier, Compute, as_logits
from linseed.models.vit_blocks import ACTIVATIONS, Mlp, attend, dense_layer, layer_norm, token_init
from linseed.models.vit_positions import resample
from linseed.ranges import BelowOne, Count, Natural, NonNegative, OneOf, Positive


class Stem(nn.Module, kw_only=True):
    """Tokens of patches and tokens of no place before them: [B, H, W, C] -> [B, prefix + N, D].

    N is (H // patch_size) * (W // patch_size); what is left over at the right and at the bottom is not seen. The fields
    are those of `VisionTransformer`. Raises ValueError for images smaller than a patch.
    """

    patch_size: int
    width: int
    prefix: tuple[tuple[str, int], ...]  # names of parameters, and how many tokens each holds
    positions: str
    input_norm: bool
    norm_epsilon: float
    block_dropout: float
    compute: Compute

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if min(images.shape[1:3]) < self.patch_size:
            size = "x".join(map(str, images.shape[1:3]))
            raise ValueError(f"images of {size} hold no patch of {self.patch_size}: take a smaller patch_size")
        patches = nn.Conv(
            self.width,
            (self.patch_size, self.patch_size),
            self.patch_size,
            padding="VALID",
            use_bias=not self.input_norm,
            dtype=self.compute.dtype,
            conv_general_dilated=self.compute.convolution,
            name="patches",
        )
        x = patches(images).reshape(len(images), -1, self.width)
        if self.positions == "patches":
            x = self._positioned(x)
        tokens = [self.param(name, token_init, (1, count, self.width)) for name, count in self.prefix if count]
        tokens = [jnp.broadcast_to(token, (len(x), *token.shape[1:])).astype(x.dtype) for token in tokens]
        x = jnp.concatenate([*tokens, x], axis=1)
        if self.positions == "tokens":
            x = self._positioned(x)
        x = nn.Dropout(self.block_dropout, deterministic=not train)(x)
        return layer_norm(epsilon=self.norm_epsilon, compute=self.compute, name="norm")(x) if self.input_norm else x

    def _positioned(self, x):
        return x + self.param("pos_embed", token_init, (1, *x.shape[1:])).astype(x.dtype)


class AttentionPool(nn.Module, kw_only=True):
    """One learned query attends to all tokens, and an MLP follows: [B, N, D] -> [B, D].

    Zhai et al. 2022, "Scaling Vision Transformers", section 3.1 (multihead attention pooling).
    """

    heads: int
    mlp_ratio: float
    activation: str
    norm_epsilon: float
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        batch, count, width = x.shape
        dense = partial(dense_layer, compute=self.compute)
        latent = self.param("latent", nn.initializers.truncated_normal(width**-0.5), (1, 1, width))
        q = jnp.broadcast_to(dense(width, name="q")(latent), (batch, 1, width)).reshape(batch, 1, self.heads, -1)
        k, v = jnp.moveaxis(dense(2 * width, name="kv")(x).reshape(batch, count, 2, self.heads, -1), 2, 0)
        x = dense(width, name="proj")(attend(q, k, v).reshape(batch, width))
        mlp = Mlp(
            hidden=int(width * self.mlp_ratio),
            activation=self.activation,
            gate="none",
            dropout=0.0,
            compute=self.compute,
            name="mlp",
        )
        return x + mlp(layer_norm(epsilon=self.norm_epsilon, compute=self.compute, name="norm")(x), train=train)


class VisionTransformer(Classifier, kw_only=True):
    """Patches, blocks, pooling, dense. D is `width`; the features of the head are [B, D].

    heads: of attention, a divisor of the width. mlp_ratio: the width within the MLP over D. qkv_bias: which of queries,
    keys and values have biases; those of keys change nothing. layer_scale: what the factors of a branch start at, 0 for
    none. registers: tokens that no output reads (Darcet et al. 2024). distillation_token: a token with a head of its
    own, `head_dist`; the logits are the mean of both (Touvron et al. 2021, DeiT, section 4).
    positions: learned for all "tokens" or for "patches" alone, or "rotary" (`vit_positions.rotary`). input_norm:
    normalises the tokens before the blocks, and the patches have no bias (Radford et al. 2021, CLIP). pool: the class
    token, the mean of the patches, or `AttentionPool` of them. final_norm: of the tokens, or of their pool.
    block_dropout: after each dense layer of the blocks but queries, keys and values, and after the positions
    (Dosovitskiy et al., appendix B.1). dropout: before the head. Block l of L has rate `drop_path * l / L`.

    Raises ValueError for images smaller than a patch, for heads that do not divide the width, and for a pool without
    its token.
    """

    block: Callable[..., nn.Module]
    patch_size: Count = 16
    width: Count = 192
    depth: Count = 12
    heads: Count = 3
    mlp_ratio: Positive = 4.0
    mlp_gate: Literal["none", "apart", "fused"] = "none"
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "gelu"
    qkv_bias: Literal["none", "all", "query_value"] = "all"
    layer_scale: NonNegative = 0.0
    class_token: bool = True
    distillation_token: bool = False
    registers: Natural = 0
    positions: Literal["tokens", "patches", "rotary"] = "tokens"
    input_norm: bool = False
    final_norm: Literal["tokens", "pooled"] = "tokens"
    norm_epsilon: Positive = 1e-6
    pool: Literal["token", "mean", "attention"] = "token"
    dropout: BelowOne = 0.0
    block_dropout: BelowOne = 0.0
    drop_path: BelowOne = 0.0

    torch_names = (
        (r"^block(\d+)", lambda match: f"blocks/{int(match[1]) - 1}"),
        (r"^stem/patches", "patch_embed/proj"),
        (r"^stem/norm", "norm_pre"),
        (r"^stem$", ""),
        (r"^pool", "attn_pool"),
    )

    @property
    def resized(self) -> dict[str, Callable]:
        """How tensors become those of images of another size: the tensor's name in timm -> f(values, shape)."""
        return {"pos_embed": partial(resample, prefix=self._prefix_length if self.positions == "tokens" else 0)}

    @property
    def _prefix(self):
        """The tokens before those of the patches: names of their parameters, and how many each holds."""
        return ("cls_token", self.class_token), ("dist_token", self.distillation_token), ("reg_token", self.registers)

    @property
    def _prefix_length(self):
        return sum(count for _, count in self._prefix)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.pool == "token" and not self.class_token:
            raise ValueError("pool='token' needs class_token=True: set it, or pool='mean'")
        stem = Stem(
            patch_size=self.patch_size,
            width=self.width,
            prefix=self._prefix,
            positions=self.positions,
            input_norm=self.input_norm,
            norm_epsilon=self.norm_epsilon,
            block_dropout=self.block_dropout,
            compute=self.compute,
            name="stem",
        )
        x = stem(images, train=train)
        grid = images.shape[1] // self.patch_size, images.shape[2] // self.patch_size
        for i in range(1, self.depth + 1):
            x = self._block(i, grid)(x, train=train)
        norm = partial(layer_norm, epsilon=self.norm_epsilon, compute=self.compute)
        x = norm(name="norm")(x) if self.final_norm == "tokens" else x
        outputs = [self._pooled(x, train=train), *([x[:, int(self.class_token)]] if self.distillation_token else [])]
        if self.final_norm == "pooled":
            fc_norm = norm(name="fc_norm")
            outputs = [fc_norm(output) for output in outputs]
        outputs = [nn.Dropout(self.dropout, deterministic=not train)(output) for output in outputs]
        heads = [dense_layer(self.num_classes, compute=self.compute, name=name) for name in ("head", "head_dist")]
        logits = [as_logits(head(output)) for head, output in zip(heads, outputs, strict=False)]
        return sum(logits) / len(logits)

    def _block(self, number, grid):
        return self.block(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            mlp_gate=self.mlp_gate,
            activation=self.activation,
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            norm_epsilon=self.norm_epsilon,
            grid=grid if self.positions == "rotary" else None,
            block_dropout=self.block_dropout,
            drop_rate=self.drop_path * number / self.depth,
            compute=self.compute,
            name=f"block{number}",
        )

    def _pooled(self, x, *, train):
        if self.pool == "token":
            return x[:, 0]
        if self.pool == "mean":
            return jnp.mean(x[:, self._prefix_length :], axis=1)
        pool = AttentionPool(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            compute=self.compute,
            name="pool",
        )
        return pool(x[:, self._prefix_length :], train=train)
