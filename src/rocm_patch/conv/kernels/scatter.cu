// Data gradient, second half: the columns [image][channel][tap][map pixel] that a GEMM made are gathered into the image. A thread sums what
// reaches one pixel; neighbours read neighbours.

struct Scatter {
    const real *columns;
    const element *bias;
    element *result;
    int size;  // image elements of this piece
    int channels;
    int in0, in1, in2, out0, out1, out2, kernel0, kernel1, kernel2;
    int stride0, stride1, stride2, padding0, padding1, padding2, dilation0, dilation1, dilation2;
    Divisor line, plane, volume, channels_, by0, by1, by2;  // in2, in1*in2, in0*in1*in2, channels, strides
};

// The first tap that reaches a coordinate and the step to the next; with a dilation every tap is asked.
#define TAPS(axis, at)                                                                                                   \
    unsigned int at_##axis = at + p.padding##axis;                                                                       \
    int first_##axis = p.dilation##axis == 1 ? at_##axis - divided(at_##axis, p.by##axis) * p.stride##axis : 0;          \
    int step_##axis = p.dilation##axis == 1 ? p.stride##axis : 1;
#define SOURCE(axis, tap)                                                                  \
    int back_##axis = (int)at_##axis - tap * p.dilation##axis;                             \
    if (back_##axis < 0) break;                                                            \
    int from_##axis = divided(back_##axis, p.by##axis);                                    \
    if (from_##axis * p.stride##axis != back_##axis || from_##axis >= p.out##axis) continue;

extern "C" __global__ void __launch_bounds__(256) scatter(Scatter p) {
    int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= p.size) return;
    unsigned int slice = divided(at, p.volume), rest = at - slice * p.volume.value;
    unsigned int image = divided(slice, p.channels_), channel = slice - image * p.channels;
    unsigned int x0 = divided(rest, p.plane);
    rest -= x0 * p.plane.value;
    unsigned int x1 = divided(rest, p.line), x2 = rest - x1 * p.line.value;
    TAPS(0, x0)
    TAPS(1, x1)
    TAPS(2, x2)
    int pixels = p.out0 * p.out1 * p.out2;
    const real *RESTRICT columns = p.columns + (long long)slice * p.kernel0 * p.kernel1 * p.kernel2 * pixels;
    real sum = p.bias ? widen(p.bias[channel]) : (real)0;
    for (int t0 = first_0; t0 < p.kernel0; t0 += step_0) {
        SOURCE(0, t0)
        for (int t1 = first_1; t1 < p.kernel1; t1 += step_1) {
            SOURCE(1, t1)
            for (int t2 = first_2; t2 < p.kernel2; t2 += step_2) {
                SOURCE(2, t2)
                sum += columns[(long long)((t0 * p.kernel1 + t1) * p.kernel2 + t2) * pixels + (from_0 * p.out1 + from_1) * p.out2 + from_2];
            }
        }
    }
    p.result[at] = narrow(sum);
}
