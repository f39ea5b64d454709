"""FLOPs read from compiled programs, against products counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from lmtrain.cost import hlo

pytestmark = pytest.mark.usefixtures('no_compilation_cache')


def flops(function, *arguments):
    return hlo.compiled_flops(jax.jit(function).lower(*arguments).compile())


def ones(*shape):
    return jnp.ones(shape)


def test_products():
    assert flops(lambda a, b: a @ b, ones(16, 32), ones(32, 8)) == 2 * 16 * 32 * 8
    assert flops(lambda a, b: a.T @ b, ones(32, 16), ones(32, 8)) == 2 * 16 * 32 * 8
    assert flops(lambda a, b: a @ b, ones(16, 32), ones(32)) == 2 * 16 * 32
    assert flops(lambda a, b: jnp.einsum('BTK,BSK->BTS', a, b), ones(3, 4, 5), ones(3, 6, 5)) == 2 * 3 * 4 * 5 * 6
    assert flops(lambda a: a @ a, jnp.ones((64, 64), jnp.bfloat16)) == 2 * 64**3
    assert flops(lambda a: jnp.sin(a) + 1, ones(64)) == 0


def scanned(x, kernels, unroll=1):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels, unroll=unroll)[0].sum()


@pytest.mark.parametrize('unroll', [1, 3, 6])
def test_loop_body_counts_once_per_iteration(unroll):
    x, kernels, one = ones(16, 32), ones(6, 32, 32), 2 * 16 * 32 * 32
    assert flops(lambda x, k: scanned(x, k, unroll), x, kernels) == 6 * one
    # Every product has two gradients.
    assert flops(jax.grad(lambda x, k: scanned(x, k, unroll), (0, 1)), x, kernels) == 18 * one


def test_operand_may_be_an_element_of_a_tuple():
    """As jax 0.12 prints a program that is divided and not yet compiled."""
    text = """HloModule jit_f

ENTRY %main (a: f32[4,5], b: f32[5,7]) -> f32[4,7] {
  %a = f32[4,5]{1,0} parameter(0)
  %b = f32[5,7]{1,0} parameter(1)
  %remat.15 = (s32[], f32[4,5]{1,0}, /*index=2*/f32[3,9]{1,0}) opt-barrier(%b)
  ROOT %dot.3 = f32[4,7]{1,0} dot(%remat.15#1, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    assert hlo.text_flops(text) == 2 * 4 * 5 * 7


def test_nested_loops_and_branches():
    def loops(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jax.lax.fori_loop(0, 5, lambda j, x: jnp.tanh(x @ x), x), x)

    def branches(x, n):
        return jax.lax.cond(n > 3, lambda: x @ x, lambda: jnp.sin(x @ jnp.cos(x)) @ x)

    assert flops(loops, ones(8, 8)) == 15 * 2 * 8**3
    assert flops(branches, ones(8, 8), 1) == 2 * 2 * 8**3


def test_convolutions():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME')

    assert flops(convolve, ones(2, 4, 16, 16), ones(8, 4, 3, 3)) == 2 * (2 * 8 * 16 * 16) * (4 * 3 * 3)


def test_sharded_program_is_counted_per_device():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
    compiled = jax.jit(lambda x, kernel: x @ kernel, out_shardings=rows).lower(x, ones(32, 16)).compile()
    assert hlo.compiled_flops(compiled) == 2 * 64 * 32 * 16 / 8


def test_loop_of_unknown_trip_count_is_refused():
    def loop(x, n):
        return jax.lax.while_loop(lambda carry: carry[0] < n, lambda carry: (carry[0] + 1, carry[1] @ carry[1]), (0, x))

    with pytest.raises(ValueError, match='trip count of the loop .* is unknown'):
        flops(loop, ones(8, 8), 3)


CUBLAS = """HloModule jit_f

ENTRY %main.5 (a.1: bf16[16,32], b.1: bf16[8,32]) -> bf16[16,8] {
  %a.1 = bf16[16,32]{1,0} parameter(0)
  %b.1 = bf16[8,32]{1,0} parameter(1)
  %gemm.1 = (bf16[16,8]{1,0}, s8[4194304]{0}) custom-call(%a.1, %b.1), custom_call_target="__cublas$gemm", \
backend_config={"operation_queue_id":"0","gemm_backend_config":{"alpha_real":1,"beta":0,"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[]}}}
  ROOT %get-tuple-element.1 = bf16[16,8]{1,0} get-tuple-element(%gemm.1), index=0
}
"""

# As jax._src.cudnn writes it.
CUDNN = """HloModule jit_f

ENTRY %main.5 (q.1: bf16[2,128,4,64], k.1: bf16[2,256,4,64], v.1: bf16[2,256,4,64]) -> bf16[2,128,4,64] {
  %q.1 = bf16[2,128,4,64]{3,2,1,0} parameter(0)
  %k.1 = bf16[2,256,4,64]{3,2,1,0} parameter(1)
  %v.1 = bf16[2,256,4,64]{3,2,1,0} parameter(2)
  %fmha.1 = (bf16[2,4,128,64]{3,1,2,0}, u8[0]{0}) custom-call(%q.1, %k.1, %v.1), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"operation_queue_id":"0","cudnn_fmha_backend_config":\
{"algorithm":{"algo_id":"0"},"intermediate_tensor_shape":{"element_type":"BF16","dimensions":["2","4","128","256"]}}}
  ROOT %get-tuple-element.1 = bf16[2,4,128,64]{3,1,2,0} get-tuple-element(%fmha.1), index=0
}
"""


def test_custom_calls():
    assert hlo.text_flops(CUBLAS) == 2 * 16 * 32 * 8
    assert hlo.text_flops(CUDNN) == 2 * 2 * (2 * 4 * 128 * 256) * 64
    assert hlo.text_flops(CUDNN.replace('Softmax"', 'SoftmaxBackward"')) == 5 * 2 * (2 * 4 * 128 * 256) * 64
    with pytest.raises(ValueError, match="'__cudnn.convForward' cannot be read"):
        hlo.text_flops(CUBLAS.replace('__cublas$gemm', '__cudnn$convForward').replace('gemm_backend_config', 'other'))
    with pytest.raises(ValueError, match='no HLO module'):
        hlo.text_flops('what is this')
