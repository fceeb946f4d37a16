"""Which of a model's KV groups are kept, and as what: or why the model cannot be served.

vLLM gathers layers whose blocks live and die alike in groups (kv_cache_config). Kvist keeps groups
of full and of sliding-window attention with blocks of one size; all else ends vLLM's start with
what to do about it, rather than half a prefix later.

Threads: pure functions. Errors: ValueError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from kvist.vllm.metadata import GroupDescription, LayerKind

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

GROUPS_MAX = 8  # kvist.h: KVIST_GROUPS_MAX
BLOCK_TOKENS_MAX = 1024


def groups_of(
    vllm_config: VllmConfig, kv_cache_config: KVCacheConfig
) -> tuple[int, tuple[GroupDescription, ...]]:
    """Tokens of a block, and the groups, full ones first. A group of vLLM's whose layers have pages
    of several sizes becomes several. ValueError: this model or configuration is not served."""
    _check_served(vllm_config)
    found: list[GroupDescription] = []
    sizes: set[int] = set()
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        if not group.layer_names:
            continue  # of another pipeline stage
        _check_group(group)
        sizes.add(group.kv_cache_spec.block_size)
        found.extend(_split(number, group))
    if not found:
        raise _unserved("the model has no KV cache", "leave --kv-transfer-config off")
    if len(sizes) > 1:
        raise _unserved(
            f"its layer groups have blocks of {sorted(sizes)} tokens",
            "give them one --block-size, or leave --kv-transfer-config off",
        )
    block_tokens = sizes.pop()
    if block_tokens > BLOCK_TOKENS_MAX:
        raise _unserved(
            f"a block has {block_tokens} tokens, more than {BLOCK_TOKENS_MAX}",
            "choose a smaller --block-size",
        )
    found.sort(key=lambda group: group.kind is not LayerKind.FULL)  # stable
    if found[0].kind is not LayerKind.FULL or len(found) > GROUPS_MAX:
        raise _unserved(
            f"it has {len(found)} layer groups, {sum(g.kind is LayerKind.FULL for g in found)} of "
            f"them with full attention; 1 to {GROUPS_MAX} are possible, of which one is full",
            "start vLLM with --disable-hybrid-kv-cache-manager: then there is one",
        )
    return block_tokens, tuple(found)


def lookahead_tokens(vllm_config: VllmConfig) -> int:
    """How many tokens behind a position its KV depends on: 0, but where layers of a draft model
    that read the next tokens (eagle, mtp) have KV of their own."""
    speculative = vllm_config.speculative_config
    if speculative is None or not speculative.use_eagle():
        return 0
    return max(1, vllm_config.num_prefill_lookahead_tokens)


def _split(number: int, group: KVCacheGroupSpec) -> list[GroupDescription]:
    whole = group.kv_cache_spec
    by_size: dict[int, list[str]] = {}
    for name in group.layer_names:
        by_size.setdefault(_layer_spec(whole, name).real_page_size_bytes, []).append(name)
    windowed = isinstance(whole, SlidingWindowSpec)
    return [
        GroupDescription(
            engine_group=number,
            kind=LayerKind.WINDOW if windowed else LayerKind.FULL,
            window_tokens=whole.sliding_window if windowed else 0,
            layer_names=tuple(names),
            page_bytes=page_bytes,
        )
        for page_bytes, names in by_size.items()
    ]


def _layer_spec(whole: KVCacheSpec, name: str) -> Any:
    return whole.kv_cache_specs[name] if isinstance(whole, UniformTypeKVCacheSpecs) else whole


def _check_served(vllm_config: VllmConfig) -> None:
    model_config, parallel = vllm_config.model_config, vllm_config.parallel_config
    if not model_config.is_prefix_caching_supported:
        raise _unserved(
            "vLLM itself cannot cache its prefixes", "leave --kv-transfer-config off"
        )
    if model_config.is_diffusion:
        raise _unserved(
            "a diffusion model changes tokens that have KV", "leave --kv-transfer-config off"
        )
    for name in ("prefill_context_parallel_size", "decode_context_parallel_size"):
        degree = getattr(parallel, name)
        if degree != 1:
            raise _unserved(
                f"{name} is {degree}: a context's tokens lie on several ranks",
                f"start vLLM with {name} 1",
            )
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method in ("dflash", "dspark"):
        raise _unserved(
            f"speculative decoding with {speculative.method}", "choose another method"
        )
    if speculative is not None and speculative.uses_extract_hidden_states():
        raise _unserved("hidden states are kept in the KV cache", "choose another method")


def _check_group(group: KVCacheGroupSpec) -> None:
    where = f"its layer {group.layer_names[0]}"
    if not group.enable_kv_transfer or group.host_resident:
        raise _unserved(f"{where} has KV outside of the device", "leave HiSparse off")
    for name in group.layer_names:
        spec = _layer_spec(group.kv_cache_spec, name)
        if type(spec) not in (FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec):
            raise _unserved(
                f"its layer {name} has a KV cache of the kind {type(spec).__name__}; full, latent "
                "and sliding-window attention are served",
                "leave --kv-transfer-config off for this model",
            )
        if getattr(spec, "non_causal", False) or spec.tokens_per_state != 1:
            raise _unserved(
                f"its layer {name} attends to later tokens, or has one state for several",
                "leave --kv-transfer-config off for this model",
            )
        if getattr(spec, "extra_retained_tokens", 0):
            raise _unserved(
                f"its layer {name} keeps tokens beyond its window",
                "start vLLM with --disable-hybrid-kv-cache-manager",
            )


def _unserved(what: str, remedy: str) -> ValueError:
    return ValueError(f"kvist: this model cannot be served: {what}; {remedy}")
