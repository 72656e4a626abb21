"""The layers of Vision Transformers: attention, the MLP, and the block of both (see `vit`)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Compute, gelu
from linseed.models.vit_positions import rotary, rotate

ACTIVATIONS = {
    "gelu": gelu,  # x Phi(x). Hendrycks and Gimpel 2016
    "gelu_tanh": partial(nn.gelu, approximate=True),  # their first approximation
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # their second
    "relu": nn.relu,
    "silu": nn.silu,
}

token_init = nn.initializers.normal(0.02)  # Touvron et al. 2021, DeiT: of every matrix and token


def dense_layer(features: int, *, compute: Compute, name: str, use_bias: bool = True) -> nn.Dense:
    """[..., F] -> [..., features]."""
    return nn.Dense(features, use_bias=use_bias, dtype=compute.dtype, kernel_init=token_init, name=name)


def layer_norm(*, epsilon: float, compute: Compute, name: str) -> nn.LayerNorm:
    """To mean zero and variance one over the features (Ba et al. 2016), in float32 at least: [..., F] -> the same."""
    return nn.LayerNorm(epsilon=epsilon, dtype=compute.dtype, use_fast_variance=False, name=name)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(F)) v: float [B, Q, heads, F] and twice [B, N, heads, F] -> [B, Q, heads, F].

    The softmax is computed in float32 at least.
    """
    exact = jnp.promote_types(q.dtype, jnp.float32)
    products = jnp.einsum("bqhf,bnhf->bhqn", q, k, preferred_element_type=exact)
    weights = nn.softmax(products * q.shape[-1] ** -0.5).astype(v.dtype)
    return jnp.einsum("bhqn,bnhf->bqhf", weights, v)


class Attention(nn.Module, kw_only=True):
    """Multi-head self-attention: [B, N, D] -> the same shape.

    grid: rows and columns of the patches, which are the last tokens, for rotary positions; None for none.
    Raises ValueError if the heads do not divide the width.
    """

    heads: int
    qkv_bias: str
    grid: tuple[int, int] | None
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, count, width = x.shape
        if width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {width}: change width or heads")
        qkv = dense_layer(3 * width, use_bias=self.qkv_bias == "all", compute=self.compute, name="qkv")(x)
        if self.qkv_bias == "query_value":
            q_bias, v_bias = (self.param(name, nn.initializers.zeros, (width,)) for name in ("q_bias", "v_bias"))
            qkv += jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]).astype(qkv.dtype)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, count, 3, self.heads, -1), 2, 0)
        if self.grid:
            prefix = count - self.grid[0] * self.grid[1]
            angles = rotary(self.grid, features=q.shape[-1], prefix=prefix)
            q, k = rotate(q, angles), rotate(k, angles)
        x = attend(q, k, v).reshape(x.shape)
        return dense_layer(width, compute=self.compute, name="proj")(x)


class Mlp(nn.Module, kw_only=True):
    """Two layers round an activation: [..., D] -> the same shape. hidden: the features between them.

    gate: with "apart" and "fused" the activation of one layer multiplies the output of a second one, which with "silu"
    is SwiGLU (Shazeer 2020, "GLU variants improve Transformer"). "fused" keeps both kernels as one.
    """

    hidden: int
    activation: str
    gate: str
    dropout: float
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        dense, activation = partial(dense_layer, compute=self.compute), ACTIVATIONS[self.activation]
        if self.gate == "apart":
            y = activation(dense(self.hidden, name="fc1_g")(x)) * dense(self.hidden, name="fc1_x")(x)
        elif self.gate == "fused":
            gate, y = jnp.split(dense(2 * self.hidden, name="fc1")(x), 2, axis=-1)
            y = activation(gate) * y
        else:
            y = activation(dense(self.hidden, name="fc1")(x))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dropout(self.dropout, deterministic=not train)(dense(x.shape[-1], name="fc2")(y))


class LayerScale(nn.Module):
    """A factor for each feature, all of which start at `start`: [..., D] -> the same shape.

    Touvron et al. 2021, "Going deeper with image Transformers", section 2.
    """

    start: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("gamma", nn.initializers.constant(self.start), x.shape[-1:]).astype(x.dtype)


class Block(nn.Module, kw_only=True):
    """Attention, then an MLP, each on the normalised tokens and added to them: [B, N, D] -> the same shape.

    drop_rate: in training each of the two is left out for an example with this probability, and divided by one minus it
    otherwise. The other fields are those of `VisionTransformer`, `Attention` and `Mlp`.
    """

    heads: int
    mlp_ratio: float
    mlp_gate: str
    activation: str
    qkv_bias: str
    layer_scale: float
    norm_epsilon: float
    grid: tuple[int, int] | None
    block_dropout: float
    drop_rate: float
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(layer_norm, epsilon=self.norm_epsilon, compute=self.compute)
        attention = Attention(
            heads=self.heads, qkv_bias=self.qkv_bias, grid=self.grid, compute=self.compute, name="attn"
        )
        y = nn.Dropout(self.block_dropout, deterministic=not train)(attention(norm(name="norm1")(x)))
        x = x + self._branch(y, 1, train=train)
        mlp = Mlp(
            hidden=int(x.shape[-1] * self.mlp_ratio),
            activation=self.activation,
            gate=self.mlp_gate,
            dropout=self.block_dropout,
            compute=self.compute,
            name="mlp",
        )
        return x + self._branch(mlp(norm(name="norm2")(x), train=train), 2, train=train)

    def _branch(self, y, number, *, train):
        y = self.scaled(y, number) if self.layer_scale else y
        return nn.Dropout(self.drop_rate, broadcast_dims=(1, 2), deterministic=not train)(y)

    def scaled(self, y: jax.Array, number: int) -> jax.Array:
        """The output of the branch `number`, 1 or 2, times its layer scale."""
        return LayerScale(self.layer_scale, name=f"ls{number}")(y)


class OwnScalesBlock(Block, kw_only=True):
    """`Block` whose layer scales are parameters of its own, as they are in the weights of DINOv3."""

    def scaled(self, y: jax.Array, number: int) -> jax.Array:
        start = nn.initializers.constant(self.layer_scale)
        return y * self.param(f"gamma_{number}", start, y.shape[-1:]).astype(y.dtype)
