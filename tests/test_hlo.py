"""Reading compiled programs: counts against closed forms, and lines of GPU and TPU programs."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg import hlo, hlo_text

B, H, W, C, F = 2, 12, 20, 8, 16


def conv(x, kernel, strides=1, dilation=1, groups=1):
    reach = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(reach, reach)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def text_of(f, *shapes) -> str:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(f).lower(*shapes).compile().as_text()


def flops(f, *shapes) -> dict[str, int]:
    sums = hlo.totals(hlo.instructions(text_of(f, *shapes)))
    return {category: row[1] for category, row in sums.items() if row[1]}


@pytest.mark.parametrize(
    ("strides", "dilation", "groups", "pixels"),
    [(1, 1, 1, H * W), (2, 1, 1, H * W // 4), (1, 3, 1, H * W), (1, 1, 4, H * W)],
    ids=["plain", "strided", "dilated", "grouped"],
)
def test_a_convolution_and_its_gradients_cost_the_same(strides, dilation, groups, pixels):
    shapes = (B, H, W, C), (3, 3, C // groups, F)
    expected = 2 * B * pixels * 9 * (C // groups) * F

    def forward(x, kernel):
        return conv(x, kernel, strides, dilation, groups)

    def gradient(argument):
        return jax.grad(lambda x, k: (forward(x, k) * jnp.arange(F)).sum(), argument)

    assert flops(forward, *shapes) == {hlo.CONVOLUTION: expected}
    assert flops(gradient(0), *shapes) == {hlo.CONVOLUTION: expected}
    if groups == 1:  # else XLA convolves by expanding the groups, and that is what it costs
        assert flops(gradient(1), *shapes) == {hlo.CONVOLUTION: expected}


def test_a_matrix_product_and_what_it_reads_and_writes():
    text = text_of(jnp.matmul, (30, 50), (50, 70))
    (product,) = hlo.instructions(text)
    assert product.category == hlo.MATMUL
    assert product.flops == 2 * 30 * 50 * 70
    assert product.bytes == 4 * (30 * 50 + 50 * 70 + 30 * 70)
    assert product.op_name.endswith("dot_general")


def test_a_pointwise_convolution_is_one_though_compiled_as_a_matrix_product():
    assert flops(conv, (B, H, W, C), (1, 1, C, F)) == {hlo.CONVOLUTION: 2 * B * H * W * C * F}


def test_a_fusion_is_one_instruction_that_reads_and_writes_once():
    (fused,) = hlo.instructions(text_of(lambda x, y: jnp.tanh(x * y) + x, (64, 128), (64, 128)))
    assert (fused.category, fused.opcode) == (hlo.ELEMENTWISE, "fusion")
    assert fused.bytes == 3 * 4 * 64 * 128
    assert fused.flops == 0


def test_a_loop_counts_as_often_as_it_turns():
    def f(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, 7)[0]

    executed = hlo.instructions(text_of(f, (20, 32), (32, 32)))
    products = [each for each in executed if each.category == hlo.MATMUL]
    assert sum(each.flops for each in products) == 7 * 2 * 20 * 32 * 32
    assert {each.times for each in products} == {7}


def test_what_is_looked_up_costs_what_is_found():
    def f(x, i):
        return jax.lax.dynamic_slice(x, (i[0].astype(jnp.int32), 0), (2, 100))

    executed = hlo.instructions(text_of(f, (5000, 100), (1,)))
    assert sum(each.bytes for each in executed) < 5 * 4 * 2 * 100


def test_names_say_which_module():
    def f(x, kernel):
        with jax.named_scope("stem"):
            return jax.nn.relu(conv(x, kernel))

    names = [each.op_name for each in hlo.instructions(text_of(f, (B, H, W, C), (3, 3, C, F)))]
    assert any(name.endswith("stem/conv_general_dilated") for name in names)


@pytest.mark.parametrize(
    ("f", "shapes", "category"),
    [
        (lambda x: jnp.sort(x, -1), [(7, 33)], hlo.SORT),
        (lambda x: jax.lax.top_k(x, 3)[1], [(7, 33)], hlo.SORT),
        (lambda x: x.at[jnp.int32(x) % 9].add(1.0), [(64,)], hlo.SCATTER),
        (lambda x: x.T + 0, [(70, 33)], hlo.MOVEMENT),
    ],
    ids=["sort", "top_k", "scatter", "transpose"],
)
def test_categories(f, shapes, category):
    assert category in hlo.totals(hlo.instructions(text_of(f, *shapes)))


def test_a_text_without_a_program_has_no_instructions():
    assert hlo.instructions("") == []
    assert hlo.collectives("HloModule empty\n") == []


# Lines as the compilers write them, jax 0.10.2; the second cuDNN call is a weight gradient.
GPU = """HloModule jit_f, is_scheduled=true

%fused_pad (param_0: bf16[2,16]) -> bf16[8,16] {
  %param_0 = bf16[2,16]{1,0} parameter(0)
  %constant_1 = bf16[] constant(0)
  ROOT %pad.1 = bf16[8,16]{1,0} pad(%param_0, %constant_1), padding=0_6x0_0
}

ENTRY %main (x: bf16[2,32,64,32], k: bf16[64,3,3,32], y: bf16[2,16], w: bf16[16,16]) -> bf16[8,16] {
  %x = bf16[2,32,64,32]{3,2,1,0} parameter(0)
  %k = bf16[64,3,3,32]{3,2,1,0} parameter(1)
  %y = bf16[2,16]{1,0} parameter(2)
  %w = bf16[16,16]{1,0} parameter(3)
  %cudnn-conv.1 = (bf16[2,32,64,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), \
window={size=3x3 pad=2_2x2_2 rhs_dilate=2x2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/jvp()/conv_general_dilated"}
  %get-tuple-element.1 = bf16[2,32,64,64]{3,2,1,0} get-tuple-element(%cudnn-conv.1), index=0
  %cudnn-conv-bw-input.1 = (bf16[2,32,64,32]{3,2,1,0}, u8[0]{0}) \
custom-call(%get-tuple-element.1, %k), window={size=3x3 pad=2_2x2_2 rhs_dilate=2x2}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %cudnn-conv-bw-filter.1 = (bf16[64,3,3,32]{3,2,1,0}, u8[512]{0}) \
custom-call(%x, %get-tuple-element.1), window={size=3x3 pad=2_2x2_2 rhs_dilate=2x2}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %xt = bf16[32,32,64,2]{3,2,1,0} transpose(%x), dimensions={3,1,2,0}
  %yt = bf16[64,32,64,2]{3,2,1,0} transpose(%get-tuple-element.1), dimensions={3,1,2,0}
  %cudnn-conv.2 = (bf16[32,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%xt, %yt), \
window={size=32x64 stride=2x2 pad=2_2x2_2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(f)/transpose(jvp())/conv_general_dilated"}
  %loop_pad_fusion = bf16[8,16]{1,0} fusion(%y), kind=kLoop, calls=%fused_pad
  %all-reduce-start = f32[32]{0} all-reduce-start(%loop_pad_fusion), channel_id=1, to_apply=%add
  %all-reduce-done = f32[32]{0} all-reduce-done(%all-reduce-start)
  %custom-call.15 = (bf16[8,16]{1,0}, s8[4194304]{0}) custom-call(%loop_pad_fusion, %w), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/dot_general"}, \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  ROOT %get-tuple-element.2 = bf16[8,16]{1,0} get-tuple-element(%custom-call.15), index=0
}
"""


def test_library_calls_of_a_gpu_program():
    executed = {each.name: each for each in hlo.instructions(GPU)}
    one = 2 * 2 * 32 * 64 * 9 * 32 * 64
    for name in ("cudnn-conv.1", "cudnn-conv-bw-input.1", "cudnn-conv-bw-filter.1", "cudnn-conv.2"):
        assert executed[name].category == hlo.CONVOLUTION
        assert executed[name].flops == one
        # Image, result and kernel, and no scratch memory.
        assert executed[name].bytes == 2 * (2 * 32 * 64 * (32 + 64) + 9 * 32 * 64)
    product = executed["custom-call.15"]
    assert (product.category, product.flops) == (hlo.MATMUL, 2 * 8 * 16 * 16)
    assert product.bytes == 2 * (8 * 16 + 16 * 16 + 8 * 16)
    assert executed["loop_pad_fusion"].category == hlo.MOVEMENT
    assert executed["loop_pad_fusion"].bytes == 2 * (2 * 16 + 8 * 16)
    assert [each.opcode for each in hlo.collectives(GPU)] == ["all-reduce"]


def test_a_mismatched_weight_gradient_has_a_giant_window():
    line = "32x64 jit(f)/transpose(jvp())/conv_general_dilated"
    assert hlo.giant_windows(GPU) == [line]
    assert hlo.giant_windows(GPU, limit=2)[1:] == [line]
    assert hlo.giant_windows(GPU, limit=64) == []
    assert hlo.giant_windows(GPU, real=[(32, 64)]) == []


TPU = """HloModule jit_f, is_scheduled=true

%fused_computation (p0: bf16[32,16,4,64], p1: bf16[3,3,64,64]) -> bf16[16,16,2,64] {
  %p0 = bf16[32,16,4,64]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[16,16,2,64]{3,1,2,0:T(8,128)(2,1)S(1)} convolution(%p0, %p1), \
window={size=3x3 stride=2x2 pad=1_0x1_0}, dim_labels=0b1f_01io->0b1f, \
metadata={op_name="jit(f)/stem/conv_general_dilated"}
}

%body (s: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %s = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%s), index=0
  %value = f32[8,128]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %copy.1 = f32[8,128]{0,1:T(8,128)} copy(%value), backend_config={"window_config":\
{"estimated_cycles":"100"}}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%turn, %copy.1)
}

%condition (s.1: (s32[], f32[8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  %s.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%at, %bound), direction=LT
}

ENTRY %main (x: bf16[32,16,4,64], k: bf16[3,3,64,64], z: (s32[], f32[8,128])) -> bf16[16,16,2,64] {
  %x = bf16[32,16,4,64]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %z = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(2)
  %copy-start = (bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[3,3,64,64]{3,2,1,0}, \
u32[]{:S(2)}) copy-start(%k)
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%z), condition=%condition, body=%body
  %copy-done = bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  ROOT %fusion.1 = bf16[16,16,2,64]{3,1,2,0:T(8,128)(2,1)S(1)} fusion(%x, %copy-done), \
kind=kOutput, calls=%fused_computation, backend_config={"window_config":\
{"kernel_window_bounds":["3","3","8","1"],"estimated_cycles":"4658"}}
}
"""


def test_tiled_layouts_cycles_and_loops_of_a_tpu_program():
    executed = hlo.instructions(TPU)
    assert [each.name for each in executed] == ["copy-start", "copy.1", "fusion.1"]
    prefetch, turned, fused = executed
    assert prefetch.bytes == 2 * 2 * 9 * 64 * 64
    assert (turned.times, turned.cycles, turned.bytes) == (5, 500, 5 * 2 * 4 * 8 * 128)
    assert (fused.category, fused.cycles) == (hlo.CONVOLUTION, 4658)
    assert fused.flops == 2 * (16 * 16 * 2) * 9 * 64 * 64
    assert fused.op_name == "jit(f)/stem/conv_general_dilated"
    assert hlo.totals(executed)[hlo.MOVEMENT][3] == 500


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (("bf16", (3, 5)), 30),
        (("f32", ()), 4),
        (("pred", (7,)), 7),
        (("s4", (10,)), 5),
        (("f8e4m3fn", (9,)), 9),
        (("c64", (2,)), 16),
        (("token", ()), 0),
    ],
)
def test_sizes_of_arrays(shape, size):
    assert hlo_text.size_of(shape) == size
