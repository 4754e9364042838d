"""Reading programs as the compiler writes them."""

import jax
import jax.numpy as jnp
import pytest

from animate_jax.parallel import hlo

TEXT = """
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %all-gather.1 = bf16[16,8]{1,0} all-gather(%x), channel_id=1, dimensions={0}
  %start = (bf16[4,8]{1,0:T(8,128)}, bf16[16,8]{1,0}) all-gather-start(%x), channel_id=2
  %done = bf16[16,8]{1,0} all-gather-done(%start)
  %splash_mha_fwd_no_residuals.3 = (f32[4,512,128]{2,1,0}, bf16[4,8,512,40]{3,2,1,0}) custom-call(%q, %k, %v), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,1,2]{2,1,0}, bf16[4,8,40,512]{3,2,1,0}, bf16[4,8,40,1024]{3,2,1,0}, bf16[4,8,40,1024]{3,2,1,0}, s32[4,512,128]{2,1,0}, s32[4,8,1024]{2,1,0}}, frontend_attributes={}
}

%all-reduce-scatter.2 (input: f32[16,8]) -> f32[4,8] {
  %all-reduce.8 = f32[16,8]{1,0} all-reduce(%input), channel_id=7, to_apply=%sum
  ROOT %dynamic-slice = f32[4,8]{1,0} dynamic-slice(%all-reduce.8, %i, %zero), dynamic_slice_sizes={4,8}
}

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main.5_spmd (p0: f32[4]) -> f32[4] {
  %while.1 = (s32[], bf16[4,8]) while(%t), condition=%condition, body=%bodyTRIPS
  %all-reduce.7 = (f32[10]{0}, f32[5,2]{1,0}) all-reduce(%a, %b), channel_id=4, to_apply=%sum
  %whole = f32[16,8]{1,0} copy(%d)
  %reduce-scatter.1 = f32[4,8]{1,0} reduce-scatter(%whole), channel_id=6, dimensions={0}, to_apply=%sum
  %fused = f32[4,8]{1,0} fusion(%d), kind=kCustom, calls=%all-reduce-scatter.2
  %all-to-all.1 = bf16[4,6]{1,0} all-to-all(%c), channel_id=5
  %mention = f32[4]{0} add(%p0, %all-reduce.7), metadata={op_name="all-gather(x)"}
}
"""  # noqa: E501
HLO = TEXT.replace("TRIPS", "")  # as a TPU's compiler writes it down before there is machine code


def test_collectives_count_their_bytes_and_their_loops():
    assert hlo.collective_bytes(HLO) == {
        "all-gather": 3 * (16 * 8 * 2 + 16 * 8 * 2),
        "all-reduce": 2 * (10 * 4 + 10 * 4),
        "all-to-all": 4 * 6 * 2,
        "collective-permute": 0,
        "reduce-scatter": 2 * 16 * 8 * 4,
    }


def test_attention_kernels_count_their_products():
    assert hlo.kernel_flops(HLO) == 3 * 2 * (2 * 4 * 8 * 512 * 1024 * 40)


def test_loops_turn_as_often_as_is_written_or_as_they_count():
    told = TEXT.replace("TRIPS", ', backend_config={"known_trip_count":{"n":"5"}}')
    assert hlo.collective_bytes(told)["all-gather"] * 3 == hlo.collective_bytes(HLO)["all-gather"] * 5


@pytest.mark.parametrize("strides, padding, groups", [((1, 1), "SAME", 1), ((2, 2), "SAME", 1), ((2, 1), "VALID", 2)])
def test_convolutions_count_as_xla_counts_them(strides, padding, groups):
    def f(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        return y.sum()

    lowered = jax.jit(jax.grad(f, (0, 1))).lower(jnp.ones((2, 12, 10, 8)), jnp.ones((3, 3, 8 // groups, 16)))
    assert hlo.product_flops(lowered.as_text("hlo")) == pytest.approx(lowered.cost_analysis()["flops"], rel=0.05)


def test_memory_and_its_traffic():
    """Main memory only; a fusion's operands and result, not what it does inside."""
    text = """
%fused (a: f32[8]) -> f32[8] {
  ROOT %inside = f32[8]{0} add(%a, %a)
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %p0 = f32[8]{0} parameter(0)
  %near = f32[8]{0:S(1)} negate(%p0)
  ROOT %fusion.1 = f32[8]{0} fusion(%p0, %near), kind=kLoop, calls=%fused
}
"""
    assert hlo.memory_traffic(text) == 32 + 32 + 32
    buffers = "allocation 0: size 64, parameter 2:\nallocation 1: size 8, color 2, preallocated-temp:\n"
    assert hlo.allocated_bytes(buffers + "allocation 2: size 32, preallocated-temp:\n") == 96


def test_what_is_computed_again_is_told_apart():
    def text(function):
        function = jax.jit(jax.value_and_grad(function))
        lowered = function.lower(jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32))
        return lowered.as_text("hlo", debug_info=True)

    def layer(x):
        convolved = jax.lax.conv_general_dilated(
            x, jnp.ones((3, 3, 4, 4)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sin(convolved).sum()

    once = hlo.product_flops(text(layer))
    again = text(jax.checkpoint(layer))
    assert hlo.recomputed_flops(text(layer)) == 0
    assert 0 < hlo.recomputed_flops(again) < hlo.product_flops(again)
    assert hlo.product_flops(again) - hlo.recomputed_flops(again) == pytest.approx(once)


def test_what_libraries_compute_again_is_unknown():
    call = '  %gemm = f32[8,8]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm", metadata={op_name="OP"}'
    text = "ENTRY %main (p: f32[8,8]) -> f32[8,8] {\n" + call + "\n}\n"
    assert hlo.recomputed_flops(text.replace("OP", "jit(step)/dot_general")) == 0
    assert hlo.recomputed_flops(text.replace("OP", "jit(step)/checkpoint/rematted_computation/dot_general")) is None
